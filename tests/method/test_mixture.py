"""Mixtures against scikit-learn's, their edge cases, and the statistics of replayed features."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from lada_ray.method.mixture import fit_mixture, replay_features


def rows(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    """Raw features of about the length that CLIP gives."""
    return (10 * np.random.default_rng(seed).standard_normal((n, d))).astype(np.float32)


def test_equals_scikit_learn_s_spherical_mixture() -> None:
    features = rows(40)
    model = GaussianMixture(4, covariance_type="spherical", random_state=42).fit(features.astype(np.float64))
    mixture = fit_mixture(features, 4)
    np.testing.assert_array_equal(mixture.means, model.means_.astype(np.float32))
    np.testing.assert_array_equal(mixture.variances, model.covariances_.astype(np.float32))
    np.testing.assert_array_equal(mixture.weights, model.weights_.astype(np.float32))
    assert [a.shape for a in mixture] == [(4, 6), (4,), (4,)]
    assert {a.dtype for a in mixture} == {np.dtype(np.float32)}
    assert mixture.weights.sum() == pytest.approx(1)


def test_one_component_is_mean_and_mean_variance() -> None:
    features = rows(30)
    mixture = fit_mixture(features, 1)
    np.testing.assert_allclose(mixture.means[0], features.mean(0), rtol=1e-5)
    assert mixture.variances[0] == pytest.approx(features.var(axis=0).mean() + 1e-6, rel=1e-5)


def test_the_seed_is_the_method_s_own() -> None:
    features = rows(40)
    assert all(map(np.array_equal, fit_mixture(features, 4), fit_mixture(features, 4, seed=42)))
    assert not np.array_equal(fit_mixture(features, 4, seed=1).means, fit_mixture(features, 4).means)


@pytest.mark.parametrize("repeats", [1, 9])
def test_one_distinct_image_is_one_component(repeats: int) -> None:
    image = rows(1)
    mixture = fit_mixture(np.repeat(image, repeats, axis=0), 4)
    np.testing.assert_array_equal(mixture.means, image)
    assert mixture.variances.tolist() == [pytest.approx(1e-6)]
    assert mixture.weights.tolist() == [1]


def test_fewer_distinct_images_than_components() -> None:
    images = rows(3)
    mixture = fit_mixture(images, 4)
    np.testing.assert_allclose(np.sort(mixture.means, axis=0), np.sort(images, axis=0), rtol=1e-5)
    np.testing.assert_allclose(mixture.weights, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(mixture.variances, 1e-6, rtol=1e-3)


def test_duplicates_count_in_the_weights_only() -> None:
    images = rows(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a tiny class is no reason to warn
        mixture = fit_mixture(images[[0, 1, 1, 1]], 4)
    order = np.argsort(mixture.weights)
    np.testing.assert_allclose(mixture.weights[order], [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(mixture.means[order], images, rtol=1e-5)


def test_replay_draws_with_the_component_s_standard_deviation() -> None:
    """A replayed feature is p̃ = μ + e sqrt(Tr(Σ)/d)."""
    means, variances = torch.from_numpy(rows(3, 50)), torch.tensor([4.0, 0.25, 1e-6])
    noise = torch.randn(400, 3, 50, generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([replay_features(means, variances, e) for e in noise])
    trace = drawn.var(dim=0).sum(dim=1)  # Tr(Σ) of each component
    np.testing.assert_allclose(torch.sqrt(trace / 50), torch.sqrt(variances), rtol=0.01)
    np.testing.assert_allclose(drawn.mean(0), means, atol=0.5)
    torch.testing.assert_close(drawn[0, 1], means[1] + 0.5 * noise[0, 1])


def test_replay_without_noise_is_the_means() -> None:
    means = torch.from_numpy(rows(3))
    assert replay_features(means, torch.ones(3), None) is means
