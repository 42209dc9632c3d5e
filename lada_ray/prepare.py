"""Everything before learning: domains listed and checked, the encoder known, every image encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lada_ray.cluster import Resources, join_cluster, result, settle_resources, shortages
from lada_ray.config import DEMO, StreamConfig
from lada_ray.console import IMPORTS, START_ENCODERS, START_RAY, START_WORKERS, Console
from lada_ray.domains.base import ALL_DOMAINS, Domain
from lada_ray.domains.check import load_domains, overlap, overlaps
from lada_ray.encoder import EncoderInfo, EncoderSpec, resolve_encoder
from lada_ray.errors import InputError
from lada_ray.evaluate import Evaluation, TestSet
from lada_ray.features.bank import FeatureBank
from lada_ray.features.extract import Extraction, Pool
from lada_ray.features.fill import Choice, Images, choose_images, fill_bank
from lada_ray.features.index import FileIndex
from lada_ray.features.text import Prompts, describe, info_key, known_info, known_text, make_prompts
from lada_ray.fit.classes import fit_classes
from lada_ray.fit.plan import FitPlan, TaskPlan, TrainImages
from lada_ray.method.settings import LadaSettings
from lada_ray.results import write_overlaps
from lada_ray.run import Json, Run, pack_identity, prediction_of
from lada_ray.store import Store, join, open_store

FIT_CLASSES = "k-means and mixtures"


@dataclass(frozen=True)
class Stream:
    """A configured stream whose domains are listed and whose encoder is known; nothing is encoded yet."""

    config: StreamConfig
    domains: tuple[Domain, ...]
    spec: EncoderSpec
    info: EncoderInfo
    resources: Resources
    bank: FeatureBank
    index: FileIndex

    @property
    def names(self) -> list[str]:
        """Names of the domains, in order of learning."""
        return [domain.name for domain in self.domains]

    @property
    def tasks(self) -> list[tuple[str, list[int]]]:
        """The name of each task, and which domains it learns: one, or all of them in joint training."""
        if self.config.method.kind == "joint" and len(self.domains) > 1:
            return [(ALL_DOMAINS, list(range(len(self.domains))))]
        return [(name, [i]) for i, name in enumerate(self.names)]

    @property
    def choice(self) -> Choice:
        """What decides which images are used."""
        c = self.config
        return Choice(c.shots, c.training_views, c.seed, c.max_bad_share)

    @property
    def pool(self) -> Pool:
        """The encoder actors."""
        return Pool.of(self.resources)

    def prompts(self, domain: Domain) -> Prompts:
        """A prompt per class of a domain."""
        return domain_prompts(self.config, domain)


def domain_prompts(config: StreamConfig, domain: Domain) -> Prompts:
    """A prompt per class of a domain."""
    return make_prompts(domain.prompt or config.encoder.prompt, domain.class_names)


def prepare(
    config: StreamConfig, domains: tuple[Domain, ...], spec: EncoderSpec, console: Console, keep: bool = True
) -> Stream:
    """Join the cluster and get to know the encoder.

    Args:
        config: what to learn.
        domains: from `check_input`.
        spec: likewise.
        console: shows progress.
        keep: copy local encoder weights into the storage, where all nodes and all later users of the model find them.

    Raises:
        InputError: the encoder cannot be used, or not with the text tuner.
    """
    with console.stage(START_RAY):
        join_cluster()
        resources = settle_resources(config.resources)
    for line in shortages(resources):
        console.warn(line)
    with console.stage("encoder"):
        spec = replace(spec, precision=config.encoder.precision or resources.precision)
        spec = keep_weights(spec, open_store(config.storage)) if keep else spec
        features = open_store(join(config.storage, "features"))
        prompts = [domain_prompts(config, domain) for domain in domains]
        info = _encoder_info(spec, features, prompts, resources)
    if info.not_tunable and config.method.trains and config.method.text_tuner != "none":
        raise InputError([f"method.text_tuner: {info.not_tunable}; use --method.text_tuner none"])
    bank = FeatureBank(features, info.feature_key, info.width)
    return Stream(config, domains, spec, info, resources, bank, FileIndex(features))


def keep_weights(spec: EncoderSpec, storage: Store) -> EncoderSpec:
    """Copy local weights into the storage, once; the spec that is returned names the copy.

    Shipped weights and hub tags are found everywhere anyway.
    """
    if spec.pretrained == DEMO or spec.local_weights is None:
        return spec
    with spec.local_weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    key = f"encoders/{digest[:32]}/{spec.local_weights.name}"
    if not storage.exists(key):
        storage.create(key, spec.local_weights.read_bytes())
    return replace(spec, pretrained=join(storage.uri, key))


def check_input(config: StreamConfig, console: Console) -> tuple[tuple[Domain, ...], EncoderSpec]:
    """List the domains and settle what the encoder is; reads no image and no weights.

    Raises:
        InputError: with all problems of both.
    """
    domains: tuple[Domain, ...] = ()
    spec: EncoderSpec | None = None
    problems: list[str] = []
    if not config.encoder.in_files:
        with console.stage(IMPORTS):
            import open_clip  # noqa: F401 (it takes seconds, and settling what the encoder is needs it)
    with console.stage("list domains"):
        try:
            domains = load_domains(config.domains, config.storage)
        except InputError as error:
            problems += error.problems
        try:
            spec = resolve_encoder(config.encoder, "fp32")
        except InputError as error:
            problems += error.problems
    if problems or spec is None:
        raise InputError(problems)
    return domains, spec


def _encoder_info(
    spec: EncoderSpec, features: Store, prompts: Sequence[Prompts], resources: Resources
) -> EncoderInfo:
    """Ask what earlier runs found out; else load the encoder where there is room for it, not in the driver."""
    import ray

    key = info_key(spec)
    info = known_info(features, spec, key)
    if info is not None and known_text(features, info, prompts):
        return info
    gpus = min(1.0, resources.gpus_per_encoder)
    task: Any = ray.remote(num_cpus=resources.cpus_per_encoder, num_gpus=gpus)(describe)
    return result(task.remote(features, spec, prompts, "cuda" if gpus else "cpu", key))


def choose(stream: Stream, run: Run, console: Console) -> Images:
    """Choose every domain's images, and check that no test image is trained on.

    Raises:
        InputError: too many bad images, or more than 1 % of a domain's test images are training images.
    """
    with console.stage("hash images"):
        images = choose_images(stream.domains, stream.index, stream.choice, run.id, console.progress)
    hashes = {
        s.domain.name: {sample.path: images.hashes[sample.uri] for sample in s.samples}
        for s in images.selections
    }
    for warning in overlaps(stream.domains, hashes):
        console.warn(warning)
    write_overlaps(
        run.store, [(d.name, *pair) for d in stream.domains for pair in overlap(d, hashes[d.name])]
    )
    return images


def encode(
    stream: Stream, choices: Sequence[Choice], run: Run, console: Console
) -> tuple[list[Images], Extraction]:
    """Encode every image view that is not in the bank; images found bad are replaced.

    Returns:
        The images of each choice, and what the encoding did.

    Raises:
        InputError: too many bad images.
    """
    with console.stage("encode images"):
        images, extraction = fill_bank(
            stream.domains,
            stream.spec,
            stream.bank,
            stream.index,
            choices,
            stream.pool,
            run.id,
            console.progress,
        )
    console.move(extraction.start_s, "encode images", START_ENCODERS)
    run.lease.check()
    warn_of_bad(images[0], console)
    return images, extraction


def warn_of_bad(images: Images, console: Console) -> None:
    """Say which domains' images were left out."""
    bad = [f"{s.domain.name} {len(s.bad)}" for s in images.selections if s.bad]
    if bad:
        what = f"{len(images.bad)} images cannot be used and are left out ({', '.join(bad)})"
        console.warn(f"{what}: bad_images.csv says why")


def fit_all_classes(stream: Stream, tasks: Sequence[TaskPlan], console: Console) -> dict[str, float]:
    """k-means and mixtures of the classes of these tasks, where they are not known yet; busy seconds by kind."""
    m = stream.config.method
    if not m.trains:
        return {}
    with console.stage(FIT_CLASSES):
        done = fit_classes(
            stream.bank,
            [part.images for task in tasks for part in task.parts],
            m.memory_per_class,
            m.mixture_components,
            lambda a, b: console.progress("classes", a, b),
        )
    console.move(done.start_s, FIT_CLASSES, START_WORKERS)
    return done.seconds


def plan_tasks(stream: Stream, images: Images) -> tuple[TaskPlan, ...]:
    """One plan per task, in order."""
    parts = [
        TrainImages(
            domain=s.domain.name,
            shas=tuple(images.shas(s.train)),
            labels=tuple(s.train_labels.tolist()),
            views=s.views,
            prompts=stream.prompts(s.domain),
        )
        for s in images.selections
    ]
    return tuple(
        TaskPlan(position, tuple(parts[i] for i in which), _epochs(stream, images, which))
        for position, (_, which) in enumerate(stream.tasks)
    )


def _epochs(stream: Stream, images: Images, which: Sequence[int]) -> int:
    """Passes over a task's images; over several domains so many that each image is seen as often, on average."""
    sizes = [len(images.selections[i].train) for i in which]
    own = [stream.domains[i].epochs or stream.config.method.epochs for i in which]
    return max(1, round(sum(n * epochs for n, epochs in zip(sizes, own, strict=True)) / sum(sizes)))


def plan_fit(stream: Stream, tasks: tuple[TaskPlan, ...]) -> FitPlan:
    """What a training worker needs."""
    method = stream.config.method.model_dump()
    return FitPlan(
        tasks=tasks,
        spec=stream.spec,
        bank=stream.bank,
        tau=stream.info.tau,
        settings=LadaSettings(**{f.name: method[f.name] for f in fields(LadaSettings)}),
        seed=stream.config.seed,
        threads=max(1, int(stream.resources.cpus_per_train_worker)),
        kind=stream.config.method.kind,
    )


def pack_identities(stream: Stream, images: Images | None = None) -> tuple[Json, ...]:
    """What identifies each task's pack, in order; without the samples as long as no images are chosen."""
    chosen = images.selections if images else []
    samples = [[(x.path, images.hashes[x.uri]) for x in s.train] for s in chosen] if images else None
    return tuple(
        pack_identity(
            stream.config,
            stream.info,
            [stream.domains[i] for i in which],
            None if samples is None else [samples[i] for i in which],
        )
        for _, which in stream.tasks
    )


def plan_evaluation(stream: Stream, images: Images, model_uri: str) -> Evaluation:
    """All test sets, and where the packs are."""
    prediction = prediction_of(stream.config, stream.info)
    return Evaluation(plan_tests(stream.config, images), stream.bank, model_uri, prediction)


def plan_tests(config: StreamConfig, images: Images) -> tuple[TestSet, ...]:
    """What every domain is tested on, in order."""
    return tuple(
        TestSet(
            s.domain.name,
            s.domain.class_names,
            domain_prompts(config, s.domain),
            tuple(images.shas(s.test)),
            tuple(s.test_labels.tolist()),
            tuple(sample.path for sample in s.test),
        )
        for s in images.selections
    )
