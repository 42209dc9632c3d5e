"""Learning tasks one after another in one Ray Train run.

A Train run costs seconds to start, so one serves all remaining tasks. After each, rank 0 commits what was learnt; a
restarted worker reads what is committed and the newest training state, and goes on from there bit by bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from lada_ray.encoder import Encoder, EncoderSpec, load_encoder
from lada_ray.features.bank import FeatureBank
from lada_ray.features.text import read_text
from lada_ray.fit.classes import ClassImages, MemoryInit, Mixtures, read_memory, read_mixtures
from lada_ray.method.learner import Learnt, Seen, TaskData, TaskLearner
from lada_ray.method.settings import LadaSettings
from lada_ray.method.tuner import CausalTextTower

# Training state is written this often; at most this much work is repeated after a kill.
CHECKPOINT_EVERY_S = 10.0
MAX_FAILURES = 3


@dataclass(frozen=True)
class TaskPlan:
    """One task to learn, by reference: nothing here grows with the images' pixels or features."""

    position: int
    domain: str
    shas: tuple[str, ...]
    """Content hashes of the n training images."""
    labels: tuple[int, ...]
    """Class of each within the task."""
    views: tuple[str, ...]
    """Views to train on."""
    prompts: tuple[str, ...]
    """One per class."""
    epochs: int

    @property
    def images(self) -> ClassImages:
        """The training images grouped by class."""
        return ClassImages.of(self.shas, np.array(self.labels, np.int64))


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


@dataclass(frozen=True)
class Fitted:
    """What a task leaves behind, and what is worth knowing about how it went."""

    learnt: Learnt
    init: MemoryInit
    mixtures: Mixtures
    losses: list[float]
    """Mean loss per epoch."""
    started: float
    seconds: float


class Ledger(Protocol):
    """Where learnt tasks are committed. Called from training workers."""

    def packs(self) -> tuple[str, ...]:
        """Digests of the committed tasks' packs, in order."""

    def seen(self, packs: tuple[str, ...]) -> Seen:
        """State after these packs."""

    def commit(self, task: TaskPlan, fitted: Fitted, parent: str | None) -> str:
        """Commit the next task after `parent`; returns its digest. Raises LostLease if another process owns the run."""

    def save_checkpoint(self, data: bytes) -> None:
        """Keep the newest training state."""

    def load_checkpoint(self) -> bytes | None:
        """The newest training state, if any."""

    def progress(self, task: TaskPlan, step: int, steps: int) -> None:
        """Tell whoever watches; must be quick."""


def _alone(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Team:
    """The training workers that learn a task together, seen from one of them."""

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[torch.Tensor], Any] | None = None
    """Sums a tensor over all workers, in place."""
    agree: Callable[[Any], Any] = _alone
    """Gives every worker the first one's value: what they read from storage may change between their reads."""

    @property
    def chief(self) -> bool:
        """Whether this worker commits, saves and reports."""
        return self.rank == 0


@dataclass(frozen=True)
class TrainResources:
    """Ray Train's scaling: 0 workers trains inside the calling process."""

    workers: int
    cpus: float
    gpus: float


def fit_tasks(plan: FitPlan, ledger: Ledger, resources: TrainResources, storage: str, name: str) -> None:
    """Learn all tasks that are not committed yet; returns when they are.

    Args:
        plan: the tasks.
        ledger: knows what is learnt, and takes what is learnt next.
        resources: number and size of the training workers.
        storage: Ray Train's own folder (a local path, or s3://, gs://).
        name: of this Train run. A name must not be used twice: Ray would take the run for finished.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    path, filesystem = _train_storage(storage)
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"plan": plan, "ledger": ledger},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=_per_worker(resources),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()


def _per_worker(resources: TrainResources) -> dict[str, float]:
    gpus = {"GPU": resources.gpus} if resources.gpus > 0 else {}
    return {"CPU": resources.cpus, **gpus}


def _train_storage(storage: str) -> tuple[str, Any]:
    """Ray Train reads object stores through pyarrow, which needs a custom S3 endpoint spelled out."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), None)
    if not (storage.startswith("s3://") and endpoint):
        return storage, None
    from pyarrow.fs import S3FileSystem

    return storage.removeprefix("s3://"), S3FileSystem(
        endpoint_override=endpoint, allow_bucket_creation=False
    )


def _train_loop(config: dict[str, Any]) -> None:
    """Runs in every training worker."""
    import ray.train
    import ray.train.torch

    plan: FitPlan = config["plan"]
    torch.set_num_threads(plan.threads)
    context = ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    if team.size > 1:
        team = replace(team, all_reduce=torch.distributed.all_reduce, agree=_agree)
    learn_remaining(plan, config["ledger"], ray.train.torch.get_device(), team)


def _agree(value: Any) -> Any:
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def learn_remaining(
    plan: FitPlan, ledger: Ledger, device: torch.device | str, team: Team | None = None
) -> None:
    """Learn and commit the tasks that are not committed, in order; what a training worker does."""
    team = team or Team()
    encoder = _text_encoder(plan)
    tower = None if encoder is None else CausalTextTower(encoder.model)
    packs = team.agree(ledger.packs())
    seen, parent = ledger.seen(packs), packs[-1] if packs else None
    for task in plan.tasks[len(packs) :]:
        init = read_memory(plan.bank, task.images, plan.settings.memory_per_class)
        mixtures = read_mixtures(plan.bank, task.images, plan.settings.mixture_components)
        data = _task_data(plan, task, init, None if encoder is None else encoder.tokenize(task.prompts))
        settings = replace(plan.settings, epochs=task.epochs)
        shard = (team.rank, team.size)
        learner = TaskLearner(
            data, seen, tower, plan.tau, settings, plan.seed, device, shard, team.all_reduce
        )
        fitted = _fit(plan, task, learner, ledger, init, mixtures, team)
        if team.chief:
            parent = ledger.commit(task, fitted, parent)
        seen = extend(seen, fitted.learnt, init, mixtures)


def _text_encoder(plan: FitPlan) -> Encoder | None:
    """The encoder for its text tower; None where nothing tunes it."""
    if plan.settings.text_tuner == "none":
        return None
    encoder = load_encoder(plan.spec, "cpu")
    encoder.check(plan.bank.feature_key)
    return encoder


def _task_data(
    plan: FitPlan, task: TaskPlan, init: MemoryInit, tokens: npt.NDArray[np.int64] | None
) -> TaskData:
    return TaskData(
        position=task.position,
        views=plan.bank.fetch(task.shas, task.views),
        labels=np.array(task.labels, np.int64),
        memory=init.memory,
        mask=init.mask,
        text=read_text(plan.bank, task.prompts),
        tokens=tokens,
    )


def _fit(
    plan: FitPlan,
    task: TaskPlan,
    learner: TaskLearner,
    ledger: Ledger,
    init: MemoryInit,
    mixtures: Mixtures,
    team: Team,
) -> Fitted:
    """Step until done, going on from the newest checkpoint of this task and leaving one now and then."""
    started = time.time()
    losses = _resume(plan, task, learner, team.agree(ledger.load_checkpoint()))
    saved = shown = time.monotonic()
    while not learner.done:
        losses.append(learner.step())
        now = time.monotonic()
        if team.chief and now - shown > 0.5:
            ledger.progress(task, learner.steps_done, learner.total_steps)
            shown = now
        if team.chief and now - saved > CHECKPOINT_EVERY_S:
            ledger.save_checkpoint(_checkpoint(plan, task, learner, losses))
            saved = now
    per_epoch = [
        losses[i : i + learner.steps_per_epoch] for i in range(0, len(losses), learner.steps_per_epoch)
    ]
    means = [sum(part) / len(part) for part in per_epoch]
    return Fitted(learner.learnt(), init, mixtures, means, started, time.time() - started)


def _checkpoint(plan: FitPlan, task: TaskPlan, learner: TaskLearner, losses: list[float]) -> bytes:
    sink = io.BytesIO()
    torch.save({"of": checkpoint_key(plan, task), "losses": losses, "learner": learner.state_dict()}, sink)
    return sink.getvalue()


def _resume(plan: FitPlan, task: TaskPlan, learner: TaskLearner, data: bytes | None) -> list[float]:
    """Load a checkpoint into the learner, if it is of this very task; returns its losses."""
    if data is None:
        return []
    state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    if state["of"] != checkpoint_key(plan, task):
        return []
    learner.load_state_dict(state["learner"])
    return list(state["losses"])


def checkpoint_key(plan: FitPlan, task: TaskPlan) -> str:
    """Identifies what a training state belongs to: the task, everything before it, and the settings."""
    before = [asdict(t) for t in plan.tasks[: task.position + 1]]
    said = [before, asdict(plan.settings), plan.seed, plan.bank.store.uri]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def extend(seen: Seen, learnt: Learnt, init: MemoryInit, mixtures: Mixtures) -> Seen:
    """The state after one more task: its classes follow those seen."""
    memory, mask = _padded(seen, learnt.memory, init.mask)
    return Seen(
        text=np.concatenate([seen.text, learnt.text]),
        memory=memory,
        mask=mask,
        means=np.concatenate([seen.means, mixtures.means]),
        variances=np.concatenate([seen.variances, mixtures.variances]),
        weights=np.concatenate([seen.weights, mixtures.weights]),
        labels=np.concatenate([seen.labels, mixtures.labels + len(seen.text)]),
    )


def _padded(
    seen: Seen, memory: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Old and new memory with a common number of vectors per class."""
    length = max(seen.memory.shape[1], memory.shape[1])

    def pad(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        missing = length - array.shape[1]
        return np.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2))

    return np.concatenate([pad(seen.memory), pad(memory)]), np.concatenate([pad(seen.mask), pad(mask)])
