"""What a run would do, and what it would cost, before it starts."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.table import Table

from lada_ray.cluster import result
from lada_ray.config import TRAINED, MethodConfig, StreamConfig, tracking_uri
from lada_ray.console import Console
from lada_ray.domains.base import Sample, read_bytes
from lada_ray.domains.check import shared_class_names
from lada_ray.encoder import Encoder, load_encoder
from lada_ray.errors import LadaError
from lada_ray.features.fill import Images, find_gaps
from lada_ray.features.selection import Selection, select
from lada_ray.fit.plan import FitPlan, TaskPlan
from lada_ray.method.draws import steps_per_epoch
from lada_ray.method.learner import Seen, TaskData, TaskLearner
from lada_ray.method.settings import DIMENSIONS, LadaSettings
from lada_ray.method.tuner import CausalTextTower
from lada_ray.model import read_model_file
from lada_ray.page import duration, size
from lada_ray.prepare import Stream, check_input, pack_identities, plan_fit, plan_tasks, prepare
from lada_ray.run import started_differently
from lada_ray.store import Store, join, open_store
from lada_ray.views import TEST_VIEW, decode, render

PROBE_IMAGES = 16
PROBE_STEPS = 3
# Starting Ray's actors and workers, MLflow and the report, seen on a small machine; shown as part of the estimate.
START_UP_S = 40.0


@dataclass(frozen=True)
class Probe:
    """Seconds on this cluster, measured on a few images and steps."""

    render: float
    """To read, decode and render one view, on one core."""
    encode: float
    """To encode one view, with one encoder."""
    step: float
    """Of one training step of the task with the most classes, half-way through the stream; 0 where none is trained."""


@dataclass(frozen=True)
class DomainPlan:
    """One domain's part of the work."""

    selection: Selection
    in_bank: int
    missing: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Classes, training and test images, views, and of these what is and is not in the bank."""
        s = self.selection
        views = self.in_bank + self.missing
        return len(s.domain.class_names), len(s.train), len(s.test), views, self.in_bank, self.missing


@dataclass(frozen=True)
class Tasks:
    """What is learnt, in order."""

    plans: tuple[TaskPlan, ...]
    steps: tuple[int, ...]
    """Training steps of each; 0 for a learner in closed form."""
    learnt: int
    """How many are learnt already."""

    @property
    def remaining(self) -> int:
        """Steps of those that are not learnt."""
        return sum(self.steps[self.learnt :])

    @property
    def done(self) -> bool:
        """Whether all are learnt."""
        return self.learnt >= len(self.plans)

    @property
    def seen(self) -> int:
        """Classes that a step replays, on average over the tasks."""
        before = np.cumsum([0, *(plan.classes for plan in self.plans)])[:-1]
        return int(before.mean())


def print_plan(config: StreamConfig, console: Console) -> int:
    """Print what a run of this configuration would do; nothing is encoded or learnt.

    Returns:
        0, or the exit code of the problems found, which are printed with everything that could be found out.
    """
    code = 0
    try:
        console.say(f"tracked in {tracking_uri(config, os.environ)}")
    except LadaError as error:
        console.say(str(error))
        code = error.exit_code
    stream = prepare(config, *check_input(config, console), console, keep=False)
    model_store = open_store(join(config.storage, config.name, "model"))
    different = started_differently(model_store, config, stream.spec, stream.info, pack_identities(stream))
    for line in different:
        console.say(f"{config.name} was started differently: {line}")
        code = 1
    images = _images(stream)
    plans = [_plan_domain(stream, images, selection) for selection in images.selections]
    tasks = _plan_tasks(stream, images, model_store)
    _print_encoder(stream, console)
    console.rich.print(_table(stream, plans, tasks))
    for name, having in shared_class_names(stream.domains).items():
        console.say(
            f"class {name!r} stands in {', '.join(having)}: two labels, taking one for the other is an error"
        )
    for domain in stream.domains:
        if domain.ignored:
            console.say(
                f"{domain.name}: {len(domain.ignored)} files are no images of it, such as {domain.ignored[0]}"
            )
    with console.stage("probe"):
        probe = _probe(stream, plans, tasks)
    _print_estimate(stream, plans, tasks, probe, console)
    return code


def _images(stream: Stream) -> Images:
    """What would be used if every file could be; with a stand-in for the hash of a file that nobody has read yet."""
    c = stream.config
    selections = [select(domain, {}, c.shots, c.training_views, c.seed) for domain in stream.domains]
    samples = [sample for selection in selections for sample in selection.samples]
    known = stream.index.known(samples)
    # In no bank, and one per file.
    return Images(selections, {s.uri: known.get(s.uri, f"new {s.uri}") for s in samples})


def _plan_domain(stream: Stream, images: Images, selection: Selection) -> DomainPlan:
    """Asks the bank; files that were never hashed count as missing."""
    pairs = Images([selection], images.hashes).pairs()
    missing = sum(len(gap.views) for gap in find_gaps(pairs, stream.bank))
    return DomainPlan(selection, len(pairs) - missing, missing)


def _plan_tasks(stream: Stream, images: Images, model_store: Store) -> Tasks:
    """Asks the run's model, if there is one, how far it is."""
    m, plans = stream.config.method, plan_tasks(stream, images)
    steps = [plan.epochs * steps_per_epoch(len(plan.shas), m.batch_size) if m.trains else 0 for plan in plans]
    found = read_model_file(model_store)
    return Tasks(plans, tuple(steps), len(found[0].packs) if found else 0)


def _print_encoder(stream: Stream, console: Console) -> None:
    spec, pre, r = stream.spec, stream.spec.preprocess, stream.resources
    mean, std = (", ".join(f"{v:.3f}" for v in values) for values in (pre.mean, pre.std))
    console.say(
        f"encoder {spec.model} / {spec.pretrained}: quick_gelu {str(spec.architecture['quick_gelu']).lower()}, "
        f"{pre.size} x {pre.size} pixels, {pre.interpolation}, {pre.resize_mode}, mean ({mean}), std ({std}), "
        f"{spec.precision}, d = {stream.info.width}, τ = {stream.info.tau:.1f}, fingerprint {stream.info.feature_key}"
    )
    console.say(
        f"resources: {r.encoders} encoders ({r.cpus_per_encoder:g} CPUs, {r.gpus_per_encoder:g} GPUs each), "
        f"{r.train_workers} training workers ({r.cpus_per_train_worker:g} CPUs, {r.gpus_per_train_worker:g} GPUs each)"
    )


def _table(stream: Stream, plans: Sequence[DomainPlan], tasks: Tasks) -> Table:
    """A row per domain; one more for a task that learns several, which are one step of the stream."""
    trains, table = stream.config.method.trains, Table(box=None, pad_edge=False)
    table.add_column("domain")
    for name in ("classes", "train", "test", "views", "in bank", "to encode", *(["steps"] if trains else [])):
        table.add_column(name, justify="right")
    table.add_column("")
    for position, (name, which) in enumerate(stream.tasks):
        learnt = "learnt" if position < tasks.learnt else ""
        steps = [str(tasks.steps[position])] if trains else []
        own = [plans[i] for i in which]
        for plan in own:
            cells = map(str, plan.counts)
            table.add_row(plan.selection.domain.name, *cells, *(steps if len(own) == 1 else [""]), learnt)
        if len(own) > 1:
            sums = [str(sum(column)) for column in zip(*(plan.counts for plan in own), strict=True)]
            table.add_row(name, *sums, *steps, learnt)
    return table


def _probe(stream: Stream, plans: Sequence[DomainPlan], tasks: Tasks) -> Probe:
    """Measure in a Ray task with an encoder's resources, where the work would be done."""
    import ray

    r = stream.resources
    samples = [
        s for plan in plans for s in plan.selection.samples[:: max(1, len(plan.selection.samples) // 4)]
    ]
    largest = max(tasks.plans, key=lambda plan: plan.classes)
    prompts = [prompt for part in largest.parts for prompt in part.prompts]
    task = ray.remote(num_cpus=r.cpus_per_encoder, num_gpus=r.gpus_per_encoder)(_measure)
    device = "cuda" if r.gpus_per_encoder else "cpu"
    return result(task.remote(plan_fit(stream, ()), samples[:PROBE_IMAGES], prompts, tasks.seen, device))


def _measure(
    fit: FitPlan, samples: Sequence[Sample], prompts: Sequence[str], seen: int, device: str
) -> Probe:
    spec, encoder = fit.spec, load_encoder(fit.spec, device)
    started = time.perf_counter()
    pixels = []
    for sample in samples:
        try:
            pixels.append(render(decode(read_bytes(sample.uri)), "", TEST_VIEW, spec.preprocess))
        except Exception:  # the run itself lists bad images, with their reasons
            continue
    rendering = time.perf_counter() - started
    empty = np.zeros((spec.preprocess.size, spec.preprocess.size, 3), np.uint8)
    batch = np.resize(np.stack(pixels or [empty]), (64, *empty.shape))
    encoder.encode_pixels(batch)
    started = time.perf_counter()
    encoder.encode_pixels(batch)
    encoding = time.perf_counter() - started
    step = _time_steps(encoder, prompts, fit, seen) if fit.kind in TRAINED else 0.0
    return Probe(rendering / max(1, len(samples)), encoding / len(batch), step)


def _time_steps(encoder: Encoder, prompts: Sequence[str], fit: FitPlan, seen: int) -> float:
    settings, width = fit.settings, encoder.spec.architecture["embed_dim"]
    rng = np.random.default_rng(0)
    memory = rng.standard_normal((len(prompts), settings.memory_per_class, width), np.float32)
    data = TaskData(
        position=0,
        views=rng.standard_normal((settings.batch_size, 1, width), np.float32),
        labels=rng.integers(len(prompts), size=settings.batch_size),
        memory=memory,
        mask=np.ones(memory.shape[:2], np.bool_),
        text=encoder.encode_text(prompts),
        tokens=encoder.tokenize(prompts),
    )
    tower = None if settings.text_tuner == "none" else CausalTextTower(encoder.model)
    few = replace(settings, epochs=PROBE_STEPS + 1)
    learner = TaskLearner(data, _made_up(seen, settings, width, rng), tower, fit.tau, few, 0, encoder.device)
    learner.step()
    started = time.perf_counter()
    for _ in range(PROBE_STEPS):
        learner.step()
    return (time.perf_counter() - started) / PROBE_STEPS


def _made_up(classes: int, settings: LadaSettings, width: int, rng: np.random.Generator) -> Seen:
    """A state of as many classes as are seen half-way."""
    memory = rng.standard_normal((classes, settings.memory_per_class, width), np.float32)
    labels = np.repeat(np.arange(classes), settings.mixture_components)
    return Seen(
        text=memory[:, 0],
        memory=memory,
        mask=np.ones(memory.shape[:2], np.bool_),
        means=rng.standard_normal((len(labels), width), np.float32),
        variances=np.ones(len(labels), np.float32),
        weights=np.full(len(labels), 1 / settings.mixture_components, np.float32),
        labels=labels,
    )


def _print_estimate(
    stream: Stream, plans: Sequence[DomainPlan], tasks: Tasks, probe: Probe, console: Console
) -> None:
    import ray

    width, missing = stream.info.width, sum(plan.missing for plan in plans)
    cores = ray.cluster_resources().get("CPU", 1.0)
    encoding = missing * max(probe.render / cores, probe.encode / stream.resources.encoders)
    training = tasks.remaining * probe.step
    total = encoding + training + (0 if tasks.done and not missing else START_UP_S)
    trains = stream.config.method.trains
    probed = f"{PROBE_IMAGES} images" + (f" and {PROBE_STEPS} steps" if trains else "")
    learning = (
        f"learn {duration(training)}, " if trains or tasks.done else "learning in closed form not estimated, "
    )
    packs, state = kept_bytes(stream.config.method, width, tasks.plans)
    views = max(len(p.selection.train) * len(p.selection.views) for p in plans) * width * 4
    console.say(
        f"time, estimated from a probe of {probed}: encode {duration(encoding)}, {learning}"
        f"with start-up about {duration(total)}\n"
        f"disk: {size(missing * width * 4)} of features, {size(packs)} of packs"
        f"{f', {size(state)} of state for going on' if state else ''}\n"
        f"memory: {size(stream.info.parameters * 4)} of weights per process that holds the encoder, "
        f"at most {size(views)} of training features"
    )


def kept_bytes(method: MethodConfig, width: int, tasks: Sequence[TaskPlan]) -> tuple[int, int]:
    """Bytes that a learner keeps of all these tasks, at most.

    Args:
        method: the learner.
        width: d.
        tasks: all tasks of the stream.

    Returns:
        Of all packs together, and of the state beside them that going on needs (of RAIL, after the last task).
    """
    classes = np.array([task.classes for task in tasks])
    images = np.array([len(task.shas) for task in tasks])
    # A pack of RAIL holds the solution for all classes, and of the dual for all images too, that are seen by then.
    seen, absorbed = np.cumsum(classes), np.cumsum(images)
    c, n, text = int(seen[-1]), int(absorbed[-1]), int(seen[-1]) * width
    match method.kind:
        case "zero_shot":
            return 4 * text, 0
        case "ncm":
            return 4 * 2 * text, 0
        case "rail_primal":
            return 4 * (text + DIMENSIONS * (width + int(seen.sum()))), 4 * DIMENSIONS * (DIMENSIONS + c)
        case "rail_dual":
            # The state's factor and coefficients are in float64.
            return 4 * (text + n * width + int(absorbed @ seen)), 4 * n * width + 8 * n * (n + c)
    bytes_each = np.dtype(method.pack_precision).itemsize
    return bytes_each * text * (1 + method.memory_per_class + method.mixture_components), 0
