"""Calibrate packs that are learnt: temperatures of their scores, and what tells outliers (calibration.py).

A Ray task per pack: a pack's calibration needs its own training images' deterministic features from the
bank, and the packs before it. No image is encoded, and no text tower is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lada_ray.calibration import NO_TEMPERATURE, PackCalibration, calibration_key
from lada_ray.cluster import TASK_CPUS, result
from lada_ray.config import TRAINED
from lada_ray.features.folds import assign_folds
from lada_ray.features.text import read_text
from lada_ray.fit.classes import fit_classes_here
from lada_ray.fit.plan import FitPlan, TaskPlan
from lada_ray.fit.task import extend, task_data
from lada_ray.method import calibration, outliers
from lada_ray.method.calibration import Temperature, seen_temperature, unseen_temperature
from lada_ray.method.learner import Learnt, Seen
from lada_ray.model import cached_pack
from lada_ray.pack import TaskPack
from lada_ray.store import open_store
from lada_ray.views import TEST_VIEW

FOLD_SEED = 42
"""Like k-means and mixtures: the folds of a task do not depend on the run's seed."""
POLL_S = 0.25
Floats = npt.NDArray[np.float32]


class Calibrator:
    """Makes the calibration that is missing of a plan's packs, beside whatever else the cluster does.

    What is begun at once is done in parallel.

    Args:
        plan: the tasks to calibrate, as they were learnt; may be the last ones of a model alone.
        model_uri: the model's folder.
    """

    def __init__(self, plan: FitPlan, model_uri: str) -> None:
        self.plan, self.model_uri = plan, model_uri
        self._waiting = list(plan.tasks)
        self._begun: list[Any] = []

    def begin(self, packs: Sequence[str], soon: bool = False) -> None:
        """Begin with what is learnt by now.

        Args:
            packs: digests of all the model's packs, in order: that of a task is at its position.
            soon: a worker that has nothing to calibrate yet imports what it will need.
        """
        import ray

        store, run = open_store(self.model_uri), ray.remote(num_cpus=TASK_CPUS)(_calibrate_and_write)
        learnt = [task for task in self._waiting if task.position < len(packs)]
        self._waiting = [task for task in self._waiting if task.position >= len(packs)]
        for task in learnt:
            if not store.exists(calibration_key(packs[task.position])):
                self._begun.append(run.remote(self._shipped, task, self.model_uri, tuple(packs)))
        if soon and not packs and self.plan.kind in TRAINED:
            self._begun.append(ray.remote(num_cpus=TASK_CPUS)(_import_ahead).remote())

    @cached_property
    def _shipped(self) -> Any:
        import ray

        return ray.put(self.plan)

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Cancel what is still to be made if the block ends with an error: the model may be another process's now."""
        import ray

        if kind is not None:
            for reference in self._begun:
                ray.cancel(reference)

    def wait(self, progress: Callable[[int, int], None]) -> None:
        """Wait for all that was begun; `progress` is called now and then with (packs done, packs to do)."""
        import ray

        total = len(self._begun)
        while self._begun:
            ready, self._begun = ray.wait(self._begun, timeout=POLL_S)
            for reference in ready:
                result(reference)
            progress(total - len(self._begun), total)


def calibrate(
    plan: FitPlan, model_uri: str, packs: Sequence[str], progress: Callable[[int, int], None]
) -> None:
    """Make the calibration that is missing of a plan's packs, and wait for it; arguments as of `Calibrator`."""
    with Calibrator(plan, model_uri) as calibrator:
        calibrator.begin(packs)
        calibrator.wait(progress)


def _import_ahead() -> None:
    import torch._dynamo  # noqa: F401 (torch's first optimiser imports it, and takes a second for it)


def _calibrate_and_write(plan: FitPlan, task: TaskPlan, model_uri: str, packs: Sequence[str]) -> None:
    if plan.kind in TRAINED:
        # Memory that is trained on folds starts from them; those of older packs may have been made by older code.
        m = plan.settings
        images = [part.images for part in task.parts]
        fit_classes_here(plan.bank, images, m.memory_per_class, m.mixture_components)
    made = calibrate_pack(plan, task, model_uri, packs)
    open_store(model_uri).write(calibration_key(packs[task.position]), made.to_bytes())


def calibrate_pack(plan: FitPlan, task: TaskPlan, model_uri: str, packs: Sequence[str]) -> PackCalibration:
    """The calibration of one task's pack.

    LADA and joint training have both temperatures. Nearest mean has that of its unseen side, zero-shot CLIP's one for
    both, as all its logits are CLIP's own. RAIL's scores are no softmax: it has none. Outliers do not depend on the
    learner.

    Args:
        plan: how it was learnt.
        task: which; the other arguments as of `Calibrator`.
        model_uri: see there.
        packs: see there.
    """
    features = plan.bank.fetch(task.shas, [TEST_VIEW])[:, 0]
    found = outliers.fit_outliers(features, task.labels, _folds(task, outliers.FOLDS))
    if plan.kind.startswith("rail"):
        return PackCalibration(found)
    *earlier, own = (cached_pack(model_uri, digest) for digest in packs[: task.position + 1])
    unseen = _unseen_temperature(plan, task, features, earlier, own)
    if plan.kind in TRAINED:
        return PackCalibration(found, _seen_temperature(plan, task, features, earlier, own), unseen)
    return PackCalibration(found, unseen if plan.kind == "zero_shot" else NO_TEMPERATURE, unseen)


def _unseen_temperature(
    plan: FitPlan, task: TaskPlan, features: Floats, earlier: Sequence[TaskPack], own: TaskPack
) -> Temperature:
    text = np.concatenate([read_text(plan.bank, part.prompts) for part in task.parts])
    before = np.concatenate(
        [np.zeros((0, plan.bank.width), np.float32), *(p.tensors["text"] for p in earlier)]
    )
    return unseen_temperature(features, task.labels, text, before[_others(earlier, own)], plan.tau)


def _seen_temperature(
    plan: FitPlan, task: TaskPlan, features: Floats, earlier: Sequence[TaskPack], own: TaskPack
) -> Temperature:
    seen = extend(Seen.nothing(plan.bank.width), *((pack.tensors, None) for pack in earlier))
    seen = only(seen, _others(earlier, own))
    # Labels that it extends are left out of `seen`: here, all of its classes are new.
    data = replace(task_data(plan, task, None), columns=None)
    # A pack may keep half precision.
    left = Learnt(*(own.tensors[name].astype(np.float32) for name in ("text", "memory")))
    settings, folds = replace(plan.settings, epochs=task.epochs), _folds(task, calibration.FOLDS)
    return seen_temperature(data, features, left, seen, plan.tau, settings, plan.seed, folds)


def _folds(task: TaskPlan, folds: int) -> npt.NDArray[np.int64]:
    return assign_folds(task.labels, task.shas, folds, FOLD_SEED)


def _others(earlier: Sequence[TaskPack], own: TaskPack) -> npt.NDArray[np.bool_]:
    """Which rows of earlier packs are not of labels that this one extends, [C]: those would compete with it."""
    extended = set(own.labels)
    return np.array([label not in extended for pack in earlier for label in pack.labels], np.bool_)


def only(seen: Seen, keep: npt.NDArray[np.bool_]) -> Seen:
    """The state without some of its classes, [C] boolean."""
    if keep.all():
        return seen  # of many classes, a copy takes longer than a step of training
    components = keep[seen.labels]
    return Seen(
        text=seen.text[keep],
        memory=seen.memory[keep],
        mask=seen.mask[keep],
        means=seen.means[components],
        variances=seen.variances[components],
        weights=seen.weights[components],
        labels=(np.cumsum(keep) - 1)[seen.labels[components]],
    )
