"""k-means of many small classes at once: scikit-learn's algorithm and its very draws, in the span of the images.

A class of n images spans at most n dimensions of its d: every distance between an image and a mean of images follows
from the inner products of the images, G = X Xᵀ [n, n]. A centre is a row of coefficients on the images. So an
iteration costs n² per centre instead of n·d, and all classes with the same number of images are done together. The
random numbers are those that scikit-learn's `KMeans` would draw from the same seed, so the centres are its centres up
to rounding; its second stopping rule (the centres hardly move, though labels still change) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

# Beyond, inner products no longer save anything.
MOST_IMAGES = 256
# Coefficients [classes, inits, K, n] held at once: 2^19 float64 are 4 MiB, which stay in the cache.
MAX_COEFFICIENTS = 2**19
MAX_ITERATIONS = 300
# Inertias that differ by less, relatively, are of one and the same clustering.
SAME = 1e-9
# Images whose squared distance is smaller, relative to their own, may be equal.
NEAR = 1e-9


class Clustering(NamedTuple):
    """Of B classes: centres as coefficients on the n images [B, K, n], and each image's cluster [B, n]."""

    coefficients: Doubles
    labels: Labels


def one_thread() -> threadpool_limits:
    """A context in which BLAS uses one thread: products this small lose by sharing, and their bits stay the same."""
    return threadpool_limits(limits=1, user_api="blas")


def batches(sizes: Sequence[int], floats_per_class: int) -> Iterator[list[int]]:
    """Which classes to do together: those of equal size, in chunks that hold `MAX_COEFFICIENTS` at most.

    Args:
        sizes: number of images of each class.
        floats_per_class: coefficients per image of a class.

    Yields:
        Positions of classes. How they are grouped decides no bit of their results.
    """
    for size in dict.fromkeys(sizes):
        same = [i for i, other in enumerate(sizes) if other == size]
        step = max(1, MAX_COEFFICIENTS // (size * floats_per_class))
        yield from (same[start : start + step] for start in range(0, len(same), step))


def distinct_rows(features: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """The distinct rows of `features` [n, d], in order of first appearance."""
    first: dict[bytes, int] = {}
    # np.unique would sort the rows as records of d fields, which takes longer than all the rest; 0.0 is -0.0.
    for i, row in enumerate(np.ascontiguousarray(features) + 0.0):
        first.setdefault(row.tobytes(), i)
    return features[list(first.values())]


def distinct_counts(rows: Doubles, gram: Doubles) -> Labels:
    """Number of distinct images of each class, [B], of `rows` [B, n, d] and their `inner_products`.

    Rows are compared only where the products do not rule out that two are equal.
    """
    norms = np.einsum("bii->bi", gram)
    sums = norms[:, :, None] + norms[:, None, :]
    # Every image is near itself.
    near = (sums - 2 * gram <= NEAR * sums).sum((1, 2)) > rows.shape[1]
    counts = np.full(len(rows), rows.shape[1], np.int64)
    for b in np.flatnonzero(near | (norms <= 0).any(1)):
        counts[b] = len(distinct_rows(rows[b]))
    return counts


def inner_products(rows: Doubles) -> Doubles:
    """Of the images of each class around their mean, [B, n, d] -> [B, n, n]."""
    centred = rows - rows.mean(1, keepdims=True)
    return centred @ centred.transpose(0, 2, 1)


def kmeans(gram: Doubles, clusters: int, inits: int, seed: int) -> Clustering:
    """The best of several k-means runs of each class.

    Args:
        gram: `inner_products` of B classes, [B, n, n].
        clusters: K, at most n.
        inits: number of runs.
        seed: of the initialisations, the same for every class.
    """
    coefficients, labels, inertia = _lloyd(gram, _plus_plus(gram, clusters, inits, seed))
    good = inertia <= inertia.min(1, keepdims=True) * (1 + SAME)
    every, best = np.arange(len(gram)), good.argmax(1)
    return Clustering(coefficients[every, best], labels[every, best])


def _plus_plus(gram: Doubles, clusters: int, inits: int, seed: int) -> Labels:
    """k-means++ with scikit-learn's local trials: which images are the first centres, [B, inits, K]."""
    classes, images, _ = gram.shape
    first, uniform = _draws(images, clusters, inits, seed)
    norms = np.einsum("bii->bi", gram)
    distances = np.maximum(norms[:, :, None] + norms[:, None, :] - 2 * gram, 0)
    every = np.arange(classes)[:, None]
    chosen = np.empty((classes, inits, clusters), np.int64)
    chosen[..., 0] = first
    closest = distances[every, chosen[..., 0]]
    for c in range(1, clusters):
        wanted = uniform[:, c - 1] * closest.sum(-1, keepdims=True)
        below = np.cumsum(closest, -1)[:, :, None, :] < wanted[..., None]
        candidates = below.sum(-1).clip(max=images - 1)
        left = np.minimum(closest[:, :, None], distances[every[..., None], candidates])
        best = left.sum(-1).argmin(-1)[..., None]
        chosen[..., c] = np.take_along_axis(candidates, best, -1)[..., 0]
        closest = np.take_along_axis(left, best[..., None], 2)[:, :, 0]
    return chosen


def _draws(images: int, clusters: int, inits: int, seed: int) -> tuple[Labels, Doubles]:
    """What scikit-learn draws: each run's first centre [inits], and its uniform numbers [inits, K - 1, trials]."""
    random, trials = np.random.RandomState(seed), 2 + int(np.log(clusters))
    first, uniform = np.empty(inits, np.int64), np.empty((inits, clusters - 1, trials))
    for run in range(inits):
        first[run] = random.choice(images, p=np.full(images, 1 / images))
        uniform[run] = random.uniform(size=(clusters - 1, trials))
    return first, uniform


def _lloyd(gram: Doubles, chosen: Labels) -> tuple[Doubles, Labels, Doubles]:
    """Run k-means from these images as centres [B, I, K]: coefficients [B, I, K, n], labels [B, I, n], inertia [B, I].

    A class is done when none of its runs changes a label any more.
    """
    classes, inits, clusters = chosen.shape
    images = gram.shape[1]
    coefficients = (chosen[..., None] == np.arange(images)).astype(np.float64)
    labels = np.full((classes, inits, images), -1, np.int64)
    active = np.arange(classes)
    for _ in range(MAX_ITERATIONS):
        now, squares = _assign(gram[active], coefficients[active])
        changed = (now != labels[active]).any((1, 2))
        labels[active] = now
        coefficients[active] = _means(now, clusters, squares)
        active = active[changed]
        if not len(active):
            break
    labels, squares = _assign(gram, coefficients)
    return coefficients, labels, np.take_along_axis(squares, labels[:, :, None], 2).sum((2, 3))


def _assign(gram: Doubles, coefficients: Doubles) -> tuple[Labels, Doubles]:
    """The nearest centre of each image [B, I, n], and all squared distances [B, I, K, n]."""
    classes, inits, clusters, images = coefficients.shape
    products = (coefficients.reshape(classes, inits * clusters, images) @ gram).reshape(coefficients.shape)
    norms = np.einsum("bii->bi", gram)[:, None, None]
    squares = norms - 2 * products + (products * coefficients).sum(-1, keepdims=True)
    return squares.argmin(2), squares


def _means(labels: Labels, clusters: int, squares: Doubles) -> Doubles:
    """Coefficients of the means of the clusters, [B, I, K, n]; an empty one gets the image farthest from its centre."""
    members = (labels[:, :, None] == np.arange(clusters)[:, None]).astype(np.float64)
    counts = members.sum(-1)
    for b, run in zip(*np.nonzero((counts == 0).any(-1)), strict=True):
        own = squares[b, run, labels[b, run], np.arange(labels.shape[-1])]
        empty = np.flatnonzero(counts[b, run] == 0)
        for cluster, image in zip(empty, np.argsort(-own, kind="stable"), strict=False):
            members[b, run, :, image] = 0
            members[b, run, cluster, image] = 1
    return members / members.sum(-1, keepdims=True).clip(min=1)
