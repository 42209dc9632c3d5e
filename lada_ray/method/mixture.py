"""Per-class Gaussian mixtures with spherical components, and the features replayed from them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lada_ray.method.kmeans import (
    MOST_IMAGES,
    Doubles,
    batches,
    distinct_counts,
    distinct_rows,
    inner_products,
    kmeans,
    one_thread,
)

MIXTURE_SEED = 42
# scikit-learn's GaussianMixture default; also the variance of a class that has one image.
REG_COVAR = 1e-6
# scikit-learn's defaults, too: least change of the mean log-likelihood to go on, and most iterations.
TOLERANCE = 1e-3
MAX_EM_ITERATIONS = 100


class Mixture(NamedTuple):
    """K spherical components: means [K, d], variances [K] (one per component), weights [K] summing to 1."""

    means: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]


def fit_mixture(features: npt.NDArray[np.floating], components: int, seed: int = MIXTURE_SEED) -> Mixture:
    """Fit one class's mixture to its raw (not normalised) deterministic features.

    Args:
        features: [n, d], n >= 1, as the encoder gives them.
        components: λ2; with fewer distinct rows, as many components as distinct rows.
        seed: of the k-means initialisation; the method keeps 42 whatever the run's seed.

    Returns:
        means [K, d], variances [K], weights [K], fitted in float64 as scikit-learn does by default (one init,
        reg_covar 1e-6, tol 1e-3) and kept as float32.
    """
    return fit_mixtures([features], components, seed)[0]


def fit_mixtures(
    classes: Sequence[npt.NDArray[np.floating]], components: int, seed: int = MIXTURE_SEED
) -> list[Mixture]:
    """`fit_mixture` of many classes, each [n_j, d]: those with equally many images are done at once.

    The fit of a class does not depend, in any bit, on the classes that are fitted with it.
    """
    fits: dict[int, Mixture] = {}
    with one_thread():
        for group in batches([len(rows) for rows in classes], components):
            rows = np.stack([classes[j] for j in group]).astype(np.float64)
            fits |= zip(group, _fit_equal(rows, components, seed), strict=True)
    return [fits[j] for j in range(len(classes))]


def _fit_equal(rows: Doubles, components: int, seed: int) -> list[Mixture]:
    """Fit classes of equally many images, [B, n, d]."""
    if rows.shape[1] > MOST_IMAGES:
        return [_fit_large(one, components, seed) for one in rows]
    gram = inner_products(rows)
    distinct = distinct_counts(rows, gram)
    number = np.minimum(distinct, components)
    fits = {b: _one_image(rows[b]) for b in np.flatnonzero(distinct == 1).tolist()}
    for k in np.unique(number[distinct > 1]).tolist():
        same = np.flatnonzero((number == k) & (distinct > 1))
        fits |= zip(same.tolist(), _fit_batch(rows[same], gram[same], k, seed), strict=True)
    return [fits[b] for b in range(len(rows))]


def _fit_batch(rows: Doubles, gram: Doubles, components: int, seed: int) -> list[Mixture]:
    """Fit B classes of n images with at least K distinct ones, [B, n, d], by their `inner_products`."""
    labels = kmeans(gram, components, inits=1, seed=seed).labels
    shares = (labels[:, :, None] == np.arange(components)).astype(np.float64)
    coefficients, variances, weights = _expectation_maximisation(gram, shares, rows.shape[2])
    means = coefficients @ rows
    return [
        Mixture(*(a.astype(np.float32) for a in fit)) for fit in zip(means, variances, weights, strict=True)
    ]


def _one_image(rows: Doubles) -> Mixture:
    """The mixture of a class that has one distinct image."""
    return Mixture(rows[:1].astype(np.float32), np.full(1, REG_COVAR, np.float32), np.ones(1, np.float32))


def _fit_large(rows: Doubles, components: int, seed: int) -> Mixture:
    """Fit one class of many images, [n, d], with scikit-learn itself."""
    # Slow to import, and few classes have so many images.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    distinct = distinct_rows(rows)
    if len(distinct) == 1:
        return _one_image(rows)
    model = GaussianMixture(
        n_components=min(components, len(distinct)),
        covariance_type="spherical",
        reg_covar=REG_COVAR,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # As many components as distinct images is the published rule for tiny classes, not a sign of trouble.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows)
    return Mixture(*(a.astype(np.float32) for a in (model.means_, model.covariances_, model.weights_)))


def _expectation_maximisation(gram: Doubles, shares: Doubles, width: int) -> tuple[Doubles, Doubles, Doubles]:
    """EM with spherical components, as scikit-learn does it, on inner products.

    Args:
        gram: `inner_products` of B classes, [B, n, n].
        shares: of each image in each component at the start, [B, n, K].
        width: d.

    Returns:
        Means as coefficients on the images [B, K, n], variances [B, K], weights [B, K].
    """
    coefficients, variances, weights, squares = _maximise(gram, shares, width)
    bound = np.full(len(gram), -np.inf)
    active = np.arange(len(gram))
    for _ in range(MAX_EM_ITERATIONS):
        log_shares, likelihood = _expect(squares, variances[active], weights[active], width)
        coefficients[active], variances[active], weights[active], squares = _maximise(
            gram[active], np.exp(log_shares), width
        )
        going = np.abs(likelihood - bound[active]) >= TOLERANCE
        bound[active] = likelihood
        active, squares = active[going], squares[going]
        if not len(active):
            break
    return coefficients, variances, weights


def _expect(squares: Doubles, variances: Doubles, weights: Doubles, width: int) -> tuple[Doubles, Doubles]:
    """Log of each image's share in each component [B, n, K], and the mean log-likelihood of the images [B]."""
    normal = -0.5 * (width * np.log(2 * np.pi * variances)[:, None] + squares / variances[:, None])
    joint = normal + np.log(weights)[:, None]
    largest = joint.max(-1, keepdims=True)
    likelihood = largest + np.log(np.exp(joint - largest).sum(-1, keepdims=True))
    return joint - likelihood, likelihood[..., 0].mean(-1)


def _maximise(gram: Doubles, shares: Doubles, width: int) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Coefficients of the means [B, K, n], variances, weights [B, K], and squared distances [B, n, K] to the means."""
    members = shares.transpose(0, 2, 1)
    counts = members.sum(-1) + 10 * np.finfo(np.float64).eps
    coefficients = members / counts[..., None]
    products = coefficients @ gram
    norms = np.einsum("bii->bi", gram)[:, None]
    squares = np.maximum(norms - 2 * products + (products * coefficients).sum(-1, keepdims=True), 0)
    variances = (coefficients * squares).sum(-1) / width + REG_COVAR
    weights = counts / counts.sum(-1, keepdims=True)
    return coefficients, variances, weights, squares.transpose(0, 2, 1)


def replay_features(means: Tensor, variances: Tensor, noise: Tensor | None) -> Tensor:
    """One raw feature per component: p̃ = μ + e · sqrt(Tr(Σ)/d), the standard deviation of a spherical Σ.

    Args:
        means: μ, [M, d].
        variances: one per component, [M].
        noise: e, standard normal, [M, d]; None replays the means themselves.

    Returns:
        [M, d], raw: the caller normalises them together with the images' features.
    """
    if noise is None:
        return means
    return means + noise * torch.sqrt(variances).unsqueeze(1)
