"""Nearest class mean (NCM): a rival without training, one prototype per seen class.

    prototype_j = mean of class j's unit training features, re-normalised;   logit_j(z) = z·prototype_j

It is gated by the zero-shot prediction as LADA is (`fusion.predict`): only where that is a seen class do the
prototypes decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor


class NearestMean:
    """Learns a task's class means, in closed form and without a memory of earlier tasks."""

    def learn(
        self, unit: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Absorb one task.

        Args:
            unit: unit features of the task's training images under the deterministic view, [n, d].
            labels: global class index of each, [n].
            classes: the number of seen classes, this task's included; not needed here.

        Returns:
            "prototypes" [c, d]: a row for each of the c distinct labels, new and repeated ones alike, in
            ascending order. A class that gets more data later has one prototype in each of its packs, the
            mean of that task's images alone.
        """
        means = [unit[labels == label].mean(0, dtype=np.float64) for label in np.unique(labels)]
        return {"prototypes": np.stack([mean / np.linalg.norm(mean) for mean in means]).astype(np.float32)}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What the next task needs besides the packs: nothing."""
        return {}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore `state`: there is nothing to restore."""


def prototype_logits(unit_features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines between unit features [N, d] and class prototypes [C, d]: [N, C]."""
    return unit_features @ prototypes.T
