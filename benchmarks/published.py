"""The published procedure, implemented plainly: what the product is measured against."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

Floats = npt.NDArray[np.float32]


def fit_memory(unit: Floats, vectors: int) -> Floats:
    """k-means centres of one class, [λ1, d], with scikit-learn; of few images the images themselves."""
    if len(unit) <= vectors:
        return unit
    return (
        KMeans(vectors, n_init=10, random_state=42)
        .fit(unit.astype(np.float64))
        .cluster_centers_.astype(np.float32)
    )


def fit_mixture(raw: Floats, components: int) -> tuple[Floats, Floats, Floats]:
    """Means [K, d], variances and weights [K] of one class, with scikit-learn."""
    model = GaussianMixture(min(components, len(raw)), covariance_type="spherical", random_state=42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(raw.astype(np.float64))
    means, variances, weights = model.means_, model.covariances_, model.weights_
    return means.astype(np.float32), variances.astype(np.float32), weights.astype(np.float32)
