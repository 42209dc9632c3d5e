"""Many classes at once: scikit-learn's optima, and the same bits as a class alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from lada_ray.method import kmeans as module
from lada_ray.method.kmeans import batches, distinct_counts, distinct_rows, inner_products, kmeans
from lada_ray.method.memory import init_memories, init_memory
from lada_ray.method.mixture import fit_mixture, fit_mixtures

Classes = list[np.ndarray]


def classes(number: int, images: int, width: int = 48, seed: int = 0) -> Classes:
    """Raw features of about CLIP's spread: each class consists of a few kinds."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((number, 4, width))
    which = rng.integers(4, size=(number, images))
    centres = 3 * rng.standard_normal((number, 1, width))
    features = (
        centres
        + np.take_along_axis(kinds, which[..., None], 1)
        + rng.standard_normal((number, images, width))
    )
    return list(features.astype(np.float32))


def inertia(rows: np.ndarray, centres: np.ndarray) -> float:
    return float(((rows[:, None] - centres) ** 2).sum(-1).min(1).sum())


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float64)


@pytest.mark.parametrize(("images", "clusters"), [(20, 16), (64, 16), (30, 2), (200, 5)])
def test_centres_are_scikit_learn_s(images: int, clusters: int) -> None:
    """Where equally good clusterings or empty clusters make them differ, they are as good."""
    data = [unit(rows) for rows in classes(20, images)]
    same, ratios = 0, []
    for rows, centres in zip(data, init_memories(data, clusters), strict=True):
        model = KMeans(clusters, n_init=10, random_state=42).fit(rows)
        same += np.allclose(centres, model.cluster_centers_, atol=1e-6)
        ratios.append(inertia(rows, centres) / model.inertia_)
    print(
        f"\n{images} images, {clusters} clusters: {same} of 20 equal, inertia {np.mean(ratios):.5f} of theirs"
    )
    assert same >= (20 if images > 20 else 12)
    assert np.mean(ratios) < 1.002


@pytest.mark.parametrize("images", [5, 16, 64, 200])
def test_mixtures_are_scikit_learn_s(images: int) -> None:
    data = classes(15, images)
    for rows, mixture in zip(data, fit_mixtures(data, 4), strict=True):
        model = GaussianMixture(4, covariance_type="spherical", random_state=42).fit(rows.astype(np.float64))
        np.testing.assert_allclose(mixture.means, model.means_, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mixture.variances, model.covariances_, rtol=1e-5)
        np.testing.assert_allclose(mixture.weights, model.weights_, rtol=1e-5)


def test_a_class_alone_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [*classes(9, 20), *classes(5, 33, seed=1), *classes(2, 3, seed=2), *classes(1, 1, seed=3)]
    data.append(np.repeat(data[0][:7], 4, axis=0))  # seven distinct images, each four times
    np.random.default_rng(0).shuffle(data)  # type: ignore[arg-type]
    wholes = [init_memories(data, 6), fit_mixtures(data, 3)]
    monkeypatch.setattr(module, "MAX_COEFFICIENTS", 2500)
    for whole, other in zip(wholes, [init_memories(data, 6), fit_mixtures(data, 3)], strict=True):
        for one, another in zip(whole, other, strict=True):
            assert all(map(np.array_equal, one, another))
    for rows, memory, mixture in zip(data, *wholes, strict=True):
        assert np.array_equal(memory, init_memory(rows, 6))
        assert all(map(np.array_equal, mixture, fit_mixture(rows, 3)))


def test_many_images_go_to_scikit_learn_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [unit(rows) for rows in classes(3, 40)]
    batched = init_memories(data, 4), fit_mixtures(data, 4)
    for name in ("memory", "mixture"):
        monkeypatch.setattr(f"lada_ray.method.{name}.MOST_IMAGES", 39)
    plain = init_memories(data, 4), fit_mixtures(data, 4)
    for one, another in zip(batched[0], plain[0], strict=True):
        np.testing.assert_allclose(one, another, atol=1e-6)
    for mixture, other in zip(batched[1], plain[1], strict=True):
        np.testing.assert_allclose(mixture.means, other.means, atol=1e-6)


def test_no_cluster_stays_empty() -> None:
    """Two far pairs and an outlier: whichever images are the first centres, every cluster ends with an image."""
    rows = np.array([[0.0, 0], [0.1, 0], [0.05, 0], [9, 0], [9.1, 0], [50, 0]])[None]
    for seed in range(30):
        found = kmeans(inner_products(rows), 4, inits=1, seed=seed)
        assert sorted(set(found.labels[0].tolist())) == [0, 1, 2, 3]
        np.testing.assert_allclose(found.coefficients[0].sum(-1), 1)


def test_batches_hold_equal_sizes_and_no_more_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COEFFICIENTS", 60)
    groups = list(batches([5, 7, 5, 5, 100, 5], floats_per_class=4))
    assert groups == [[0, 2, 3], [5], [1], [4]]


def test_counts_of_distinct_images() -> None:
    rows = np.stack(classes(4, 6)).astype(np.float64)
    rows[1, 3] = rows[1, 0]
    rows[2] = rows[2, 0]
    rows[3, 5] = rows[3, 0] * (1 + 1e-13)  # so near that only a look can tell
    found = distinct_counts(rows, inner_products(rows))
    assert found.tolist() == [len(np.unique(one, axis=0)) for one in rows] == [6, 5, 1, 6]


def test_minus_zero_is_zero() -> None:
    assert len(distinct_rows(np.array([[0.0, 1.0], [-0.0, 1.0]]))) == 1
