"""Class means by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lada_ray.method.ncm import NearestMean, prototype_logits

UNIT = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, -1]], np.float32)


def test_prototypes_are_the_normalised_means_in_ascending_order_of_labels() -> None:
    kept = NearestMean().learn(UNIT, np.array([7, 7, 2, 7]), 8)
    assert list(kept) == ["prototypes"]
    assert kept["prototypes"].dtype == np.float32
    # Class 2 has one image; the mean of class 7 is (1/3, 0).
    np.testing.assert_allclose(kept["prototypes"], [[0.6, 0.8], [1.0, 0.0]], atol=1e-7)


def test_a_class_that_returns_gets_a_prototype_of_the_new_images_alone() -> None:
    learner = NearestMean()
    learner.learn(UNIT[:1], np.array([0]), 1)
    again = learner.learn(UNIT[[1, 2, 1]], np.array([0, 1, 0]), 2)
    np.testing.assert_allclose(again["prototypes"], UNIT[[1, 2]], atol=1e-7)


def test_nothing_is_kept_besides_the_packs() -> None:
    learner = NearestMean()
    learner.learn(UNIT, np.zeros(4, np.int64), 1)
    assert learner.state() == {}
    learner.load_state({})


def test_logits_are_cosines() -> None:
    logits = prototype_logits(torch.from_numpy(UNIT), torch.tensor([[1.0, 0.0], [0.8, 0.6]]))
    assert logits.flatten().tolist() == pytest.approx([1, 0.8, 0, 0.6, 0.6, 0.96, 0, -0.6], abs=1e-6)


def test_no_seen_class() -> None:
    assert prototype_logits(torch.from_numpy(UNIT), torch.zeros(0, 2)).shape == (4, 0)
