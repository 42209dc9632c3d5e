"""Distances by hand, left-out quantiles, and made-up domains: what is outside, and which batches are shifted."""

from __future__ import annotations

import numpy as np
import pytest

from lada_ray.method.outliers import (
    DIRECTIONS,
    ENOUGH,
    LEVELS,
    SHRINKAGE,
    Nearest,
    Residuals,
    fit_outliers,
    nearest,
    p_values,
    score,
)

WIDTH = 48
CLASSES = 6
SHOTS = 16


class Domain:
    """Classes around a common centre; images of a class vary along few directions, and a little along all."""

    def __init__(self, seed: int, spread: float = 0.35) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = 2 * self.rng.standard_normal(WIDTH) + self.rng.standard_normal((CLASSES, WIDTH))
        self.along = self.rng.standard_normal((4, WIDTH))
        self.spread = spread

    def images(self, per_class: int, only: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Raw features and labels."""
        labels = np.repeat(np.arange(CLASSES) if only is None else [only], per_class)
        common = self.rng.standard_normal((len(labels), 4)) @ self.along
        own = self.rng.standard_normal((len(labels), WIDTH))
        return (self.means[labels] + self.spread * (common + own)).astype(np.float32), labels


def folds(labels: np.ndarray, number: int = 8) -> np.ndarray:
    """Every class evenly over the folds."""
    order = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        order[labels == label] = np.arange((labels == label).sum())
    return order % number


def learn(domain: Domain) -> dict[str, np.ndarray]:
    """A pack of a domain's training images."""
    features, labels = domain.images(SHOTS)
    return fit_outliers(features, labels, folds(labels))


@pytest.fixture(scope="module")
def domains() -> list[Domain]:
    return [Domain(seed, spread) for seed, spread in enumerate((0.2, 0.35, 0.5))]


@pytest.fixture(scope="module")
def packs(domains: list[Domain]) -> list[dict[str, np.ndarray]]:
    return [learn(domain) for domain in domains]


def test_what_a_pack_keeps(packs: list[dict[str, np.ndarray]]) -> None:
    for pack in packs:
        assert {name: array.shape for name, array in pack.items()} == {
            "outlier_means": (CLASSES, WIDTH),
            "outlier_directions": (DIRECTIONS, WIDTH),
            "outlier_quantiles": (len(LEVELS),),
        }
        assert {array.dtype for array in pack.values()} == {np.dtype(np.float32)}
        assert (np.diff(pack["outlier_quantiles"]) >= 0).all()


def test_distance_by_hand() -> None:
    """½ (1 - cos) + ¼ |a - b|²; one image per class leaves no directions and no quantiles."""
    pack = fit_outliers(np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([0, 1]), np.array([-1, -1]))
    assert pack["outlier_directions"].shape == (0, 2)
    assert pack["outlier_quantiles"].shape == (0,)
    row, distance, p = score(np.array([[0.5, 0.0], [0.6, 0.8], [-1.0, 0.0]]), pack)
    assert row.tolist() == [0, 1, 1]
    # Between unit vectors, ¼ |a - b|² is ½ (1 - cos).
    np.testing.assert_allclose(distance, [0, 0.2, 1], atol=1e-6)
    assert p.tolist() == [1, 1, 1]


def test_means_are_those_of_unit_features() -> None:
    pack = fit_outliers(
        np.array([[5.0, 0.0], [0.0, 2.0], [3.0, 4.0]]), np.array([1, 1, 0]), np.array([0, 1, -1])
    )
    np.testing.assert_allclose(pack["outlier_means"], [[0.6, 0.8], [0.5, 0.5]], rtol=1e-6)


def test_directions_whiten_the_shrunk_covariance() -> None:
    """(I - DᵀD) C (I - DᵀD) is λvI on the leading eigenvectors of C = (1 - λ)S + λvI."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 8)) * [9, 5, 3, 1, 1, 1, 1, 1] + 20
    labels = np.arange(400) % 3
    pack = fit_outliers(features, labels, np.full(400, -1))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[labels == label].mean(0) for label in range(3)])
    s = (unit - means[labels]).T @ (unit - means[labels]) / (400 - 3)
    floor = 0.8 * np.trace(s) / 8
    directions = pack["outlier_directions"].astype(np.float64)
    reduce = np.eye(8) - directions.T @ directions
    np.testing.assert_allclose(
        reduce @ (0.2 * s + floor * np.eye(8)) @ reduce, floor * np.eye(8), atol=1e-6 * floor + 1e-9
    )


def test_fewer_images_than_dimensions() -> None:
    """Found from products between images, directions are those of the covariance all the same."""
    features, labels = Domain(3).images(SHOTS)
    wide = np.hstack([features, np.random.default_rng(0).standard_normal((len(features), 2 * WIDTH))])
    assert len(wide) < wide.shape[1]
    kept = fit_outliers(wide, labels, folds(labels))
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    residuals = unit - np.stack([unit[labels == label].mean(axis=0) for label in labels])
    covariance = residuals.T @ residuals / (len(unit) - CLASSES)
    values, vectors = np.linalg.eigh(covariance)
    floor = SHRINKAGE * np.trace(covariance) / len(covariance)
    shrunk = (1 - SHRINKAGE) * values[-DIRECTIONS:] + floor
    expected = np.sqrt(1 - np.sqrt(floor / shrunk)) * vectors[:, -DIRECTIONS:]
    found = kept["outlier_directions"]
    assert found.shape == (DIRECTIONS, wide.shape[1])
    np.testing.assert_allclose(found.T @ found, expected @ expected.T, atol=1e-6)


def test_copies_vary_in_no_direction() -> None:
    """More dimensions than images, each class's of one image: whatever rounding leaves is no direction."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.standard_normal((3, 40)), 5, axis=0)
    kept = fit_outliers(features, np.repeat(np.arange(3), 5), np.full(15, -1))
    np.testing.assert_allclose(kept["outlier_directions"], 0, atol=1e-9)


def test_p_values_follow_the_quantiles() -> None:
    quantiles = LEVELS.astype(np.float32)  # left-out distances were uniform in 0..1
    p = p_values(np.array([-1, 0, 0.255, 0.5, 0.9, 0.99]), quantiles)
    np.testing.assert_allclose(p, [1, 1, 0.745, 0.5, 0.1, 0.01], atol=1e-6)
    # From 90 % to 99 % it takes 0.09 to fall by ten: so it goes on.
    np.testing.assert_allclose(p_values(np.array([1.08, 1.17]), quantiles), [1e-3, 1e-4], rtol=1e-3)


def test_one_per_cent_of_images_left_out_lie_outside() -> None:
    domain = Domain(7)
    features, labels = domain.images(200)
    pack = fit_outliers(features, labels, folds(labels))
    fresh, _ = domain.images(2000)
    assert nearest(fresh, [pack]).outside.mean() == pytest.approx(0.01, abs=0.008)


def test_left_out_images_do_not_judge_themselves() -> None:
    """Images left out lie as far away as fresh ones, those in the fit nearer."""
    domain = Domain(9)
    features, labels = domain.images(SHOTS)
    pack = fit_outliers(features, labels, folds(labels))
    fresh = np.median(score(domain.images(300)[0], pack)[1])
    assert pack["outlier_quantiles"][50] == pytest.approx(fresh, rel=0.05)
    assert np.median(score(features, pack)[1]) < 0.9 * fresh


def test_known_domains_pass_and_new_ones_are_found(
    domains: list[Domain], packs: list[dict[str, np.ndarray]]
) -> None:
    for number, domain in enumerate(domains):
        found = nearest(domain.images(100)[0], packs)
        assert found.outside.mean() < 0.05
        assert (found.pack == number).mean() > 0.95
    new = nearest(Domain(11).images(100)[0], packs)
    assert new.outside.mean() > 0.95
    assert new.distance.min() > np.median(nearest(domains[1].images(100)[0], packs).distance)


def test_an_image_is_judged_by_the_pack_of_its_nearest_mean(packs: list[dict[str, np.ndarray]]) -> None:
    features = Domain(1).images(10)[0]
    found = nearest(features, packs)
    alone = [score(features, pack) for pack in packs]
    assert found.pack.tolist() == np.argmin([distance for _, distance, _ in alone], axis=0).tolist()
    for i, pack in enumerate(found.pack):
        row, distance, p = (part[i] for part in alone[pack])
        assert (found.row[i], found.distance[i], found.p_value[i]) == (row, distance, p)


def test_the_length_of_features_does_not_matter(
    domains: list[Domain], packs: list[dict[str, np.ndarray]]
) -> None:
    features, _ = domains[0].images(5)
    np.testing.assert_allclose(
        score(features, packs[0])[1], score(100 * features, packs[0])[1], rtol=1e-4, atol=1e-6
    )
    assert np.isfinite(score(np.zeros((1, WIDTH)), packs[0])[1]).all()


def test_fits_are_repeatable() -> None:
    features, labels = Domain(5).images(SHOTS)
    one, two = (fit_outliers(features, labels, folds(labels)) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_copies_of_one_image_leave_a_class_without_spread() -> None:
    features = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    pack = fit_outliers(features, np.repeat(np.arange(4), 3), np.tile([0, 1, 2], 4))
    assert not pack["outlier_directions"].any()
    np.testing.assert_allclose(pack["outlier_quantiles"], 0, atol=1e-7)
    assert nearest(np.ones((1, 4)), [pack]).outside.tolist() == [True]
    assert not nearest(features, [pack]).outside.any()


def test_enough_left_out_images_end_the_folds() -> None:
    """Two of eight folds are enough here: the images of the others may lie anywhere."""
    features, labels = Domain(0).images(4 * ENOUGH // CLASSES + 4)
    fold = folds(labels)
    pack = fit_outliers(features, labels, fold)
    two = fit_outliers(features, labels, np.where(fold < 2, fold, -1))
    one = fit_outliers(features, labels, np.where(fold < 1, fold, -1))
    assert np.array_equal(pack["outlier_quantiles"], two["outlier_quantiles"])
    assert not np.array_equal(pack["outlier_quantiles"], one["outlier_quantiles"])


def test_shift_of_known_and_of_new_batches(domains: list[Domain], packs: list[dict[str, np.ndarray]]) -> None:
    for domain in domains:
        sums = batch(domain.images(30)[0], packs)
        assert sums.images == 180
        assert abs(sums.shift) < 0.2
        assert not sums.shifted
    new = batch(Domain(11).images(30)[0], packs)
    assert new.shift > 1
    assert new.shifted
    assert not batch(Domain(11).images(10)[0], packs).shifted  # too few to tell


def test_one_class_alone_is_no_shift(domains: list[Domain], packs: list[dict[str, np.ndarray]]) -> None:
    """Its mean of 16 images is off by 1/16 of the spread, squared."""
    shifts = [batch(domains[1].images(150, only=label)[0], packs).shift for label in range(CLASSES)]
    assert np.mean(shifts) == pytest.approx(1 / SHOTS, abs=0.03)


def test_a_batch_is_the_sum_of_its_parts(domains: list[Domain], packs: list[dict[str, np.ndarray]]) -> None:
    features = domains[2].images(20)[0]
    whole = batch(features, packs)
    parts = batch(features[:17], packs) + batch(features[17:], packs)
    assert parts.images == whole.images == 120
    assert parts.shift == whole.shift
    np.testing.assert_array_equal(parts.totals, batch(features[::-1], packs).totals)


def test_shift_by_hand() -> None:
    """Residuals (1, 0), (1, 0) off one mean and (1, 1) off another: 6 ordered pairs of product 1, 2 of one class."""
    pack = {"outlier_means": np.zeros((2, 2), np.float32)}
    far = np.zeros(3, np.float32)
    sums = Residuals(np.array([[3.0, 1.0]]), np.array([4.0]), (np.array([2, 1]),))
    assert sums.shift == pytest.approx((10 - 4) / (2 * 4 / 3))
    found = Nearest(np.zeros(3, np.int64), np.array([0, 0, 1]), far, far)
    made = Residuals.of(np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), found, [pack])
    root = 0.5**0.5
    np.testing.assert_allclose(made.totals, [[2 + root, root]], atol=2e-6)
    assert made.squares.tolist() == pytest.approx([3], abs=2e-6)
    assert made.counts[0].tolist() == [2, 1]


def test_no_two_images_of_one_class_say_nothing(packs: list[dict[str, np.ndarray]]) -> None:
    sums = batch(Domain(0).images(1, only=0)[0], packs)
    assert np.isnan(sums.shift)
    assert not sums.shifted


def batch(features: np.ndarray, packs: list[dict[str, np.ndarray]]) -> Residuals:
    """The residuals of some images."""
    return Residuals.of(features, nearest(features, packs), packs)
