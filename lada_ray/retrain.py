"""Learning what arrives: each new domain of an inbox becomes a task on top of the champion, if the gate lets it pass.

A candidate learns in a file of its own beside `model.json`, on the champion's packs. Promoting it is one conditional write of
`model.json`. Whatever is killed in between is gone on with, or made again to the same result, by the next start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lada_ray.cluster import result
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains import Domain
from lada_ray.domains.check import load_domains
from lada_ray.encoder import EncoderSpec, resolve_encoder
from lada_ray.errors import InputError, LadaError
from lada_ray.evaluate import Evaluation, TestSet, correct_images, load_tests
from lada_ray.features.fill import Choice, Images
from lada_ray.fit.task import TrainResources
from lada_ray.gate import Gate, Limits, Role, Scores, judge, print_gate
from lada_ray.inbox import Arrival, Entry, Known, images_by_class, recognise, reject, scan, validate
from lada_ray.known import KnownDomain, read_known, write_known
from lada_ray.model import ModelFile, read_model_file
from lada_ray.prepare import (
    Stream,
    choose,
    encode,
    fit_all_classes,
    pack_identities,
    plan_fit,
    plan_tasks,
    plan_tests,
    prepare,
)
from lada_ray.run import Run, RunLedger, prediction_of
from lada_ray.store import Store, join
from lada_ray.training import Background, Watcher
from lada_ray.versions import Version, adopt, history, open_candidate, promote

Status = Literal["learnt", "refused", "rejected", "known"]
POLL_S = 0.25


@dataclass(frozen=True)
class Ending:
    """What came of an entry of the inbox."""

    entry: str
    fingerprint: str
    domain: str
    status: Status
    """learnt: it is a new version; refused: by the gate; rejected: it could not be used; known: nothing new in it."""
    said: str
    at: str
    version: int | None = None
    gate: Mapping[str, Any] | None = None


@dataclass
class Retrained:
    """What `retrain` returns."""

    endings: list[Ending] = field(default_factory=list)
    incomplete: tuple[str, ...] = ()
    """Names of entries without _READY."""
    versions: list[Version] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether no entry was refused or rejected."""
        return all(ending.status in ("learnt", "known") for ending in self.endings)


class Retraining:
    """One start of the job on one model, as its only writer.

    Args:
        run: the model's run, whose lease is held.
        config: what the model was started with.
        inbox: where domains arrive.
        limits: of the gate.
        guards: domains that are not learnt, on which zero-shot ability is watched.
        console: shows progress.
    """

    def __init__(
        self,
        run: Run,
        config: StreamConfig,
        inbox: str,
        limits: Limits,
        guards: Sequence[Domain],
        console: Console,
    ) -> None:
        self.run, self.config, self.inbox = run, config, inbox
        self.limits, self.guards, self.console = limits, tuple(guards), console
        self.spec = EncoderSpec.from_json(self.champion.encoder["spec"])

    @property
    def champion(self) -> ModelFile:
        """The model as it is now."""
        found = read_model_file(self.run.model_store)
        if found is None:
            raise InputError([f"{self.run.store.uri} holds no model"])
        return found[0]

    @property
    def known(self) -> list[KnownDomain]:
        """The domains that the champion has learnt."""
        keys = [key for version in history(self.champion) for key in version.details.get("domains", ())]
        learnt = {label.domain for label in self.labels}
        return [one for key in dict.fromkeys(keys) if (one := read_known(self.run.store, key)).tests.domain in learnt]
