"""What the fitting of a stream's tasks needs and leaves behind, whichever learner does it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lada_ray.domains.base import ALL_DOMAINS
from lada_ray.encoder import EncoderSpec
from lada_ray.features.bank import FeatureBank
from lada_ray.fit.classes import ClassImages
from lada_ray.method.settings import LadaSettings

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TrainImages:
    """A domain's training images, by reference: nothing here grows with their pixels or features."""

    domain: str
    shas: tuple[str, ...]
    """Content hashes of the n training images."""
    labels: tuple[int, ...]
    """Class of each within the domain."""
    views: tuple[str, ...]
    """Views to train on."""
    prompts: tuple[str, ...]
    """One per class."""

    @property
    def images(self) -> ClassImages:
        """The training images grouped by class."""
        return ClassImages.of(self.shas, np.array(self.labels, np.int64))


@dataclass(frozen=True)
class TaskPlan:
    """One task to learn."""

    position: int
    parts: tuple[TrainImages, ...]
    """The domains it learns: one; joint training alone takes all of them at once."""
    epochs: int
    columns: tuple[int, ...] | None = None
    """Index of each of its classes among all seen ones, where it learns more of known classes; None: all are new."""

    @property
    def name(self) -> str:
        """The domain that is learnt, or "all domains"."""
        return self.parts[0].domain if len(self.parts) == 1 else ALL_DOMAINS

    @property
    def shas(self) -> list[str]:
        """Content hashes of the n training images of all its domains."""
        return [sha for part in self.parts for sha in part.shas]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each image within the task, [n]: the classes of its domains follow each other."""
        starts = np.cumsum([0, *(len(part.prompts) for part in self.parts)])
        shifted = [start + np.array(p.labels, np.int64) for start, p in zip(starts, self.parts, strict=False)]
        return np.concatenate(shifted)

    @property
    def classes(self) -> int:
        """Number of its classes."""
        return sum(len(part.prompts) for part in self.parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that it says; asked for at every checkpoint of this task and of those after it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FitPlan:
    """Everything a training worker needs besides what is in storage."""

    tasks: tuple[TaskPlan, ...]
    """All tasks of the stream, learnt ones too."""
    spec: EncoderSpec
    bank: FeatureBank
    tau: float
    settings: LadaSettings
    seed: int
    threads: int
    """torch threads of a worker; they decide speed and may decide last bits."""
    kind: str = "lada"
    """The learner."""


@dataclass(frozen=True)
class Fitted:
    """What a task leaves behind, and what is worth knowing about how it went."""

    tensors: Tensors
    """What its pack keeps."""
    started: float
    seconds: float
    losses: Sequence[float] = ()
    """Mean loss per epoch, of a learner that has epochs."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """More to be told of it, such as the number of mixture components."""


class Ledger(Protocol):
    """Where learnt tasks are committed. Called from training workers."""

    def packs(self) -> tuple[str, ...]:
        """Digests of the committed tasks' packs, in order."""

    def tensors(self, digest: str) -> Mapping[str, npt.NDArray[Any]]:
        """What a committed pack keeps."""

    def commit(self, task: TaskPlan, fitted: Fitted, parent: str | None) -> str:
        """Commit the next task after `parent`; returns its digest. Raises LostLease if another process owns the run."""

    def save_checkpoint(self, data: bytes) -> None:
        """Keep the newest training state."""

    def load_checkpoint(self) -> bytes | None:
        """The newest training state, if any."""

    def save_state(self, pack: str, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep a solver's state after this pack beside the packs, in place of an older one."""

    def load_state(self, pack: str) -> Mapping[str, npt.NDArray[Any]] | None:
        """The state that was kept after this pack; None if the newest one is another pack's."""

    def progress(self, task: TaskPlan, step: int, steps: int) -> None:
        """Tell whoever watches; must be quick."""
