"""Which components of older mixtures a step replays, when there are more of them than its budget of rows.

The published loss sums weight_i · CE_i over all M components. A step that draws component i with probability p_i and
counts it weight_i / p_i has the same loss on average (Horvitz and Thompson, 1952), whatever the p_i. They are
proportional to the mixture weights here, so that every drawn row counts the same, and are met exactly by systematic
sampling in the order of the labels: each class is drawn about as often as its share of the budget, none twice where
another could be drawn instead.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lada_ray.method import draws

Floats64 = npt.NDArray[np.float64]


def inclusion(weights: npt.NDArray[np.floating], rows: int) -> Floats64:
    """The probability of each component to be among the rows of a step: proportional to its weight, at most 1.

    Args:
        weights: mixture weights π, [M], positive.
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
    """The components that each step of a task replays.

    Args:
        weights: mixture weights π of all components, [M].
        rows: largest number of rows per step; None: all components at every step.
        seed: of the run.
        task: number of tasks learnt before.
    """

    def __init__(self, weights: npt.NDArray[np.floating], rows: int | None, seed: int, task: int) -> None:
        self.components, self.position = len(weights), (seed, task)
        self.complete = rows is None or rows >= len(weights)
        self.probability = np.ones(len(weights)) if self.complete else inclusion(weights, rows or 0)
        self.rows = round(self.probability.sum())
        self._ends = np.cumsum(self.probability)

    def draw(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The components of a step, [rows], and what each counts more than if all were replayed, [rows]."""
        if self.complete:
            return np.arange(self.components), np.ones(self.components, np.float32)
        points = draws.replay_start(*self.position, step) + np.arange(self.rows)
        drawn = np.searchsorted(self._ends, points, side="right").clip(max=self.components - 1)
        return drawn, (1 / self.probability[drawn]).astype(np.float32)
