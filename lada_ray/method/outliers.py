"""Which images lie outside what the packs know, one by one, and whether a batch of them does as a whole.

Every task leaves three small tensors of its training images' unit features z: the class means m, the directions D in
which images of one class differ most, and how far images that were left out of a fit lay from the nearest mean.

    a = z - DᵀDz,  b = m - DᵀDm          what varies within classes anyway counts for less
    distance(z, m) = ½ (1 - cos(a, b)) + ¼ |a - b|²

D comes from the pooled covariance S within classes, shrunk towards its mean variance v as (1 - λ)S + λvI: I - DᵀD
whitens the leading eigenvectors of that, relative to λv, and leaves the rest as it is. Either half of the distance
alone misses some domains: the angle digits, the length sketches. Distances of different packs compare, since a and b
have length at most one in all of them: an image belongs to the pack of its nearest mean, and is judged by what is usual
in that pack. So every pack keeps its own measure, whatever is learnt before or after it.

One image seldom says that its domain is new; many do. Images of a new domain lie off the class means nearest to them
all to one side (`Residuals.shift`), whereas the errors of known classes' means cancel out between classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

DIRECTIONS = 32
SHRINKAGE = 0.8
"""λ"""
FOLDS = 8
"""Folds of the training images to give to `fit_outliers`."""
ENOUGH = 2000
"""Images left out that tell a 1 % quantile well enough: folds beyond them are not fitted."""
OUTSIDE = 0.01
"""Images with a smaller p-value lie outside."""
SHIFTED = 0.3
"""A batch shifted by more comes from a new domain, or its classes have changed; if the encoder tells the known domains
apart, that is: one that does not shifts known images as well, which a model's own test images show."""
MIN_BATCH = 100
"""Images below which a batch's shift is too noisy to be compared with `SHIFTED`."""

# The quantiles that a pack keeps, and those between which the tail beyond the last is measured.
LEVELS = np.linspace(0, 1, 101)
LAST, TAIL = 99, 90
# Distances of equal images differ by less.
ROUNDING = 1e-6
# What an image adds to sums is a multiple of this: float64 adds such numbers exactly, up to 2^33 of them.
GRAIN = 2.0**-20
# A squared length that is none.
TINY = 1e-24
# Rows whose products exist at once when a covariance is summed.
ROWS = 4096

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Tensors = Mapping[str, npt.NDArray[Any]]


class Nearest(NamedTuple):
    """Where each of N images lies among what is known."""

    pack: Indices
    """The pack of the nearest class mean, [N]."""
    row: Indices
    """That class's row in the pack's `outlier_means`, [N]."""
    distance: Floats
    """To that mean, in 0..2, [N]: orders images by how far outside they lie."""
    p_value: Floats
    """Share of that pack's own images which, left out of the fit, lay as far away or farther, [N]."""

    @property
    def outside(self) -> npt.NDArray[np.bool_]:
        """Which images lie outside, [N]."""
        return self.p_value < OUTSIDE

    def at(self, rows: slice | npt.NDArray[Any]) -> Nearest:
        """The same of some of the images."""
        return Nearest(self.pack[rows], self.row[rows], self.distance[rows], self.p_value[rows])


def fit_outliers(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], folds: npt.NDArray[np.integer]
) -> dict[str, Floats]:
    """What a pack keeps of a task's images to tell later which images lie outside of them.

    Args:
        features: raw or unit features of the task's n training images under the deterministic view, [n, d].
        labels: class of each, [n], in 0..c-1, each with at least one image.
        folds: which fold each is left out with, [n]; images of one content belong into one fold, and -1 is never left
            out. A class keeps an image whatever fold is left out.

    Returns:
        "outlier_means" [c, d], "outlier_directions" [r, d] with r <= 32, and "outlier_quantiles" [101]: of the
        distances of images left out, at 0 %, 1 %, ... 100 %. Empty, [0], where none could be left out: such a pack
        calls nothing outside.
    """
    unit, classes = _unit(features), labels.astype(np.int64)
    means, directions = _fit(unit, classes)
    distances = np.concatenate([np.zeros(0), *_left_out(unit, classes, folds)])
    quantiles = np.quantile(distances, LEVELS) if len(distances) else distances
    kept = {"means": means, "directions": directions, "quantiles": quantiles}
    return {f"outlier_{name}": array.astype(np.float32) for name, array in kept.items()}


def score(features: npt.NDArray[np.floating], pack: Tensors) -> tuple[Indices, Floats, Floats]:
    """Judge images by one pack alone.

    Args:
        features: raw or unit, [N, d]; N x (classes of the pack) distances exist at once: the caller bounds N.
        pack: the tensors of `fit_outliers`, among others.

    Returns:
        Row of the nearest class mean, distance to it, and p-value, each [N].
    """
    unit = _unit(features).astype(np.float32)
    distances = _distances(unit, pack["outlier_means"], pack["outlier_directions"])
    row = distances.argmin(axis=1)
    distance = np.take_along_axis(distances, row[:, None], axis=1)[:, 0]
    return row, distance, p_values(distance, pack["outlier_quantiles"])


def nearest(features: npt.NDArray[np.floating], packs: Sequence[Tensors]) -> Nearest:
    """Judge images by all packs: each by the one whose class mean is nearest to it.

    Args:
        features: raw or unit, [N, d]; see `score`.
        packs: the tensors of each pack, at least one.
    """
    rows, distances, p = (np.stack(part) for part in zip(*(score(features, k) for k in packs), strict=True))
    pack = distances.argmin(axis=0)
    here = (pack, np.arange(len(pack)))
    return Nearest(pack, rows[here], distances[here], p[here])


def p_values(distances: npt.NDArray[np.floating], quantiles: npt.NDArray[np.floating]) -> Floats:
    """How usual such distances are among images left out: the share of them that is as large or larger.

    Args:
        distances: [N].
        quantiles: 0 %, 1 %, ... 100 %, or none at all, [101] or [0].

    Returns:
        [N]: interpolated up to the 99 % quantile, where it is 0.01; beyond, falling exponentially as between the 90 %
        and the 99 % quantile. 1 without quantiles.
    """
    if len(quantiles) == 0:
        return np.ones(len(distances), np.float32)
    table = quantiles.astype(np.float64)
    inner = np.maximum(1 - np.interp(distances, table, LEVELS), 1 - LEVELS[LAST])
    ratio = (1 - LEVELS[TAIL]) / (1 - LEVELS[LAST])
    scale = max((table[LAST] - table[TAIL]) / np.log(ratio), ROUNDING)
    beyond = np.maximum(distances - table[LAST] - ROUNDING, 0) / scale
    return np.where(beyond > 0, (1 - LEVELS[LAST]) * np.exp(-beyond), inner).astype(np.float32)


@dataclass(frozen=True)
class Residuals:
    """How images lie off the class means nearest to them, summed up per pack; batches add up.

    Exactly: each image's part is rounded to multiples of 2^-20, so that no order of adding changes a bit.
    """

    totals: Doubles
    """Sum of z - m over the images nearest to each of P packs, [P, d]."""
    squares: Doubles
    """Sum of |z - m|², [P]."""
    counts: tuple[Indices, ...]
    """Images nearest to each class mean, P arrays [c]."""

    @classmethod
    def of(cls, features: npt.NDArray[np.floating], found: Nearest, packs: Sequence[Tensors]) -> Residuals:
        """The sums of N images, given as to `nearest`, which found `found`."""
        unit = _unit(features)
        parts = [_residuals(unit, found, number, pack) for number, pack in enumerate(packs)]
        totals, squares, counts = zip(*parts, strict=True)
        return cls(np.stack(totals), np.array(squares), counts)

    def __add__(self, other: Residuals) -> Residuals:
        """The sums of both batches, judged by the same packs."""
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return Residuals(self.totals + other.totals, self.squares + other.squares, counts)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(sum(count.sum() for count in self.counts))

    @property
    def shift(self) -> float:
        """How far the batch lies off the known class means to one side, in units of the classes' own spread.

        Over pairs of different images with the same nearest pack, Σ r_i·r_j for residuals r = z - m, divided by
        Σ |r|² over pairs with the same nearest class alone. If every class lay off its mean by itself, as the error of
        a mean of n images makes it, this would be that error squared, 1/n; what all classes have in common counts once
        for each class.

        Returns:
            About 0.1 for images of known domains, 0.7 and more for those of a new one (six domains, 16 images per
            class). NaN if no two images have the same nearest class.
        """
        counts = [count.sum() for count in self.counts]
        common = (self.totals**2).sum() - self.squares.sum()
        pairs = np.array([(count * (count - 1)).sum() for count in self.counts])
        alone = (pairs * self.squares / np.maximum(counts, 1)).sum()
        return float(common / alone) if alone > 0 else float("nan")

    @property
    def shifted(self) -> bool:
        """Whether the batch says that its domain is new or changed; never with fewer than `MIN_BATCH` images."""
        return self.images >= MIN_BATCH and self.shift > SHIFTED


def _unit(features: npt.NDArray[np.floating]) -> Doubles:
    rows = np.asarray(features, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _fit(unit: Doubles, labels: Indices) -> tuple[Doubles, Doubles]:
    """Class means [c, d] in ascending order of the labels that occur, and directions [r, d]."""
    _, rows, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), unit.shape[1]))
    np.add.at(sums, rows, unit)
    means = sums / counts[:, None]
    return means, _directions(unit, means[rows], len(unit) - len(counts))


def _directions(unit: Doubles, own_means: Doubles, freedom: int) -> Doubles:
    """D [r, d], so that I - DᵀD whitens the leading eigenvectors of the shrunk covariance, relative to λv."""
    width = unit.shape[1]
    number = min(DIRECTIONS, freedom, width)
    if number == 0:
        return np.zeros((0, width))
    values, vectors, trace = _leading(unit, own_means, number)
    values, trace = values / freedom, trace / freedom
    floor = SHRINKAGE * trace / width
    shrunk = (1 - SHRINKAGE) * np.maximum(values, 0) + max(floor, 1e-12)
    return np.sqrt(1 - np.sqrt(max(floor, 1e-12) / shrunk))[:, None] * vectors.T


def _leading(unit: Doubles, own_means: Doubles, number: int) -> tuple[Doubles, Doubles, float]:
    """Of the residuals' sum of products: its largest eigenvalues [r], their eigenvectors [d, r], and its trace."""
    images, width = unit.shape
    if images < width:
        # The same from products between images: a smaller matrix with the same eigenvalues.
        residuals = unit - own_means
        products = residuals @ residuals.T
        values, left = eigh(products, subset_by_index=[images - number, images - 1])
        lengths = np.sqrt(np.maximum(values, TINY))
        return values, residuals.T @ left / lengths, float(np.trace(products))
    products = np.zeros((width, width))
    for start in range(0, images, ROWS):
        residuals = unit[start : start + ROWS] - own_means[start : start + ROWS]
        products += residuals.T @ residuals
    values, vectors = eigh(products, subset_by_index=[width - number, width - 1])
    return values, vectors, float(np.trace(products))


def _left_out(unit: Doubles, labels: Indices, folds: npt.NDArray[np.integer]) -> Iterator[Doubles]:
    """Distances of images to the nearest mean of a fit without them, fold by fold until there are `ENOUGH`."""
    found = 0
    for fold in np.unique(folds[folds >= 0]):
        out = folds == fold
        means, directions = _fit(unit[~out], labels[~out])
        for start in range(0, int(out.sum()), ROWS):
            yield _distances(unit[out][start : start + ROWS], means, directions).min(axis=1)
        found += int(out.sum())
        if found >= ENOUGH:
            return


def _distances(
    unit: npt.NDArray[Any], means: npt.NDArray[Any], directions: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """½ (1 - cos(a, b)) + ¼ |a - b|² between images [N, d] and class means [c, d], [N, c]."""
    a, b = (x - x @ directions.T @ directions for x in (unit, means))
    dots = a @ b.T
    a2, b2 = (a**2).sum(axis=1)[:, None], (b**2).sum(axis=1)
    cosines = dots / np.sqrt(np.maximum(a2 * b2, 1e-24))
    return np.maximum((1 - cosines) / 2 + (a2 + b2 - 2 * dots) / 4, 0)


def _residuals(unit: Doubles, found: Nearest, number: int, pack: Tensors) -> tuple[Doubles, float, Indices]:
    """A pack's part of `Residuals`."""
    means, here = pack["outlier_means"], found.pack == number
    off = unit[here] - means[found.row[here]]
    totals, squares = (np.rint(part / GRAIN) * GRAIN for part in (off, (off**2).sum(axis=1)))
    return totals.sum(axis=0), float(squares.sum()), np.bincount(found.row[here], minlength=len(means))
