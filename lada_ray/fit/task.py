"""LADA's tasks, learnt one after another in one Ray Train run.

A Train run costs seconds to start, so one serves all remaining tasks. After each, rank 0 commits what was learnt; a
restarted worker reads what is committed and the newest training state, and goes on from there bit by bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lada_ray.encoder import load_encoder
from lada_ray.features.text import read_text
from lada_ray.fit.classes import MemoryInit, Mixtures, read_memory, read_mixtures
from lada_ray.fit.plan import FitPlan, Fitted, Ledger, TaskPlan, Tensors
from lada_ray.method.learner import Learnt, Seen, TaskData, TaskLearner
from lada_ray.method.tuner import CausalTextTower

# Training state is written this often; at most this much work is repeated after a kill.
CHECKPOINT_EVERY_S = 10.0
MAX_FAILURES = 3
TRAIN_SETTINGS = {
    # How long Ray Train waits before it looks at its workers again, and so before it sees that they are done.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # An actor that tells workers of nodes about to go: they do not ask, as they leave checkpoints all the time.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


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
    trainer(partial(_train_loop, plan, ledger), resources, storage, name).fit()


def trainer(loop: Callable[[], None], resources: TrainResources, storage: str, name: str) -> Any:
    """Ray Train's trainer of `loop`, such that its controller starts without importing torch; the rest as `fit_tasks`.

    On few cores the controller's imports are seconds of a run: what the workers need travels inside the loop, which the
    controller does not open, and torch's process group is set up only where there is a group.
    """
    import ray.train

    for setting, value in TRAIN_SETTINGS.items():
        os.environ.setdefault(setting, value)
    path, filesystem = train_storage(storage)
    return _trainer_class(resources.workers)(
        loop,
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


def _trainer_class(workers: int) -> Any:
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return TorchTrainer if workers > 1 else DataParallelTrainer


def _per_worker(resources: TrainResources) -> dict[str, float]:
    gpus = {"GPU": resources.gpus} if resources.gpus > 0 else {}
    return {"CPU": resources.cpus, **gpus}


def train_storage(storage: str) -> tuple[str, Any]:
    """Path and file system for Ray, which reads object stores through pyarrow: a custom S3 endpoint is spelled out."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), None)
    if not (storage.startswith("s3://") and endpoint):
        return storage, None
    from pyarrow.fs import S3FileSystem

    return storage.removeprefix("s3://"), S3FileSystem(
        endpoint_override=endpoint, allow_bucket_creation=False
    )


def _train_loop(plan: FitPlan, ledger: Ledger) -> None:
    """Runs in every training worker."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(plan.threads)
    context = ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    if team.size > 1:
        team = replace(team, all_reduce=torch.distributed.all_reduce, agree=_agree)
    for _ in learn_tasks(plan, ledger, ray.train.torch.get_device(), team):
        pass


def _agree(value: Any) -> Any:
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


@dataclass(frozen=True)
class TextSide:
    """What of an encoder is trained with: its frozen text tower. The image tower is not kept."""

    tower: CausalTextTower
    tokenizer: Callable[[list[str]], torch.Tensor]


def load_text_side(plan: FitPlan) -> TextSide | None:
    """The text tower of the plan's encoder; None where nothing tunes it.

    Raises:
        IntegrityError: the weights are not those that the bank's features were made with.
    """
    if plan.settings.text_tuner == "none":
        return None
    encoder = load_encoder(plan.spec, "cpu")
    encoder.check(plan.bank.feature_key)
    return TextSide(CausalTextTower(encoder.model), encoder.tokenizer)


def learn_tasks(
    plan: FitPlan,
    ledger: Ledger,
    device: torch.device | str,
    team: Team | None = None,
    text: TextSide | None = None,
) -> Iterator[str]:
    """Learn and commit the tasks that are not committed, in order; what a training worker does.

    Args:
        plan: the tasks.
        ledger: knows what is learnt, and takes what is learnt next.
        device: where to train.
        team: the workers that learn together; None: this process alone.
        text: the text tower, where several streams share it; None: loaded here.

    Yields:
        The digest of each pack that was committed (of the newest one before, on workers that commit nothing).
    """
    team = team or Team()
    text = text or load_text_side(plan)
    packs = team.agree(ledger.packs())
    seen, parent = read_seen(plan, ledger, packs), packs[-1] if packs else None
    for task in plan.tasks[len(packs) :]:
        data = task_data(plan, task, text)
        settings = replace(plan.settings, epochs=task.epochs)
        shard = (team.rank, team.size)
        tower = None if text is None else text.tower
        learner = TaskLearner(
            data, seen, tower, plan.tau, settings, plan.seed, device, shard, team.all_reduce
        )
        fitted = _fit(plan, task, learner, ledger, team)
        if team.chief:
            parent = ledger.commit(task, fitted, parent)
        seen = extend(seen, (fitted.tensors, task.columns))
        yield parent or ""


def task_data(plan: FitPlan, task: TaskPlan, text: TextSide | None) -> TaskData:
    """What a task is learnt from, read from the bank; without `text`, nothing tokenised."""
    init = _read_init(plan, task)
    prompts = [prompt for part in task.parts for prompt in part.prompts]
    return TaskData(
        position=task.position,
        views=_views(plan, task),
        labels=task.labels,
        memory=init.memory,
        mask=init.mask,
        text=np.concatenate([read_text(plan.bank, part.prompts) for part in task.parts]),
        tokens=None if text is None else text.tokenizer(prompts).numpy(),
        columns=None if task.columns is None else np.array(task.columns, np.int64),
    )


def _views(plan: FitPlan, task: TaskPlan) -> npt.NDArray[np.float32]:
    """Features of the views to train on, [n, V, d]; a part with fewer views than another has each more often."""
    parts = [plan.bank.fetch(part.shas, part.views) for part in task.parts]
    most = max(part.shape[1] for part in parts)
    return np.concatenate([part[:, np.arange(most) % part.shape[1]] for part in parts])


def _read_init(plan: FitPlan, task: TaskPlan) -> MemoryInit:
    """The initial memory of all classes of a task."""
    parts = [read_memory(plan.bank, part.images, plan.settings.memory_per_class) for part in task.parts]
    return MemoryInit(*_stacked([(part.memory, part.mask) for part in parts]))


def _read_mixtures(plan: FitPlan, task: TaskPlan) -> Mixtures:
    """The mixtures of all classes of a task."""
    parts = [read_mixtures(plan.bank, part.images, plan.settings.mixture_components) for part in task.parts]
    starts = np.cumsum([0, *(len(part.prompts) for part in task.parts)])
    return Mixtures(
        means=np.concatenate([m.means for m in parts]),
        variances=np.concatenate([m.variances for m in parts]),
        weights=np.concatenate([m.weights for m in parts]),
        labels=np.concatenate([m.labels + start for m, start in zip(parts, starts, strict=False)]),
    )


def _fit(plan: FitPlan, task: TaskPlan, learner: TaskLearner, ledger: Ledger, team: Team) -> Fitted:
    """Step until done, going on from the newest checkpoint of this task and leaving one now and then."""
    started = time.time()
    losses = _resume(plan, task, learner, team.agree(ledger.load_checkpoint()))
    saved = shown = time.monotonic()
    if team.chief:
        ledger.progress(task, learner.steps_done, learner.total_steps)
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
    mixtures = _read_mixtures(plan, task)
    tensors = pack_tensors(learner.learnt(), learner.task.mask, mixtures, plan.settings.pack_precision)
    counts = {"mixture_components": len(mixtures.weights)}
    return Fitted(tensors, started, time.time() - started, means, counts)


def pack_tensors(
    learnt: Learnt, mask: npt.NDArray[np.bool_], mixtures: Mixtures, precision: str = "float32"
) -> Tensors:
    """What a pack keeps of a task of c classes with M mixture components.

    Returns:
        text [c, d], memory [c, L, d], mask [c, L] uint8, means [M, d], variances [M], weights [M], labels [M]; those
        with a width of d in this precision.
    """
    tensors = {
        "text": learnt.text,
        "memory": learnt.memory,
        "mask": mask.astype(np.uint8),
        **asdict(mixtures),
    }
    return {**tensors, **{name: tensors[name].astype(precision) for name in ("text", "memory", "means")}}


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
    before = [t.digest for t in plan.tasks[: task.position + 1]]
    said = [before, asdict(plan.settings), plan.seed, plan.bank.store.uri]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_seen(plan: FitPlan, ledger: Ledger, packs: Sequence[str]) -> Seen:
    """The state after these packs, which are those of the plan's first tasks."""
    learnt = [(ledger.tensors(digest), task.columns) for task, digest in zip(plan.tasks, packs, strict=False)]
    return extend(Seen.nothing(plan.bank.width), *learnt)


def extend(seen: Seen, *packs: tuple[Mapping[str, npt.NDArray[Any]], Sequence[int] | None]) -> Seen:
    """The state after more packs.

    Args:
        seen: the state before.
        packs: of each its tensors, and the index of each of its classes where some were seen before; None: they follow
            those seen.
    """
    before = total = len(seen.text)
    indices = []
    for pack, columns in packs:
        index = (
            np.arange(total, total + len(pack["text"])) if columns is None else np.array(columns, np.int64)
        )
        indices.append(index)
        total = max(total, index.max(initial=-1) + 1)
    tensors = [pack for pack, _ in packs]
    memory, mask = _stacked([(seen.memory, seen.mask), *((p["memory"], p["mask"]) for p in tensors)])
    owner = seen.owner
    if owner is not None or any(columns is not None for _, columns in packs):
        owner = np.concatenate([np.arange(before) if owner is None else owner, *indices])
    text = np.zeros((total, seen.text.shape[1]), np.float32)
    text[:before] = seen.text
    for pack, index in zip(tensors, indices, strict=True):
        text[index] = pack["text"]
    labels = (index[pack["labels"]] for pack, index in zip(tensors, indices, strict=True))
    return Seen(
        text=text,
        memory=memory,
        mask=mask,
        means=np.concatenate([seen.means, *(pack["means"] for pack in tensors)]),
        variances=np.concatenate([seen.variances, *(pack["variances"] for pack in tensors)]),
        weights=np.concatenate([seen.weights, *(pack["weights"] for pack in tensors)]),
        labels=np.concatenate([seen.labels, *labels]),
        owner=owner,
    )


def _stacked(
    groups: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[Any]]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Memory and mask of groups of classes with a common number of vectors per class."""
    length = max(memory.shape[1] for memory, _ in groups)

    def pad(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        missing = length - array.shape[1]
        return np.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2)) if missing else array

    memory = np.concatenate([pad(memory) for memory, _ in groups])
    return memory, np.concatenate([pad(mask.astype(np.bool_)) for _, mask in groups])
