"""What a run would do, and what it would cost, before it starts."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.table import Table

from lada_ray.cluster import result
from lada_ray.config import StreamConfig, tracking_uri
from lada_ray.console import Console
from lada_ray.domains.base import Domain, Sample, read_bytes
from lada_ray.domains.check import shared_class_names
from lada_ray.encoder import Encoder, load_encoder
from lada_ray.errors import LadaError
from lada_ray.features.fill import Images, find_gaps
from lada_ray.features.selection import Selection, select
from lada_ray.fit.plan import FitPlan
from lada_ray.method.draws import steps_per_epoch
from lada_ray.method.learner import Seen, TaskData, TaskLearner
from lada_ray.method.settings import LadaSettings
from lada_ray.method.tuner import CausalTextTower
from lada_ray.model import read_model_file
from lada_ray.page import duration, size
from lada_ray.prepare import Stream, check_input, pack_identities, plan_fit, prepare
from lada_ray.run import started_differently
from lada_ray.store import join, open_store
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
    """Of one training step of the domain with the most classes, half-way through the stream."""


@dataclass(frozen=True)
class DomainPlan:
    """One domain's part of the work."""

    selection: Selection
    in_bank: int
    missing: int
    steps: int
    learnt: bool


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
    plans = [_plan_domain(stream, domain, i) for i, domain in enumerate(stream.domains)]
    _print_encoder(stream, console)
    console.rich.print(_table(plans))
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
        probe = _probe(stream, plans)
    _print_estimate(stream, plans, probe, console)
    return code


def _plan_domain(stream: Stream, domain: Domain, position: int) -> DomainPlan:
    """Asks the index and the bank; files that were never hashed count as missing."""
    c = stream.config
    selection = select(domain, {}, c.shots, c.training_views, c.seed)
    hashes = stream.index.known(selection.samples)
    # A stand-in for the hash of a file nobody has read yet: in no bank, and one per file.
    images = Images([selection], {s.uri: hashes.get(s.uri, f"new {s.uri}") for s in selection.samples})
    missing = sum(len(gap.views) for gap in find_gaps(images.pairs(), stream.bank))
    steps = (domain.epochs or c.method.epochs) * steps_per_epoch(len(selection.train), c.method.batch_size)
    found = read_model_file(open_store(join(c.storage, c.name, "model")))
    learnt = found is not None and position < len(found[0].packs)
    return DomainPlan(selection, len(images.pairs()) - missing, missing, steps, learnt)


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


def _table(plans: Sequence[DomainPlan]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("domain")
    for name in ("classes", "train", "test", "views", "in bank", "to encode", "steps"):
        table.add_column(name, justify="right")
    table.add_column("")
    for plan in plans:
        s = plan.selection
        sizes = (len(s.domain.class_names), len(s.train), len(s.test), plan.in_bank + plan.missing)
        cells = [str(n) for n in (*sizes, plan.in_bank, plan.missing, plan.steps)]
        table.add_row(s.domain.name, *cells, "learnt" if plan.learnt else "")
    return table


def _probe(stream: Stream, plans: Sequence[DomainPlan]) -> Probe:
    """Measure in a Ray task with an encoder's resources, where the work would be done."""
    import ray

    r = stream.resources
    samples = [
        s for plan in plans for s in plan.selection.samples[:: max(1, len(plan.selection.samples) // 4)]
    ]
    largest = max(plans, key=lambda plan: len(plan.selection.domain.class_names)).selection.domain
    task = ray.remote(num_cpus=r.cpus_per_encoder, num_gpus=r.gpus_per_encoder)(_measure)
    # Half of all classes: what a step replays on average over the stream.
    seen = sum(len(plan.selection.domain.class_names) for plan in plans) // 2
    fit = plan_fit(stream, ())
    device = "cuda" if r.gpus_per_encoder else "cpu"
    return result(task.remote(fit, samples[:PROBE_IMAGES], stream.prompts(largest), seen, device))


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
    step = _time_steps(encoder, prompts, fit, seen)
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


def _print_estimate(stream: Stream, plans: Sequence[DomainPlan], probe: Probe, console: Console) -> None:
    import ray

    width, missing = stream.info.width, sum(plan.missing for plan in plans)
    cores = ray.cluster_resources().get("CPU", 1.0)
    encoding = missing * max(probe.render / cores, probe.encode / stream.resources.encoders)
    training = sum(plan.steps for plan in plans if not plan.learnt) * probe.step
    classes = sum(len(plan.selection.domain.class_names) for plan in plans)
    m = stream.config.method
    pack = classes * (1 + m.memory_per_class + m.mixture_components) * width * 4
    views = max(len(p.selection.train) * len(p.selection.views) for p in plans) * width * 4
    total = encoding + training + (START_UP_S if missing or training else 0)
    console.say(
        f"time, estimated from a probe of {PROBE_IMAGES} images and {PROBE_STEPS} steps: encode {duration(encoding)}, "
        f"learn {duration(training)}, with start-up about {duration(total)}\n"
        f"disk: {size(missing * width * 4)} of features, {size(pack)} of packs\n"
        f"memory: {size(stream.info.parameters * 4)} of weights per process that holds the encoder, "
        f"at most {size(views)} of training features"
    )
