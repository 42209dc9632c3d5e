"""Whether a batch of images looks like a domain that the model does not know.

Two signs, both from what the packs' calibration says (method/outliers.py): the share of images that lie outside of
what is known, one by one; and the shift of the batch as a whole, to one side of the known classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from lada_ray.method.outliers import SHIFTED, Residuals

EXPECTED = 0.05
"""Share of outliers among images of known domains: at most, pooled over six real ones; 1 % with plenty of training
images."""
MOST = 0.10
"""What it does not exceed in any known domain."""
CHANCE = 0.01
"""A share above `MOST` counts if it is less likely to come by chance."""

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Drift:
    """The drift figures of a batch."""

    images: int
    outliers: int
    shift: float | None
    """See `Residuals.shift`; None if there are too few images to say."""
    shifted: bool
    """Whether the shift says that the domain is new or changed."""

    @classmethod
    def of(cls, residuals: Residuals, outliers: int) -> Drift:
        """The figures of a batch with these sums and so many outliers."""
        shift = residuals.shift
        return cls(residuals.images, outliers, None if np.isnan(shift) else shift, residuals.shifted)

    @property
    def share(self) -> float:
        """Of outliers among all images."""
        return self.outliers / self.images if self.images else 0.0

    @property
    def outlying(self) -> bool:
        """Whether there are more outliers than in any known domain, and not by chance."""
        return bool(binom.sf(self.outliers - 1, self.images, MOST) < CHANCE)

    @property
    def new(self) -> bool:
        """Whether the batch looks like a new domain."""
        return self.outlying or self.shifted

    def to_json(self) -> dict[str, Any]:
        """For the summary."""
        return {
            **asdict(self),
            "share": self.share,
            "expected": EXPECTED,
            "outlying": self.outlying,
            "new": self.new,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Drift:
        """Read what `to_json` wrote."""
        return cls(said["images"], said["outliers"], said["shift"], said["shifted"])

    @property
    def words(self) -> list[str]:
        """What the figures mean, a line for each."""
        lines = [
            f"{100 * self.share:.1f} % of {self.images} images lie outside what the model knows "
            f"(up to {100 * EXPECTED:g} % expected)"
        ]
        if self.shifted and self.shift is not None:
            lines.append(
                f"the batch as a whole lies to one side of the known classes (shift {self.shift:.2f}; "
                f"{SHIFTED:g} at most in known domains)"
            )
        if self.new:
            lines.append("this looks like a new domain, or a known one that has changed")
        return lines


def nothing(packs: Sequence[Tensors]) -> Residuals:
    """The sums of no images, to be judged by these packs."""
    means = [pack["outlier_means"] for pack in packs]
    width = means[0].shape[1] if means else 0
    counts = tuple(np.zeros(len(rows), np.int64) for rows in means)
    return Residuals(np.zeros((len(means), width)), np.zeros(len(means)), counts)


def residuals_to_json(residuals: Residuals) -> dict[str, Any]:
    """Sums as plain values, without the packs that no image is nearest to."""
    return {
        str(pack): [total.tolist(), float(square), count.tolist()]
        for pack, (total, square, count) in enumerate(
            zip(residuals.totals, residuals.squares, residuals.counts, strict=True)
        )
        if count.any()
    }


def residuals_from_json(said: Mapping[str, Any], packs: Sequence[Tensors]) -> Residuals:
    """Read what `residuals_to_json` wrote; both are exact.

    Args:
        said: its result.
        packs: the tensors that judged.
    """
    sums = nothing(packs)
    for pack, (total, square, count) in said.items():
        sums.totals[int(pack)], sums.squares[int(pack)] = total, square
        sums.counts[int(pack)][:] = count
    return sums
