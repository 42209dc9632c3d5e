"""Which components of older mixtures a step replays, when there are more of them than its budget of rows.

The published loss sums weight_i · CE_i over all M components. A step that draws component i with probability p_i and
counts it weight_i / p_i has the same loss on average (Horvitz and Thompson, 1952), whatever the p_i. The loss varies
least around it when p_i is proportional to the length of that row's gradient, which is weight_i times the length of its
softmax over the classes that are being learnt (less one at its own): a component far from all of them, or well inside
its own class, is hardly needed. Here this is taken at the start of the task, at the component's mean, and mixed with a
share for everybody, as the new classes move.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lada_ray.method import draws
from lada_ray.method.objective import Classifier, task_logits

Floats64 = npt.NDArray[np.float64]

# What every component gets beside its pull, as a share of the mean pull: bounds a drawn row's factor.
FLOOR = 0.3
# Components whose pull is computed at once, each with a logit for every class.
PULLS = 1024


@torch.no_grad()
def pulls(
    unit_means: Tensor,
    labels: Tensor,
    old: Classifier,
    new: Classifier,
    scales: tuple[float, float, float],
    columns: Tensor | None = None,
) -> Tensor:
    """How strongly each component pulls at the task's classes: the length of its loss's gradient in their logits.

    Args:
        unit_means: [M, d].
        labels: class of each component, [M].
        old: the frozen classes; taken with their memory at its mean, in λ1 times fewer products.
        new: the task's classes.
        scales: (τ, α, β).
        columns: as of `task_logits`.

    Returns:
        [M], in 0..√2.
    """
    parts = [torch.zeros(0, device=unit_means.device)]
    standing = old.at_mean_memory()
    added = len(old.text) + torch.arange(len(new.text), device=unit_means.device)
    own = added if columns is None else columns
    for z, label in zip(unit_means.split(PULLS), labels.split(PULLS), strict=True):
        share = task_logits(z, standing, new, scales, columns).softmax(1)[:, own]
        parts.append((share - (label[:, None] == own).to(share.dtype)).norm(dim=1))
    return torch.cat(parts)


def importance(weights: npt.NDArray[np.floating], pull: npt.NDArray[np.floating]) -> Floats64:
    """What a component's probability is proportional to, from its mixture weight and its pull, [M] each."""
    pull = pull.astype(np.float64)
    return weights * (pull + FLOOR * pull.mean() + np.finfo(np.float32).tiny)


def inclusion(weights: npt.NDArray[np.floating], rows: int) -> Floats64:
    """The probability of each component to be among the rows of a step: proportional to its weight, at most 1.

    Args:
        weights: importance of each component, [M], positive.
        rows: of a step, fewer than M.

    Returns:
        [M], summing to `rows`. What the components that are always drawn leave over is shared by the others.
    """
    share = weights.astype(np.float64)
    certain = np.zeros(len(share), np.bool_)
    while True:
        rest = np.where(certain, 0.0, share)
        probability = np.where(certain, 1.0, rest * (rows - certain.sum()) / rest.sum())
        if not (probability > 1).any():
            return probability
        certain |= probability > 1


class ReplayRows:
    """The components that each step of a task replays, fewer than there are.

    Systematic sampling in the order of the labels meets the probabilities exactly, and draws none twice.

    Args:
        importance: of all components, [M], positive.
        rows: per step, fewer than M.
        seed: of the run.
        task: number of tasks learnt before.
    """

    def __init__(self, importance: npt.NDArray[np.floating], rows: int, seed: int, task: int) -> None:
        self.rows, self.position = rows, (seed, task)
        self.probability = inclusion(importance, rows)
        self._ends = np.cumsum(self.probability)

    def draw(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The components of a step, [rows], and how much more each counts than if all were replayed, [rows]."""
        points = draws.replay_start(*self.position, step) + np.arange(self.rows)
        drawn = np.searchsorted(self._ends, points, side="right").clip(max=len(self._ends) - 1)
        return drawn, (1 / self.probability[drawn]).astype(np.float32)
