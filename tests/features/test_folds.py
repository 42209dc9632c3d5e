"""Folds: even within every class, decided by content alone, and never one image on both sides."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from lada_ray.features.folds import TRAIN_ONLY, assign_folds


def contents(*names: object) -> list[str]:
    return [hashlib.sha256(str(name).encode()).hexdigest() for name in names]


def stream(sizes: list[int]) -> tuple[np.ndarray, list[str]]:
    """Classes of these sizes, every image different."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return labels, contents(*range(len(labels)))


def test_every_class_is_spread_evenly():
    labels, shas = stream([16] * 20 + [17, 18, 5, 4, 1000])
    folds = assign_folds(labels, shas, 4, seed=0)
    assert folds.dtype == np.int64
    for label in range(25):
        counts = np.bincount(folds[labels == label], minlength=4)
        assert counts.max() - counts.min() == (1 if (labels == label).sum() % 4 else 0)


def test_odd_images_do_not_all_fall_into_the_first_fold():
    labels, shas = stream([5] * 400)
    counts = np.bincount(assign_folds(labels, shas, 4, seed=0))
    assert counts.sum() == 2000
    assert counts.min() > 460
    assert counts.max() < 540


def test_the_order_of_images_does_not_matter():
    labels, shas = stream([7, 16, 3, 1])
    shas[0] = shas[8] = shas[20]  # copies, within and across classes
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = assign_folds(labels[order], [shas[i] for i in order], 3, seed=5)
    assert shuffled.tolist() == assign_folds(labels, shas, 3, seed=5)[order].tolist()


def test_neither_other_classes_nor_the_numbers_of_labels_matter():
    labels, shas = stream([7, 16, 9])
    whole = assign_folds(labels, shas, 4, seed=1)
    middle = [shas[i] for i in np.flatnonzero(labels == 1)]
    assert assign_folds(np.full(16, 40), middle, 4, seed=1).tolist() == whole[labels == 1].tolist()


def test_the_seed_decides():
    labels, shas = stream([16] * 10)
    first, again, other = (assign_folds(labels, shas, 4, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert 0.1 < (first == other).mean() < 0.4  # a quarter by chance


def test_pinned():
    # A sweep that is resumed by a later version has to find the same folds.
    assert assign_folds(*stream([8]), 4, seed=0).tolist() == [0, 2, 0, 3, 3, 1, 1, 2]


def test_copies_within_a_class_share_a_fold():
    shas = contents(*"aaabbcdefghi")
    folds = assign_folds(np.zeros(12, np.int64), shas, 4, seed=0)
    for sha in set(shas):
        assert len({f for f, s in zip(folds, shas, strict=True) if s == sha}) == 1
    assert np.bincount(folds).tolist() == [3, 3, 3, 3]


def test_copies_in_other_classes_share_a_fold():
    labels = np.repeat([0, 1, 2], 8)
    shas = contents(*range(8), *range(4), *"abcd", *"efghij", 7, "a")
    folds = assign_folds(labels, shas, 4, seed=0)
    by_content = {sha: {f for f, s in zip(folds, shas, strict=True) if s == sha} for sha in shas}
    assert {len(found) for found in by_content.values()} == {1}
    for label in range(3):
        assert np.bincount(folds[labels == label]).tolist() == [2, 2, 2, 2]


def test_a_domain_that_is_a_copy_of_another_is_spread_evenly_too():
    labels, shas = stream([16] * 5)
    twice = assign_folds(np.concatenate([labels, labels + 5]), [*shas, *shas], 4, seed=0)
    assert (twice[:80] == twice[80:]).all()
    assert np.bincount(twice[:16]).tolist() == [4, 4, 4, 4]


def test_a_class_with_one_distinct_image_is_never_validated():
    folds = assign_folds(np.array([0, 1, 1, 1, 2, 2]), contents("x", "y", "y", "y", "p", "q"), 4, seed=0)
    assert folds[:4].tolist() == [TRAIN_ONLY] * 4
    assert folds[4] != folds[5]
    assert folds[4:].min() >= 0


def test_every_class_keeps_a_training_image_whatever_it_shares():
    generator = np.random.default_rng(0)
    for seed in range(200):
        labels = generator.integers(6, size=20)
        shas = contents(*generator.integers(9, size=20))
        number = int(generator.integers(2, 6))
        folds = assign_folds(labels, shas, number, seed)
        assert folds.max() < number
        for fold in range(number):
            assert set(labels[folds != fold]) == set(labels)
        for sha in set(shas):
            assert len({f for f, s in zip(folds, shas, strict=True) if s == sha}) == 1


def test_no_images():
    assert assign_folds(np.zeros(0, np.int64), [], 2, 0).tolist() == []


def test_misuse():
    with pytest.raises(ValueError, match="folds must be at least 2"):
        assign_folds(np.array([0]), contents("x"), 1, 0)
    with pytest.raises(ValueError, match="zip"):
        assign_folds(np.array([0, 1]), contents("x"), 2, 0)
