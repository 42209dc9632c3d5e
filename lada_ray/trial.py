"""One trial of a sweep: the stream learnt on folds of its training images, and judged on those left out.

No test image is touched: the domains that a sweep hands out have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lada_ray.config import StreamConfig
from lada_ray.encoder.clip import device_for
from lada_ray.evaluate import Row, load_tests, score_packs
from lada_ray.features.fill import Images
from lada_ray.features.folds import assign_folds
from lada_ray.fit.classes import fit_classes_here
from lada_ray.fit.learners import learn_remaining
from lada_ray.fit.plan import Fitted, TaskPlan, Tensors
from lada_ray.fit.task import TextSide, load_text_side
from lada_ray.method.fusion import Fusion
from lada_ray.metrics import stream_metrics
from lada_ray.pack import TaskPack
from lada_ray.prepare import Stream, pack_identities, plan_evaluation, plan_fit, plan_tasks
from lada_ray.run import Json

METRICS = ("transfer", "average", "last")


@dataclass(frozen=True)
class Search:
    """What all trials of a sweep share."""

    stream: Stream
    """The stream as configured, without test images."""
    folds: tuple[Images, ...]
    """Per fold the images to learn, and as `test` those to judge by."""
    metric: str
    """transfer, average, last or balanced, their mean."""
    threads: int
    gpus: float = 0.0
    """Share of a GPU that each trial reserves."""

    @property
    def tasks(self) -> int:
        """Number of tasks of a trial."""
        return len(self.stream.tasks)


def make_folds(images: Images, folds: int, held_out: int, seed: int) -> tuple[Images, ...]:
    """Split the training images of all domains, class by class.

    Args:
        images: of the whole stream; their test images are not looked at.
        folds: parts of each class.
        held_out: how many of the parts are left out, each in a fold of its own.
        seed: of the split.
    """
    starts = np.cumsum([0, *(len(s.domain.class_names) for s in images.selections)])
    labels = [s.train_labels + start for s, start in zip(images.selections, starts, strict=False)]
    shas = [sha for s in images.selections for sha in images.shas(s.train)]
    fold_of = assign_folds(np.concatenate(labels), shas, folds, seed)
    parts = np.split(fold_of, np.cumsum([len(s.train) for s in images.selections])[:-1])
    return tuple(_fold(images, parts, fold) for fold in range(held_out))


def _fold(images: Images, parts: Sequence[npt.NDArray[np.int64]], fold: int) -> Images:
    selections = [
        replace(
            s,
            train=tuple(x for x, f in zip(s.train, part, strict=True) if f != fold),
            test=tuple(x for x, f in zip(s.train, part, strict=True) if f == fold),
        )
        for s, part in zip(images.selections, parts, strict=True)
    ]
    return replace(images, selections=selections)


def changed(config: StreamConfig, values: Mapping[str, Any]) -> StreamConfig:
    """The configuration with a trial's values."""
    method = {key.removeprefix("method."): v for key, v in values.items() if key.startswith("method.")}
    rest = {key: v for key, v in values.items() if not key.startswith("method.")}
    return config.model_copy(update={**rest, "method": config.method.model_copy(update=method)})


def learn_trial(search: Search, values: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Learn the stream with these values, all folds side by side, a task at a time.

    Args:
        search: the stream, its folds and the metric.
        values: of the searched parameters, by dotted key.

    Yields:
        After each task `score` (the sweep's metric) and transfer, average and last, in %, of the folds' mean matrix.
    """
    for (scored,) in learn_siblings(search, [values]):
        yield scored


def learn_siblings(search: Search, siblings: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, float]]]:
    """The same for values that differ in `method.fusion` alone, which acts on predictions: learnt once, scored each.

    Yields:
        After each task the scores of each.
    """
    configs = [changed(search.stream.config, values) for values in siblings]
    stream = replace(search.stream, config=configs[0])
    fusions = [config.method.fusion for config in configs]
    text = load_text_side(plan_fit(stream, ()))
    folds = [_learn_fold(stream, images, search, fusions, text) for images in search.folds]
    matrices: list[dict[str, dict[str, float]]] = [{} for _ in siblings]
    for rows in zip(*folds, strict=True):
        for i, matrix in enumerate(matrices):
            mine = [row[i] for row in rows]
            matrix[mine[0].learnt] = mean_accuracy(mine)
        yield [scores(pd.DataFrame.from_dict(matrix, orient="index"), search.metric) for matrix in matrices]


def mean_accuracy(rows: Sequence[Row]) -> dict[str, float]:
    """In %, by domain: the mean over the folds that leave out images of it. One of few images may lack some."""
    judged = {d: [row for row in rows if sum(row.total[d])] for d in rows[0].total}
    return {
        d: float(np.mean([100 * sum(row.correct[d]) / sum(row.total[d]) for row in some]))
        for d, some in judged.items()
    }


def scores(accuracy: pd.DataFrame, metric: str) -> dict[str, float]:
    """What a matrix of mean accuracies comes to: transfer, average, last, and the score.

    The score is one of them, or as "balanced" the mean of those that are defined.
    """
    found = stream_metrics(accuracy).means()
    means = {name: float(found[name]) for name in METRICS}
    defined = [value for value in means.values() if np.isfinite(value)]
    score = float(np.mean(defined)) if metric == "balanced" else means[metric]
    return {"score": score, **means}


def _learn_fold(
    stream: Stream, images: Images, search: Search, fusions: Sequence[Fusion], text: TextSide | None
) -> Iterator[list[Row]]:
    """Learn one fold, a row of its matrix (one for each fusion) at a time."""
    images = images.with_views(stream.choice.views)
    plan = replace(plan_fit(stream, plan_tasks(stream, images)), threads=search.threads)
    settings, parts = plan.settings, [part.images for task in plan.tasks for part in task.parts]
    fit_classes_here(plan.bank, parts, settings.memory_per_class, settings.mixture_components)
    evaluation = plan_evaluation(stream, images, "")
    tested = [replace(evaluation, prediction=replace(evaluation.prediction, fusion=f)) for f in fusions]
    features, ledger = load_tests(evaluation), PacksInMemory(pack_identities(stream, images))
    learning = learn_remaining(plan, ledger, device_for(search.gpus), text)
    for task, _ in zip(plan.tasks, learning, strict=True):
        yield [score_packs(one, ledger.learnt, task.name, features) for one in tested]


class PacksInMemory:
    """The `fit.plan.Ledger` of a trial: it leaves nothing behind but its scores.

    Args:
        identities: of every task's pack, in order.
    """

    def __init__(self, identities: Sequence[Json]) -> None:
        self.identities = identities
        self.learnt: list[TaskPack] = []

    def packs(self) -> tuple[str, ...]:
        """See Ledger."""
        return tuple(pack.digest for pack in self.learnt)

    def tensors(self, digest: str) -> Tensors:
        """See Ledger."""
        return next(dict(pack.tensors) for pack in self.learnt if pack.digest == digest)

    def commit(self, task: TaskPlan, fitted: Fitted, parent: str | None) -> str:
        """See Ledger."""
        self.learnt.append(TaskPack.build(self.identities[task.position], parent, fitted.tensors))
        return self.learnt[-1].digest

    def save_checkpoint(self, data: bytes) -> None:
        """See Ledger: a trial that is killed is made again."""

    def load_checkpoint(self) -> bytes | None:
        """See Ledger."""
        return None

    def save_state(self, pack: str, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See Ledger."""

    def load_state(self, pack: str) -> Mapping[str, npt.NDArray[Any]] | None:
        """See Ledger."""
        return None

    def progress(self, task: TaskPlan, step: int, steps: int) -> None:
        """See Ledger."""
