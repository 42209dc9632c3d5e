"""RAIL: ridge regression onto one-hot labels of all seen classes, solved exactly as tasks arrive.

Source: Xu et al., NeurIPS 2024, arXiv 2406.18868. Both forms give what a joint solution over all tasks' images
would give, and differ in what they keep for it:

    primal   W = (ΦᵀΦ + λI)⁻¹ΦᵀY,  Φ = relu(XR)       the inverse P [D, D] and W, no images
    dual     A = (K + λI)⁻¹Y,  K = exp(-γ|x - x'|²)   all unit features and the factor of K + λI

A prediction blends the regression into the zero-shot probabilities where those point to a seen class (`mixed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lada_ray.method import draws
from lada_ray.method.settings import DIMENSIONS, DUAL_RIDGE, GAMMA, MIX, PRIMAL_RIDGE

# Images absorbed at once by the primal solver: it holds four [512, D] arrays, 0.25 GB at 15 000 in float64.
CHUNK_ROWS = 512

Floats = npt.NDArray[np.float32]
State = Mapping[str, npt.NDArray[Any]]


class RailPrimal:
    """Ridge regression on relu(z R) with a fixed random R, updated by the block Woodbury identity.

    Args:
        width: d, the width of the features.
        seed: of the projection.
        dimensions: D.
        ridge: λ.
        dtype: of the inverse P and of all sums; P takes D² of them, 0.9 GB in float32 at 15 000. Outputs
            differ from float64's by less than 1e-5 (measured: 1 200 images at D = 15 000, 30 000 at 1 500).
        device: where P lives.
    """

    def __init__(
        self,
        width: int,
        seed: int,
        dimensions: int = DIMENSIONS,
        ridge: float = PRIMAL_RIDGE,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.width, self.seed, self.dimensions = width, seed, dimensions
        self.ridge, self.dtype, self.device = ridge, dtype, device
        self._inverse: Tensor | None = None
        self._weights: Tensor | None = None

    def learn(self, unit: Floats, labels: npt.NDArray[np.int64], classes: int) -> dict[str, Floats]:
        """Absorb one task.

        Args:
            unit: unit features of the task's training images under the deterministic view, [n, d].
            labels: global class index of each, [n], < `classes`; classes of earlier tasks may return.
            classes: C, the number of seen classes, this task's included.

        Returns:
            "weights" [D, C] of all seen classes, which supersede those of earlier packs; from the first
            task also "projection" [d, D].
        """
        first = self._inverse is None
        projection = draw_projection(self.width, self.dimensions, self.seed)
        inverse, weights = self._begin(classes)
        self._absorb(inverse, weights, self._tensor(projection), self._tensor(unit), labels)
        self._inverse, self._weights = inverse, weights
        kept = {"weights": _as_floats(weights)}
        return {**kept, "projection": projection} if first else kept

    def _begin(self, classes: int) -> tuple[Tensor, Tensor]:
        """P, and W with columns of zeros for the new classes: (ΦᵀΦ + λI)⁻¹ΦᵀY of a class without images."""
        if self._inverse is None or self._weights is None:
            diagonal = torch.full((self.dimensions,), 1 / self.ridge, dtype=self.dtype, device=self.device)
            return torch.diag(diagonal), diagonal.new_zeros(self.dimensions, classes)
        return self._inverse, F.pad(self._weights, (0, classes - self._weights.shape[1]))

    def _absorb(
        self,
        inverse: Tensor,
        weights: Tensor,
        projection: Tensor,
        unit: Tensor,
        labels: npt.NDArray[np.int64],
    ) -> None:
        targets = _one_hot(labels, weights)
        for part, target in zip(unit.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True):
            _woodbury(inverse, weights, torch.relu(part @ projection), target)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that the next task needs: "inverse" [D, D] and "weights" [D, C]; nothing before the first task.

        On the CPU these are views, not copies: the next `learn` changes them.
        """
        if self._inverse is None or self._weights is None:
            return {}
        return {"inverse": self._inverse.cpu().numpy(), "weights": self._weights.cpu().numpy()}

    def load_state(self, state: State) -> None:
        """Go on from a copy of what `state` gave."""
        self._inverse = self._tensor(state["inverse"]) if state else None
        self._weights = self._tensor(state["weights"]) if state else None

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.tensor(array, dtype=self.dtype, device=self.device)


class RailDual:
    """Ridge regression in the space of a Gaussian kernel.

    It keeps every training feature and the lower Cholesky factor L of K + λI, N² numbers for N images; L grows
    by the Schur complement of the new images' block. λ is small (K + λI has a condition number of about N/λ):
    the factor loses fewer digits than the inverse does, float32 too many.

    Args:
        gamma: γ of the kernel exp(-γ|x - x'|²).
        ridge: λ.
        dtype: of the factor and the coefficients.
        device: where they live.
    """

    def __init__(
        self,
        gamma: float = GAMMA,
        ridge: float = DUAL_RIDGE,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:
        self.gamma, self.ridge, self.dtype, self.device = gamma, ridge, dtype, device
        self._features: Tensor | None = None
        self._factor = torch.zeros(0, 0, dtype=dtype, device=device)
        self._coefficients = torch.zeros(0, 0, dtype=dtype, device=device)

    def learn(self, unit: Floats, labels: npt.NDArray[np.int64], classes: int) -> dict[str, Floats]:
        """Absorb one task.

        Args:
            unit: unit features of the task's training images under the deterministic view, [n, d].
            labels: global class index of each, [n], < `classes`; classes of earlier tasks may return.
            classes: C, the number of seen classes, this task's included.

        Returns:
            "features" [n, d], this task's; "coefficients" [N, C] for the features of all tasks so far, in
            the order of learning, which supersede those of earlier packs.
        """
        added = torch.tensor(unit, dtype=torch.float32, device=self.device)
        features = added if self._features is None else torch.cat([self._features, added])
        old, new = features.to(self.dtype).tensor_split([len(features) - len(added)])
        coefficients = F.pad(self._coefficients, (0, classes - self._coefficients.shape[1]))
        self._factor, self._coefficients = _grow(
            self._factor,
            coefficients,
            gaussian_kernel(old, new, self.gamma),
            gaussian_kernel(new, new, self.gamma) + self.ridge * _eye(len(new), new),
            _one_hot(labels, coefficients),
        )
        self._features = features
        return {"features": _as_floats(added), "coefficients": _as_floats(self._coefficients)}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that the next task needs; nothing before the first task.

        "features" [N, d], "factor" [N, N] and "coefficients" [N, C].
        """
        if self._features is None:
            return {}
        kept = {"features": self._features, "factor": self._factor, "coefficients": self._coefficients}
        return {name: tensor.cpu().numpy() for name, tensor in kept.items()}

    def load_state(self, state: State) -> None:
        """Go on from a copy of what `state` gave."""
        nothing = np.zeros((0, 0))
        self._features = self._tensor(state["features"]).float() if state else None
        self._factor = self._tensor(state.get("factor", nothing))
        self._coefficients = self._tensor(state.get("coefficients", nothing))

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.tensor(array, dtype=self.dtype, device=self.device)


def draw_projection(width: int, dimensions: int, seed: int) -> Floats:
    """R [d, D] with entries from N(0, 1/(3d)), a pure function of the seed."""
    normal = draws.generator(seed, "rail projection").standard_normal((width, dimensions), np.float32)
    return normal * np.float32((3 * width) ** -0.5)


def gaussian_kernel(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """exp(-γ|a - b|²) between unit rows [N, d] and [M, d]: [N, M]. For unit rows |a - b|² = 2 - 2 a·b."""
    return torch.exp(2 * gamma * (a @ b.T - 1))


def primal_regression(unit_features: Tensor, projection: Tensor, weights: Tensor) -> Tensor:
    """Regression outputs relu(z R) W.

    Args:
        unit_features: z, [N, d], rows of unit length.
        projection: R, [d, D].
        weights: W, [D, C].

    Returns:
        [N, C]. [N, D] activations exist at once: the caller bounds N.
    """
    return torch.relu(unit_features @ projection) @ weights


def dual_regression(
    unit_features: Tensor, features: Tensor, coefficients: Tensor, gamma: float = GAMMA
) -> Tensor:
    """Regression outputs Σ_m exp(-γ|z - x_m|²) A_m.

    Args:
        unit_features: z, [N, d], rows of unit length.
        features: x, the unit training features of all tasks in the order of learning, [M, d].
        coefficients: A, [M, C].
        gamma: γ.

    Returns:
        [N, C]. [N, M] kernel values exist at once: the caller bounds N.
    """
    distances = torch.expm1(2 * gamma * (unit_features @ features.T - 1))
    # Coefficients of hundreds cancel to outputs near one: the constant part of the kernel is summed apart, which
    # makes float32 five times as exact.
    return distances @ coefficients + coefficients.sum(0, dtype=torch.float64).to(coefficients)


def mixed(text_logits: Tensor, regression: Tensor, mix: float = MIX) -> Tensor:
    """Zero-shot probabilities with the regression blended in where they point to a seen class.

    Args:
        text_logits: τ z·t̂_j, [N, C + U], seen classes first.
        regression: [N, C]; C may be 0.
        mix: weight of the regression, which counts as zero for unseen classes.

    Returns:
        [N, C + U]: p = softmax(text_logits) in rows whose argmax is an unseen class, else
        (1 - mix) p + mix [regression, 0]. The prediction is the argmax.
    """
    seen = regression.shape[1]
    p = text_logits.softmax(dim=1)
    blend = (1 - mix) * p
    blend[:, :seen] += mix * regression
    gate = text_logits.argmax(dim=1, keepdim=True)
    return torch.where(gate < seen, blend, p)


def _woodbury(inverse: Tensor, weights: Tensor, features: Tensor, targets: Tensor) -> None:
    """Absorb rows Φ [n, D] with targets Y [n, C]; changes P [D, D] and W [D, C] in place.

    With S = I + ΦPΦᵀ = LLᵀ and V = L⁻¹ΦP:  P ← P - VᵀV,  W ← W + VᵀL⁻¹(Y - ΦW).
    """
    product = features @ inverse
    factor = torch.linalg.cholesky(_eye(len(features), features) + product @ features.T)
    residual = targets - features @ weights
    product = torch.linalg.solve_triangular(factor, product, upper=False)
    residual = torch.linalg.solve_triangular(factor, residual, upper=False)
    inverse.addmm_(product.T, product, alpha=-1)
    weights.addmm_(product.T, residual)


def _grow(
    factor: Tensor, coefficients: Tensor, cross: Tensor, block: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Add n images to N: the factor [N + n, N + n] and the coefficients [N + n, C] of all.

    With B the kernel between old and new images [N, n], M = K + λI of the new ones and Z = L⁻¹B:
    M - ZᵀZ = L'L'ᵀ,  A' = (L'L'ᵀ)⁻¹(Y - BᵀA),  A ← A - L⁻ᵀZA'.
    """
    solved = torch.linalg.solve_triangular(factor, cross, upper=False)
    corner = torch.linalg.cholesky(block - solved.T @ solved)
    added = torch.cholesky_solve(targets - cross.T @ coefficients, corner)
    change = torch.linalg.solve_triangular(factor.T, solved @ added, upper=True)
    old, total = len(factor), len(factor) + len(corner)
    grown = factor.new_zeros(total, total)
    grown[:old, :old], grown[old:, :old], grown[old:, old:] = factor, solved.T, corner
    return grown, torch.cat([coefficients - change, added])


def _one_hot(labels: npt.NDArray[np.int64], weights: Tensor) -> Tensor:
    """Targets [n, C] in the type of `weights` [*, C]."""
    return F.one_hot(torch.tensor(labels, dtype=torch.int64), weights.shape[1]).to(weights)


def _eye(rows: int, like: Tensor) -> Tensor:
    return torch.eye(rows, dtype=like.dtype, device=like.device)


def _as_floats(tensor: Tensor) -> Floats:
    return tensor.to("cpu", torch.float32, copy=True).numpy()
