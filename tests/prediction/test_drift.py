"""When a batch is said to look like a new domain, and sums that survive being written down."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lada_ray.method.outliers import Residuals, fit_outliers, nearest
from lada_ray.prediction.drift import Drift, nothing, residuals_from_json, residuals_to_json


def drift(images: int, outliers: int, shift: float | None = 0.1) -> Drift:
    return Drift(images, outliers, shift, shifted=shift is not None and shift > 0.3)


@pytest.mark.parametrize(
    ("images", "outliers", "new"),
    [
        (1200, 444, True),
        (1200, 60, False),
        (1200, 120, False),
        (1200, 160, True),
        (5, 2, False),
        (5, 4, True),
    ],
)
def test_outliers_beyond_chance_are_told(images: int, outliers: int, new: bool) -> None:
    found = drift(images, outliers)
    assert found.new is new
    assert Drift.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_words() -> None:
    first, *others = drift(1200, 444).words
    assert first == "37.0 % of 1200 images lie outside what the model knows (up to 5 % expected)"
    assert others == ["this looks like a new domain, or a known one that has changed"]
    assert drift(1200, 12).words == [
        "1.0 % of 1200 images lie outside what the model knows (up to 5 % expected)"
    ]
    assert "shift 0.72; 0.3 at most" in drift(1200, 12, 0.72).words[1]
    assert drift(0, 0, None).words[0].startswith("0.0 % of 0 images")


def test_sums_are_written_down_exactly() -> None:
    random = np.random.default_rng(0)
    packs = []
    for centre in np.eye(3, 8):
        features = centre + 0.1 * random.normal(size=(20, 8))
        labels = np.arange(20) % 2
        packs.append(fit_outliers(features, labels, np.arange(20) // 4))
    features = np.eye(3, 8)[[0, 2]].repeat(9, axis=0) + 0.2 * random.normal(size=(18, 8))
    sums = Residuals.of(features, nearest(features, packs), packs)
    said = residuals_to_json(sums)
    assert set(said) == {"0", "2"}
    found = residuals_from_json(json.loads(json.dumps(said)), packs)
    np.testing.assert_array_equal(found.totals, sums.totals)
    np.testing.assert_array_equal(found.squares, sums.squares)
    assert [c.tolist() for c in found.counts] == [c.tolist() for c in sums.counts]
    assert Drift.of(nothing(packs) + found, 3) == Drift(18, 3, sums.shift, shifted=False)
    assert Drift.of(nothing(packs), 0).shift is None
