"""Which components of older mixtures a step replays, when there are more of them than its budget of rows.

The published loss sums weight_i · CE_i over all M components. A step that draws component i with probability p_i and
counts it weight_i / p_i has the same loss on average (Horvitz and Thompson, 1952), whatever the p_i. The loss varies
least around it when p_i is proportional to the length of that row's gradient, which is weight_i times the length of its
softmax over the classes that are being learnt: a component far from all of them is hardly needed. Here this is taken at
the start of the task, at the component's mean, and mixed with a share for everybody, as the new classes move.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lada_ray.method import draws
from lada_ray.method.objective import Classifier, class_logits

Floats64 = npt.NDArray[np.float64]

# What every component gets beside its pull, as a share of the mean pull: bounds a drawn row's factor.
FLOOR = 0.3
# Components whose pull is computed at once: their classes' memory vectors are gathered.
PULLS = 1024


@torch.no_grad()
def pulls(
    unit_means: Tensor, labels: Tensor, old: Classifier, new: Classifier, scales: tuple[float, float, float]
) -> Tensor:
    """How strongly each component pulls at the new classes: the length of its softmax over them.

    Args:
        unit_means: [M, d].
        labels: old class of each component, [M].
        old: C old classes. Of them only a component's own one stands beside the new ones here, which is cheap.
        new: the classes to be learnt.
        scales: (τ, α, β).

    Returns:
        [M], in 0..1.
    """
    parts = [torch.zeros(0, device=unit_means.device)]
    blocks = _newest_blocks(old)
    for z, label in zip(unit_means.split(PULLS), labels.split(PULLS), strict=True):
        block = blocks[label]
        own = _own_logits(z, Classifier(old.text[label], old.memory[block], old.mask[block]), scales)
        logits = torch.cat([own[:, None], class_logits(z, new, *scales)], dim=1)
        parts.append(logits.softmax(1)[:, 1:].norm(dim=1))
    return torch.cat(parts)


def _newest_blocks(old: Classifier) -> Tensor:
    """The block of memory that stands for each class here, [C]: of several, the newest."""
    blocks = torch.arange(len(old.memory), device=old.text.device)
    if old.owner is None:
        return blocks
    newest = torch.zeros(len(old.text), dtype=torch.int64, device=old.text.device)
    return newest.scatter_reduce(0, old.owner, blocks, "amax")


def _own_logits(z: Tensor, own: Classifier, scales: tuple[float, float, float]) -> Tensor:
    """The logit [n] of one class for each row of z [n, d]: its text [n, d], memory [n, L, d] and mask [n, L]."""
    tau, alpha, beta = scales
    affinities = torch.exp(beta * (torch.einsum("nd,nld->nl", z, own.memory) - 1.0)) * own.mask
    return tau * (z * own.text).sum(1) + alpha * affinities.sum(1)


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
