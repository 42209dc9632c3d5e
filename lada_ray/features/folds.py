"""Which training images a trial is judged on instead: folds of every class, so that no test image is needed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TRAIN_ONLY = -1
"""Fold of images that are never validated on."""

Indices = npt.NDArray[np.int64]


def assign_folds(labels: npt.NDArray[np.integer], shas: Sequence[str], folds: int, seed: int) -> Indices:
    """Spread every class's images evenly over folds.

    Images of the same content share a fold, in whatever classes they stand, so none is learnt and validated at once.
    That holds within one call: give all domains together, with labels that no two domains share.

    A class's folds depend on the seed and its own content alone, and on other classes only where these share content
    with it; neither on the order of images nor on how labels are numbered.

    A class keeps a training image whatever fold is validated. One whose images would all stand in one fold (one
    distinct image) is therefore never validated: fold -1. One with fewer distinct images than folds is
    validated in as many folds as it has distinct images.

    Args:
        labels: class of each image, [n].
        shas: SHA-256 of each image's content, n of them.
        folds: how many, at least 2.
        seed: another one makes other folds.

    Returns:
        Fold of each image, 0 to folds - 1 or -1, [n].

    Raises:
        ValueError: fewer than 2 folds, or not as many labels as contents.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2 (got {folds})")
    copies: dict[str, Counter[int]] = defaultdict(Counter)
    for label, sha in zip(np.asarray(labels).tolist(), shas, strict=True):
        copies[sha][label] += 1
    fold_of = _balanced(copies, folds, seed)
    for content in _contents(copies).values():
        if len({fold_of[sha] for sha in content}) == 1:
            fold_of |= dict.fromkeys(content, TRAIN_ONLY)
    return np.array([fold_of[sha] for sha in shas], np.int64)


def _balanced(copies: dict[str, Counter[int]], folds: int, seed: int) -> dict[str, int]:
    """Give each content the fold that holds fewest images of its classes so far.

    Content that several classes share comes first, and then what has many copies: the rest evens them out.
    """
    rank = {sha: _rank(seed, sha) for sha in copies}
    held: dict[int, list[int]] = defaultdict(lambda: [0] * folds)
    fold_of: dict[str, int] = {}
    for sha in sorted(copies, key=lambda s: (-len(copies[s]), -copies[s].total(), rank[s], s)):
        load = [sum(held[label][fold] for label in copies[sha]) for fold in range(folds)]
        # Ties are broken by content, or the first folds would hold the odd image of every class.
        fold = min(range(folds), key=lambda f: (load[f], (f - rank[sha]) % folds))
        fold_of[sha] = fold
        for label, number in copies[sha].items():
            held[label][fold] += number
    return fold_of


def _rank(seed: int, sha: str) -> int:
    """A number that follows from seed and content, and from nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{sha}".encode()).digest()[:8], "big")


def _contents(copies: dict[str, Counter[int]]) -> dict[int, list[str]]:
    """The distinct contents of each class."""
    contents: dict[int, list[str]] = defaultdict(list)
    for sha, classes in copies.items():
        for label in classes:
            contents[label].append(sha)
    return contents
