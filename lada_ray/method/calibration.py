"""How sure a prediction is: the softmax on the chosen side of the gate, at a temperature of that side's own.

    seen      softmax((text_j + α memory_j) / T_seen)  over seen classes
    unseen    softmax(text_j / T_unseen)               over unseen classes

Both are fitted when a task is learnt, by maximum likelihood on its training images (Guo et al., ICML 2017), as far as
the logits have not learnt these very images:

- An unseen class's logits come from CLIP's own text features, which have seen none of them. The images that the gate
  would have sent to the task's classes, had these been unseen, tell T_unseen.
- Trained memory has seen all of them, and would be too sure. So memory is trained anew on the other folds, beside the
  text features that the task ends with. Training the text tuner anew as well gave the same T_seen to 1 % (six domains,
  two settings), in three times the time.

A pack keeps its two temperatures and how many images they come from; a model takes their geometric mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from lada_ray.method.learner import Learnt, Seen, TaskData, TaskLearner
from lada_ray.method.memory import init_memories, stack_memory
from lada_ray.method.objective import Classifier, class_logits
from lada_ray.method.settings import LadaSettings
from lada_ray.method.tuner import CausalTextTower

FOLDS = 4
"""Folds of the training images to give to `seen_temperature`."""
ENOUGH = 40
"""Images left out that tell a temperature well enough, as packs share theirs: folds beyond them are not trained. All
folds of 16 images per class gave the same T_seen to 4 % (six domains), in nearly three times the time."""
REPLAYED = 64
"""Rows replayed at most in a step of a fold's training, which meets older classes with their memory at its mean. All
rows and all memory gave the same T_seen to 0.4 % on six domains (296 components), and to 1.3 % among 1 000 made-up
classes (3 600 components), in 25 times the time."""
MOST = 1000
"""Images of a fold that are judged at most."""
BINS = 15
"""Of `calibration_error`."""

# Temperatures lie between e^-5 and e^5.
LOG_BOUND = 5.0
PRIOR = 0.05
# Fewer images at the gate than this tell less than all images of the task do.
MIN_GATED = 32
# Images of a class that its memory starts from in a fold: k-means takes time, and training goes on from there.
MAX_INIT = 256

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class Temperature(NamedTuple):
    """A temperature, and the number of images that it was fitted to."""

    value: float
    images: int


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """The temperature of the highest likelihood.

    Args:
        logits: [N, C].
        labels: [N].

    Returns:
        The T that minimises Σ CE(logits / T, labels) + 0.05 (log T)². The second term is too small to matter but where
        all images are recognised, or there are none (T = 1), and keeps T finite there.
    """

    def cost(log_t: float) -> float:
        nll = F.cross_entropy(logits.double() * np.exp(-log_t), labels, reduction="sum").item()
        return nll + PRIOR * log_t**2

    if len(labels) == 0:
        return Temperature(1.0, 0)
    found = minimize_scalar(cost, bounds=(-LOG_BOUND, LOG_BOUND), method="bounded")
    return Temperature(float(np.exp(found.x)), len(labels))


def shared_temperature(parts: Sequence[Temperature]) -> float:
    """The geometric mean of several packs' temperatures, weighted by their images; 1 where there are none."""
    images = sum(part.images for part in parts)
    return float(np.exp(sum(part.images * np.log(part.value) for part in parts) / max(images, 1)))


def unseen_temperature(
    features: Floats, labels: Indices, text: Floats, seen_text: Floats, tau: float
) -> Temperature:
    """T_unseen, from images of classes just before they are learnt.

    Args:
        features: raw or unit features of the task's training images under the deterministic view, [n, d].
        labels: class of each within the task, [n].
        text: CLIP's own text features of the task's c classes, [c, d].
        seen_text: text features of the classes learnt before, as their tasks left them, [C, d]; C may be 0.
        tau: τ.

    Returns:
        Fitted to the images whose largest text logit is of one of the c classes; to all where these are few.
    """
    unit, own, old = _unit(features), _unit(text), _unit(seen_text)
    logits, target = tau * unit @ own.T, torch.as_tensor(labels)
    if len(old):
        gated = logits.amax(dim=1) > (tau * unit @ old.T).amax(dim=1)
        if int(gated.sum()) >= MIN_GATED:
            logits, target = logits[gated], target[gated]
    return fit_temperature(logits, target)


def seen_temperature(
    task: TaskData,
    features: Floats,
    learnt: Learnt,
    seen: Seen,
    tau: float,
    settings: LadaSettings,
    seed: int,
    folds: npt.NDArray[np.integer],
    tower: CausalTextTower | None = None,
    device: str | torch.device = "cpu",
) -> Temperature:
    """T_seen, from images left out of the training of the memory that judges them.

    Args:
        task: what the task was learnt from.
        features: raw or unit features of its n images under the deterministic view, [n, d].
        learnt: what it left behind; its text features are taken as they are.
        seen: what earlier tasks left behind.
        tau: τ.
        settings: as the task was learnt, its epochs included; `REPLAYED` rows are replayed at most.
        seed: of the run.
        folds: which fold each image is left out with, [n]; -1 never. A class keeps an image whatever fold is left out.
        tower: if given, the text tuner is trained anew in each fold, as well. With alpha 0 nothing is left out without.
        device: where to train.

    Returns:
        Fitted to logits over all seen classes, the task's included; T = 1 of no image where none can be left out.
    """
    settings = replace(settings, replay_rows=min(settings.replay_rows or REPLAYED, REPLAYED))
    if tower is None:
        task = replace(task, text=learnt.text, tokens=None)
        settings = replace(settings, text_tuner="none")
    logits, labels = [], []
    for out in _splits(folds):
        keep = np.ones(len(folds), np.bool_)
        keep[out] = False
        fold = _without(task, features, keep)
        again = TaskLearner(fold, seen, tower, tau, settings, seed, device)
        again.old = again.old.at_mean_memory()
        while not again.done:
            again.step()
        judged = _some(out, MOST)
        scales = (tau, settings.alpha, settings.beta)
        logits.append(_logits(features[judged], seen, again.learnt(), fold.mask, scales))
        labels.append(task.labels[judged] + len(seen.text))
    if not labels:
        return Temperature(1.0, 0)
    return fit_temperature(torch.cat(logits), torch.as_tensor(np.concatenate(labels)))


def probabilities(
    logits: Tensor, on_seen: Tensor | None, seen: int, temperatures: tuple[float, float]
) -> Tensor:
    """How sure each class is, among those on the image's side of the gate.

    Args:
        logits: text_j + α memory_j of seen classes, then text_j of unseen ones, [N, C + U].
        on_seen: whether the gate says that an image is of a seen class, [N] boolean; None without a gate (additive
            fusion), where all classes compete at T_seen.
        seen: C.
        temperatures: T_seen, T_unseen.

    Returns:
        [N, C + U]; rows sum to one, and are zero on the other side of the gate.
    """
    if on_seen is None:
        return (logits.double() / temperatures[0]).softmax(dim=1).float()
    is_seen = torch.arange(logits.shape[1], device=logits.device) < seen
    scale = torch.where(on_seen, temperatures[0], temperatures[1])
    other_side = is_seen[None, :] != on_seen[:, None]
    scaled = (logits.double() / scale[:, None]).masked_fill(other_side, -torch.inf)
    return scaled.softmax(dim=1).float()


def calibration_error(scores: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error, in 0..1: mean |accuracy - mean score| over 15 equal bins of the score.

    Args:
        scores: of the predicted classes, in 0..1, [N], N >= 1.
        correct: whether each prediction is right, [N].
    """
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=correct.astype(np.float64) - scores, minlength=BINS)
    return float(np.abs(gaps).sum() / len(scores))


def _splits(folds: npt.NDArray[np.integer]) -> Iterator[Indices]:
    """The images of fold after fold, until there are `ENOUGH`."""
    found = 0
    for fold in np.unique(folds[folds >= 0]):
        if found >= ENOUGH:
            return
        yield np.flatnonzero(folds == fold)
        found += int((folds == fold).sum())


def _without(task: TaskData, features: Floats, keep: npt.NDArray[np.bool_]) -> TaskData:
    """The task as it would be with these images alone, [n] boolean."""
    unit, length = _unit(features).numpy(), task.memory.shape[1]
    groups = [_some(unit[keep & (task.labels == label)], MAX_INIT) for label in range(len(task.text))]
    memory, mask = stack_memory(init_memories(groups, length))
    return replace(task, views=task.views[keep], labels=task.labels[keep], memory=memory, mask=mask)


def _some(rows: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """At most so many of the rows, evenly spread."""
    return rows[:: max(1, -(-len(rows) // most))]


@torch.no_grad()
def _logits(
    features: Floats,
    seen: Seen,
    learnt: Learnt,
    mask: npt.NDArray[np.bool_],
    scales: tuple[float, float, float],
) -> Tensor:
    """logit_j over earlier classes, then over those learnt last, [N, C + c]."""
    unit = _unit(features)
    old = Classifier(_unit(seen.text), torch.tensor(seen.memory), torch.tensor(seen.mask))
    new = Classifier(_unit(learnt.text), torch.tensor(learnt.memory), torch.tensor(mask))
    return torch.cat([class_logits(unit, part, *scales) for part in (old, new)], dim=1)


def _unit(rows: Floats) -> Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)
