"""A production model, opened to be changed: by one process at a time, every change a version of its history."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import BaseModel, Field

from lada_ray.calibration import calibration_key
from lada_ray.command_line import NAMED
from lada_ray.config import ResourceConfig, Storage, StreamConfig, TrackingConfig, find_problems, tracking_uri
from lada_ray.console import Console
from lada_ray.domains.base import STRICT, Domain, Name
from lada_ray.encoder import EncoderSpec
from lada_ray.errors import InputError, IntegrityError
from lada_ray.fit.plan import TaskPlan, TrainImages
from lada_ray.known import KNOWN_DOMAINS, KnownDomain, read_known
from lada_ray.model import MODEL, ModelFile
from lada_ray.pack import Label, TaskPack
from lada_ray.prepare import Stream, prepare
from lada_ray.run import Json, Run
from lada_ray.store import Store, join, open_store
from lada_ray.versions import Change, State, Version, history, promote, read_production, restorable
from lada_ray.views import TEST_VIEW, training_views

RELEARN = (
    "nothing that was learnt with one encoder means anything to another: to change it, write what the model knows to a "
    "YAML (python jobs/model.py show --model NAME --yaml FILE), state the new encoder there, and learn it under "
    "another name (python jobs/run_stream.py --config FILE --name NEW)"
)


class Settings(BaseModel):
    """How a job on a production model runs; nothing here decides what the model learns."""

    model_config = STRICT

    model: Annotated[Name, NAMED]
    """Name of the run that learnt it, below the storage."""
    storage: Storage = Field(default="runs", validate_default=True)
    """Where the model is: a local path or the URI of an object store."""
    resources: ResourceConfig = ResourceConfig()
    """What is not given is as the model was started."""
    tracking: TrackingConfig = TrackingConfig()
    """What is not given is as the model was started."""

    @property
    def store(self) -> Store:
        """The model's run folder."""
        return open_store(join(self.storage, self.model))

    def config(self) -> StreamConfig:
        """What the model was started with; resources and tracking as they are asked for now.

        Raises:
            InputError: there is no such model, or its configuration cannot be used.
        """
        found = self.store.read_version("config.yaml")
        if found is None:
            raise InputError(
                [f"{self.store.uri} holds no model: learn one with jobs/run_stream.py first"], "No model"
            )
        raw = yaml.safe_load(found[0])
        raw |= {"storage": self.storage, "name": self.model}
        problems = find_problems(raw)
        if problems:
            raise InputError(problems, f"{self.store.uri}/config.yaml cannot be used")
        config = StreamConfig(**raw)
        return config.model_copy(
            update={
                "resources": _over(config.resources, self.resources),
                "tracking": _over(config.tracking, self.tracking),
            }
        )


def _over(below: Any, above: Any) -> Any:
    """A section with what was given in another one in place of its own values."""
    return below.model_copy(update={key: getattr(above, key) for key in above.model_fields_set})


class Production:
    """A model that is about to be changed, with its lease held.

    Args:
        run: the run that learnt it.
        config: from `Settings.config`.
        console: shows progress.
    """

    def __init__(self, run: Run, config: StreamConfig, console: Console) -> None:
        self.run, self.config, self.console = run, config, console

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, console: Console) -> Iterator[Production]:
        """Take the model's lease, and give it a history if it has none: its present state is version 1.

        Raises:
            InputError: there is no such model, it is not learnt to its end, or its learner cannot go on.
            LeaseHeld: another live process is changing it.
        """
        config = settings.config()
        if config.method.kind == "joint":
            raise InputError(
                ["joint training learns all domains at once, and none on top"],
                "This model cannot be extended",
            )
        with Run.acquire(config, fresh=False, say=console.say) as run:
            production = cls(run, config, console)
            production._adopt()
            yield production

    @property
    def store(self) -> Store:
        """The model's run folder."""
        return self.run.store

    @property
    def file(self) -> ModelFile:
        """model.json as it is now."""
        return read_production(self.run.model_store)[0]

    @property
    def versions(self) -> list[Version]:
        """The history, the oldest first."""
        return history(self.file)

    @property
    def champion(self) -> Version:
        """The newest version."""
        return self.versions[-1]

    @cached_property
    def mlflow(self) -> str:
        """The MLflow that shows the model.

        Raises:
            ConfigError: there is none, and the storage is no local one.
        """
        return tracking_uri(self.config, os.environ)

    def known(self, state: State) -> list[KnownDomain]:
        """What is known of the domains of a version, one for each pack.

        Raises:
            IntegrityError: it is missing or damaged.
        """
        return [read_known(self.store, key) for key in state.domains]

    def stream(self, domains: Sequence[Domain] = (), shots: int | None = None) -> Stream:
        """Join the cluster, and get to know the encoder again.

        Args:
            domains: that are to be learnt or tested on.
            shots: training images per class; None: as the model was started.

        Raises:
            IntegrityError: the model was learnt with another encoder.
        """
        spec = EncoderSpec.from_json(self.file.encoder["spec"])
        # Whatever this cluster would choose: the packs mean nothing to features of another precision.
        encoder = self.config.encoder.model_copy(update={"precision": spec.precision})
        config = self.config.model_copy(update={"shots": shots or self.config.shots, "encoder": encoder})
        stream = prepare(config, tuple(domains), spec, self.console, keep=False)
        if stream.info.fingerprint != self.file.encoder["fingerprint"]:
            raise IntegrityError(
                f"{spec.pretrained} has other weights now; put back the file that the model was learnt with. {RELEARN}"
            )
        return stream

    def promote(self, before: Version, change: Change) -> Version:
        """Make a change the champion.

        Args:
            before: the champion that the change was made from, and judged against.
            change: what the version is to be.

        Raises:
            LostLease: another process has taken the model over.
        """
        self.run.lease.check()
        return promote(self.run.model_store, self.run.epoch, before.state.packs, change)

    def _adopt(self) -> None:
        """Give a model that a run has learnt a history, if it has none."""
        file = self.file
        if file.history:
            return
        keys = self.store.read_version(KNOWN_DOMAINS)
        domains = tuple(json.loads(keys[0])) if keys else ()
        again = f"python jobs/run_stream.py --config {join(self.store.uri, 'config.yaml')}"
        accuracy = self._run_accuracy(len(domains))
        missing = None
        if len(domains) != len(file.packs) or len(domains) < len(self.config.domains) or not domains:
            missing = f"{len(domains)} of {len(self.config.domains)} domains are learnt and recorded"
        elif accuracy is None:
            missing = "its last domain is not tested yet"
        elif not all(self.run.model_store.exists(calibration_key(digest)) for digest in file.packs):
            missing = "its last domain is not calibrated yet"
        if missing or accuracy is None:
            raise InputError([f"{missing}; finish it: {again}"], f"{self.store.uri} is not a whole model yet")
        state = State(file.packs, file.prompts, domains)
        promote(self.run.model_store, self.run.epoch, file.packs, Change("start", "", state, accuracy))

    def _run_accuracy(self, domains: int) -> dict[str, float] | None:
        """The row of the run's accuracy matrix after so many domains; None if it is not there."""
        found = self.store.read_version("accuracy_matrix.csv")
        table = pd.read_csv(io.BytesIO(found[0]), index_col=0) if found else pd.DataFrame()
        if len(table) < domains:
            return None
        return {str(name): float(value) for name, value in table.iloc[-1].items()}


def identities_of(model_store: Store, packs: Sequence[str]) -> list[Json]:
    """What identified each of these packs when it was learnt.

    Raises:
        IntegrityError: a pack is missing or damaged.
    """
    metas = [TaskPack.read_meta(model_store, digest) for digest in packs]
    return [{name: meta[name] for name in ("labels", "config", "samples")} for meta in metas]


def task_of(position: int, known: KnownDomain, identity: Json, before: Sequence[Label] = ()) -> TaskPlan:
    """The plan by which a domain is learnt (again) from the bank.

    Args:
        position: number of tasks before it.
        known: its images.
        identity: of its pack.
        before: the labels learnt before, in order; those that are learnt again keep their place.
    """
    config = identity["config"]
    shas, labels = known.trained
    augment, views = (config["augment"], config["views"]) if "augment" in config else ("none", 0)
    part = TrainImages(known.name, shas, labels, tuple(training_views(augment, views)), known.prompts)
    own = [Label(*label) for label in identity["labels"]]
    columns = None
    if set(own) & set(before):
        index = {label: i for i, label in enumerate(dict.fromkeys([*before, *own]))}
        columns = tuple(index[label] for label in own)
    return TaskPlan(position, (part,), config.get("epochs", 1), columns)


def plan_again(known: Sequence[KnownDomain], identities: Sequence[Json]) -> list[TaskPlan]:
    """The plans of a whole model's tasks, in order.

    Args:
        known: the images of each.
        identities: of the packs.
    """
    tasks: list[TaskPlan] = []
    labels: list[Label] = []
    for one, identity in zip(known, identities, strict=True):
        tasks.append(task_of(len(tasks), one, identity, labels))
        labels = list(dict.fromkeys([*labels, *(Label(*label) for label in identity["labels"])]))
    return tasks


def needed_views(storage: str, but: str | None = None) -> Iterator[tuple[str, str]]:
    """(SHA-256, view) of all features that the production models of a storage are judged by and learnt again from.

    Args:
        storage: where they are.
        but: name of a model that does not count.

    Raises:
        IntegrityError: what a model knows of a domain is damaged.
    """
    root = open_store(storage)
    ends = f"/model/{MODEL}"
    names = [entry.key.removesuffix(ends) for entry in root.list() if entry.key.endswith(ends)]
    for name in (name for name in names if name != but):
        run = root.child(name)
        for version in restorable(history(read_production(run.child("model"))[0])):
            yield from _needed_by(run, version.state)


def _needed_by(run: Store, state: State) -> Iterator[tuple[str, str]]:
    known = [read_known(run, key) for key in state.domains]
    tasks = plan_again(known, identities_of(run.child("model"), state.packs))
    for one, task in zip(known, tasks, strict=True):
        yield from ((sha, TEST_VIEW) for sha in one.tests.shas)
        views = dict.fromkeys([TEST_VIEW, *task.parts[0].views])
        yield from ((sha, view) for sha in task.shas for view in views)
