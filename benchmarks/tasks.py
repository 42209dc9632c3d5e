"""A stream of 100 tasks on features: does the hundredth take longer than the tenth, and how fast is it read again?"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.made_up import class_features, class_names
from benchmarks.result import Bar, Result
from benchmarks.timing import interleaved
from lada_ray.calibrate import calibrate_pack
from lada_ray.calibration import PackCalibration, calibration_key
from lada_ray.config import EncoderConfig, MethodConfig, StreamConfig
from lada_ray.domains import FolderSpec
from lada_ray.encoder import EncoderInfo, EncoderSpec
from lada_ray.evaluate import Row
from lada_ray.features.bank import FeatureBank
from lada_ray.features.text import make_prompts, text_key
from lada_ray.fit.classes import fit_classes_here
from lada_ray.fit.plan import FitPlan, TaskPlan, TrainImages
from lada_ray.fit.task import TextSide, learn_tasks, read_seen, task_data
from lada_ray.method.learner import Seen, TaskLearner
from lada_ray.method.settings import LadaSettings
from lada_ray.method.tuner import CausalTextTower
from lada_ray.model import LadaModel, cached_pack
from lada_ray.run import Json, Run, RunLedger
from lada_ray.store import open_store
from lada_ray.tracking import Tracker
from lada_ray.views import TEST_VIEW, Preprocess

MODEL, WIDTH, TAU = "ViT-B-16", 512, 100.0
CLASSES, IMAGES = 10, 16
PROMPT = "a photo of a {}."
# Of a fit or calibration that is timed on its own; the stream itself, which only has to be there, makes one pass.
EPOCHS = LadaSettings().epochs
# Tasks around the tenth and the hundredth whose other costs are averaged.
AROUND = 5


def measure(repeats: int, quick: bool) -> Result:
    """Learn the stream; then the fits of the early and the late task in turn, and reading all of it."""
    number, early = (12, 4) if quick else (100, 10)
    with tempfile.TemporaryDirectory(prefix="lada-bench-") as folder:
        world = World.make(Path(folder), number)
        with world.run() as (run, ledger):
            others = list(_learn(world, run, ledger))
            figures = _figures(world, ledger, early, number, others, repeats)
    fit = figures[f"fit {number}, s"] / figures[f"fit {early}, s"]
    whole = figures[f"task {number}, s"] / figures[f"task {early}, s"]
    bars = (
        Bar(f"task {number} over task {early}, fit alone", fit, "at most", 1.5),
        Bar(f"task {number} over task {early}, with everything", whole, "at most", 1.5),
        Bar(f"load a model of {number} packs, s", figures["load, s"], "at most", 2),
    )
    what = f"{number} tasks of {CLASSES} classes with {IMAGES} images each"
    return Result("tasks", what, bars if not quick else (), figures)


def _figures(
    world: World, ledger: RunLedger, early: int, late: int, others: list[float], repeats: int
) -> dict[str, float]:
    packs = ledger.packs()
    work = {f"fit {k}": _fit(world, ledger, packs[: k - 1], k - 1) for k in (early, late)}
    work |= {f"calibration {k}": partial(_calibrate, world, packs[:k]) for k in (early, late)}
    times = interleaved(work, min(3, repeats))
    reading = interleaved(
        {"load": lambda: LadaModel.load(world.model), "resume": lambda: _resume(world, ledger, packs)},
        repeats,
    )
    size = sum(f.stat().st_size for f in Path(world.model).rglob("*.safetensors"))
    figures = {f"{name}, s": value for name, value in {**times, **reading}.items()}
    for k in (early, late):
        beside = median(others[max(0, k - AROUND) : k])
        figures[f"everything else {k}, s"] = beside
        figures[f"task {k}, s"] = times[f"fit {k}"] + times[f"calibration {k}"] + beside
    return {**figures, "bytes per pack": size / len(packs)}


def _resume(world: World, ledger: RunLedger, packs: tuple[str, ...]) -> Seen:
    """What a worker does that goes on after these packs."""
    cached_pack.cache_clear()
    return read_seen(world.plan, ledger, packs)


def _learn(world: World, run: Run, ledger: RunLedger) -> Iterator[float]:
    """Learn and calibrate all tasks; what else each took: reading features, committing, tracking, seconds."""
    tracker = Tracker(run.store, f"sqlite:///{world.folder}/mlflow.db", "bench", "bench", {}, _silent)
    tracker.open()
    started = time.perf_counter()
    for digest in learn_tasks(world.plan, ledger, "cpu", text=world.text):
        position = len(ledger.packs())
        row = Row(f"domain {position}", {"domain 0": [1] * CLASSES}, {"domain 0": [2] * CLASSES})
        began = time.perf_counter()
        made = _calibrate(world, ledger.packs(), epochs=1)
        calibrating = time.perf_counter() - began
        open_store(world.model).write(calibration_key(digest), made.to_bytes())
        run.store.write(f"rows/{digest}-1.json", json.dumps(asdict(row)).encode())
        tracker.start_task(f"domain {position}", position)
        tracker.sync()
        now = time.perf_counter()
        yield now - started - calibrating - run.record(digest)["timings"]["fit"]
        started = now


def _calibrate(world: World, packs: tuple[str, ...], epochs: int = EPOCHS) -> PackCalibration:
    """Calibrate the newest of these packs, whose memory is fitted anew in so many passes."""
    task = replace(world.plan.tasks[len(packs) - 1], epochs=epochs)
    return calibrate_pack(world.plan, task, world.model, packs)


def _silent(message: str) -> None:
    """Say nothing."""


def _fit(world: World, ledger: RunLedger, packs: tuple[str, ...], position: int) -> Any:
    """A function that learns this task from its beginning to its end, after these packs."""
    seen: Seen = read_seen(world.plan, ledger, packs)
    data = task_data(world.plan, world.plan.tasks[position], world.text)
    settings = replace(world.plan.settings, epochs=EPOCHS)

    def fit() -> None:
        learner = TaskLearner(data, seen, world.text.tower, TAU, settings, 0)
        while not learner.done:
            learner.step()

    return fit


@dataclass(frozen=True)
class World:
    """A storage with the features of all tasks, and a text tower with random weights."""

    folder: Path
    plan: FitPlan
    config: StreamConfig
    info: EncoderInfo
    text: TextSide

    @property
    def model(self) -> str:
        """The folder of the model that is learnt."""
        return str(self.folder / self.config.name / "model")

    @classmethod
    def make(cls, folder: Path, tasks: int) -> World:
        """Draw the features, and fit the classes of all tasks."""
        import open_clip
        import torch

        torch.manual_seed(0)
        model = open_clip.create_model(MODEL)
        del model.visual
        text = TextSide(CausalTextTower(model), open_clip.get_tokenizer(MODEL))
        info = EncoderInfo("made-up-weights", WIDTH, TAU, 0)
        bank = FeatureBank(open_store(folder / "features"), info.feature_key, WIDTH)
        names = class_names(tasks * CLASSES)
        parts = [_draw(bank, text, p, names[p * CLASSES : (p + 1) * CLASSES]) for p in range(tasks)]
        settings = LadaSettings(epochs=1)
        fit_classes_here(
            bank, [part.images for part in parts], settings.memory_per_class, settings.mixture_components
        )
        plans = tuple(TaskPlan(p, (part,), 1) for p, part in enumerate(parts))
        preprocess = Preprocess(224, (0.5,) * 3, (0.5,) * 3)
        architecture = open_clip.get_model_config(MODEL)
        spec = EncoderSpec(MODEL, "random", architecture, preprocess, "fp32")
        plan = FitPlan(plans, spec, bank, TAU, settings, 0, os.cpu_count() or 1)
        config = StreamConfig(
            name="bench",
            storage=str(folder),
            encoder=EncoderConfig(model=MODEL, pretrained="random"),
            domains=tuple(FolderSpec(name=part.domain.replace(" ", "-"), root="/nowhere") for part in parts),
            method=MethodConfig(epochs=1),
        )
        return cls(folder, plan, config, info, text)

    @contextmanager
    def run(self) -> Iterator[tuple[Run, RunLedger]]:
        """A run that has begun, and its ledger."""
        identities = tuple(_identity(task) for task in self.plan.tasks)
        with Run.acquire(self.config, False, _silent) as run:
            run.begin(self.config, self.plan.spec, self.info, identities)
            yield run, RunLedger(run.store.uri, run.epoch, identities)


def _identity(task: TaskPlan) -> Json:
    (part,) = task.parts
    labels = [[part.domain, prompt] for prompt in part.prompts]
    return {"labels": labels, "config": {"prompt": PROMPT}, "samples": [[sha, sha] for sha in part.shas]}


def _draw(bank: FeatureBank, text: TextSide, position: int, names: list[str]) -> TrainImages:
    """Draw the features of a domain into the bank."""
    import torch
    from safetensors.numpy import save

    raw = class_features(CLASSES, IMAGES, WIDTH, seed=position).reshape(-1, WIDTH)
    shas = [f"{position:03}-{i:03}" for i in range(len(raw))]
    bank.table.enter([bank.write(shas, [TEST_VIEW] * len(shas), raw, "drawn")])
    prompts = make_prompts(PROMPT, names)
    with torch.no_grad():
        features = text.tower(text.tower.begin(text.tokenizer(list(prompts)))).numpy()
    bank.store.create(text_key(prompts), save({"text": features}))
    labels = tuple(np.repeat(np.arange(CLASSES), IMAGES).tolist())
    return TrainImages(f"domain {position}", tuple(shas), labels, (TEST_VIEW,), prompts)
