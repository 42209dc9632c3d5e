"""Everything before learning: domains listed and checked, the encoder known, every image encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from lada_ray.cluster import Resources, join_cluster, settle_resources, shortages
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains.base import Domain
from lada_ray.domains.check import load_domains, overlaps
from lada_ray.encoder import EncoderInfo, EncoderSpec, resolve_encoder
from lada_ray.errors import InputError
from lada_ray.evaluate import Evaluation, TestSet
from lada_ray.features.bank import FeatureBank
from lada_ray.features.extract import Extraction, Pool
from lada_ray.features.fill import Choice, Images, choose_images, fill_bank
from lada_ray.features.index import FileIndex
from lada_ray.features.text import Prompts, describe, known_info, known_text, make_prompts
from lada_ray.fit.classes import fit_classes
from lada_ray.fit.task import FitPlan, TaskPlan
from lada_ray.method.settings import LadaSettings
from lada_ray.model import Prediction
from lada_ray.run import Json, Run, pack_identity
from lada_ray.store import Store, join, open_store


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
    def choice(self) -> Choice:
        """What decides which images are used."""
        c = self.config
        return Choice(c.shots, c.views, c.seed, c.max_bad_share)

    def template(self, domain: Domain) -> str:
        """Prompt template of a domain."""
        return domain.prompt or self.config.encoder.prompt

    def prompts(self, domain: Domain) -> Prompts:
        """A prompt per class of a domain."""
        return make_prompts(self.template(domain), domain.class_names)


def prepare(config: StreamConfig, console: Console) -> Stream:
    """List and check the domains, join the cluster and get to know the encoder.

    Raises:
        InputError: with all problems of domains and encoder, before anything expensive starts.
    """
    with console.stage("list domains"):
        domains, spec = check_input(config)
    with console.stage("start Ray"):
        join_cluster()
        resources = settle_resources(config.resources)
    for line in shortages(resources):
        console.say(f"warning: {line}")
    with console.stage("encoder"):
        spec = replace(spec, precision=config.encoder.precision or resources.precision)
        features = open_store(join(config.storage, "features"))
        prompts = [make_prompts(d.prompt or config.encoder.prompt, d.class_names) for d in domains]
        info = _encoder_info(spec, features, prompts, resources)
    bank = FeatureBank(features, info.feature_key, info.width)
    return Stream(config, domains, spec, info, resources, bank, FileIndex(features))


def check_input(config: StreamConfig) -> tuple[tuple[Domain, ...], EncoderSpec]:
    """List the domains and settle what the encoder is; reads no image and no weights.

    Raises:
        InputError: with all problems of both.
    """
    domains: tuple[Domain, ...] = ()
    spec: EncoderSpec | None = None
    problems: list[str] = []
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

    info = known_info(features, spec)
    if info is not None and known_text(features, info, prompts):
        return info
    task = ray.remote(num_cpus=1, num_gpus=min(1.0, resources.gpus_per_encoder))(describe)
    return ray.get(task.remote(features, spec, prompts))


def encode_images(stream: Stream, run: Run, console: Console) -> tuple[Images, Extraction]:
    """Encode every image view that is not in the bank, and check that no test image is trained on.

    Raises:
        InputError: too many bad images, or more than 1 % of a domain's test images are training images.
    """
    stream.bank.table.adopt()
    with console.stage("hash images"):
        images = choose_images(stream.domains, stream.index, stream.choice, run.id, console.progress)
    for warning in check_overlap(stream, images):
        console.say(f"warning: {warning}")
    pool = Pool(
        stream.resources.encoders, stream.resources.cpus_per_encoder, stream.resources.gpus_per_encoder
    )
    with console.stage("encode images"):
        images, done = fill_bank(
            stream.domains,
            stream.spec,
            stream.bank,
            stream.index,
            stream.choice,
            pool,
            run.id,
            console.progress,
        )
    return images, done


def check_overlap(stream: Stream, images: Images) -> list[str]:
    """Warnings about images that stand in train and test alike; raises InputError above 1 %."""
    hashes = {
        s.domain.name: {sample.path: images.hashes[sample.uri] for sample in s.samples}
        for s in images.selections
    }
    return overlaps(stream.domains, hashes)


def fit_all_classes(stream: Stream, tasks: Sequence[TaskPlan], console: Console) -> dict[str, float]:
    """k-means and mixtures of the classes of these tasks, where they are not known yet; busy seconds by kind."""
    m = stream.config.method
    with console.stage("k-means and mixtures"):
        return fit_classes(
            stream.bank,
            [task.images for task in tasks],
            m.memory_per_class,
            m.mixture_components,
            lambda a, b: console.progress("classes", a, b),
        )


def plan_tasks(stream: Stream, images: Images) -> tuple[TaskPlan, ...]:
    """One plan per domain, in order."""
    return tuple(
        TaskPlan(
            position=position,
            domain=s.domain.name,
            shas=tuple(images.shas(s.train)),
            labels=tuple(s.train_labels.tolist()),
            views=s.views,
            prompts=stream.prompts(s.domain),
            epochs=s.domain.epochs or stream.config.method.epochs,
        )
        for position, s in enumerate(images.selections)
    )


def plan_fit(stream: Stream, tasks: tuple[TaskPlan, ...]) -> FitPlan:
    """What a training worker needs."""
    method = stream.config.method.model_dump()
    settings = LadaSettings(**{f.name: method[f.name] for f in fields(LadaSettings)})
    threads = max(1, int(stream.resources.cpus_per_train_worker))
    return FitPlan(tasks, stream.spec, stream.bank, stream.info.tau, settings, stream.config.seed, threads)


def pack_identities(stream: Stream, images: Images) -> tuple[Json, ...]:
    """What identifies each domain's pack, in order."""
    return tuple(
        pack_identity(stream.config, stream.info, s, images, stream.template(s.domain))
        for s in images.selections
    )


def plan_evaluation(stream: Stream, images: Images, run: Run) -> Evaluation:
    """All test sets, and where the packs are."""
    tests = [
        TestSet(
            s.domain.name,
            s.domain.class_names,
            stream.prompts(s.domain),
            tuple(images.shas(s.test)),
            tuple(s.test_labels.tolist()),
        )
        for s in images.selections
    ]
    m = stream.config.method
    prediction = Prediction(stream.info.tau, m.alpha, m.beta, m.fusion)
    return Evaluation(tuple(tests), stream.bank, run.model_store.uri, prediction)
