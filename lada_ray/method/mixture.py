"""Per-class Gaussian mixtures with spherical components, and the features replayed from them."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from lada_ray.method.memory import distinct_rows

MIXTURE_SEED = 42
# scikit-learn's GaussianMixture default; also the variance of a class that has one image.
REG_COVAR = 1e-6


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
        means [K, d], variances [K], weights [K], fitted in float64 with scikit-learn's defaults (one init,
        reg_covar 1e-6, tol 1e-3) and kept as float32.
    """
    rows = features.astype(np.float64)
    distinct = distinct_rows(rows)
    if len(distinct) == 1:
        return Mixture(distinct.astype(np.float32), np.full(1, REG_COVAR, np.float32), np.ones(1, np.float32))
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
