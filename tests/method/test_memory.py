"""Memory vectors: grouped logits against the formula as a double loop, and the k-means initialisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from lada_ray.method import memory as module
from lada_ray.method.memory import distinct_rows, init_memory, memory_logits, stack_memory


def unit_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def naive_logits(
    z: torch.Tensor, w: torch.Tensor, beta: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """memory_j(z) = Σ_l exp(-β (1 - z·w_{j,l})), one affinity at a time."""
    logits = torch.zeros(len(z), len(w), dtype=torch.float64)
    for i in range(len(z)):
        for j in range(len(w)):
            for vector in range(w.shape[1]):
                if mask is None or mask[j, vector]:
                    logits[i, j] += math.exp(-beta * (1 - float(z[i] @ w[j, vector])))
    return logits


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(4) < torch.tensor([4, 1, 3, 2, 4]).unsqueeze(1)


@pytest.mark.parametrize("beta", [0.5, 1.0, 5.5])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_are_the_sums_of_the_formula(beta: float, masked: bool, mask: torch.Tensor) -> None:
    z, w = unit_rows(7, 6), unit_rows(5, 4, 6, seed=1)
    used = mask if masked else None
    torch.testing.assert_close(
        memory_logits(z, w, beta, used), naive_logits(z, w, beta, used), rtol=1e-12, atol=1e-12
    )


def test_vectors_that_are_not_unit_are_not_normalised() -> None:
    z, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[[2.0, 0.0]]])
    assert memory_logits(z, w, 1.0).item() == pytest.approx(math.exp(1.0))


def test_chunks_change_nothing_and_bound_what_is_held(
    monkeypatch: pytest.MonkeyPatch, mask: torch.Tensor
) -> None:
    z, w = unit_rows(7, 6), unit_rows(5, 4, 6, seed=1)
    whole = memory_logits(z, w, 1.5, mask)
    held = []

    def spy(features: torch.Tensor, part: torch.Tensor, *rest: object) -> torch.Tensor:
        held.append(len(features) * part.shape[0] * part.shape[1])
        return original(features, part, *rest)

    original = module._grouped_affinity
    monkeypatch.setattr(module, "_grouped_affinity", spy)
    monkeypatch.setattr(module, "CPU_AFFINITIES", 2 * 7 * 4)
    torch.testing.assert_close(memory_logits(z, w, 1.5, mask), whole, rtol=1e-12, atol=1e-12)
    assert held == [56, 56, 28]
    monkeypatch.setattr(module, "CPU_AFFINITIES", 1)  # less than one class: still a class at a time
    torch.testing.assert_close(memory_logits(z, w, 1.5, mask), whole, rtol=1e-12, atol=1e-12)
    assert max(held) == 56


def test_a_class_s_vectors_never_meet_another_class_s_sum() -> None:
    """A dense (all vectors x all classes) matrix would be 2000 x 500; the largest tensor here is w itself."""
    z, w = unit_rows(3, 4).float(), unit_rows(500, 4, 4, seed=1).float()
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Sizes():
        memory_logits(z, w, 1.0)
    assert max(sizes) == max(w.numel(), 3 * 500 * 4)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_formula(masked: bool, mask: torch.Tensor) -> None:
    """d/dw_{j,l} Σ g_ij memory_j(z_i) = Σ_i g_ij β exp(-β (1 - z_i·w_{j,l})) z_i."""
    z, w, beta = unit_rows(7, 6), unit_rows(5, 4, 6, seed=1), 1.7
    g = unit_rows(7, 5, seed=2)
    leaf = w.clone().requires_grad_()
    memory_logits(z, leaf, beta, mask if masked else None).backward(g)
    expected = torch.zeros_like(w)
    for i in range(7):
        for j in range(5):
            for vector in range(4):
                if not masked or mask[j, vector]:
                    scale = g[i, j] * beta * math.exp(-beta * (1 - float(z[i] @ w[j, vector])))
                    expected[j, vector] += scale * z[i]
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-12, atol=1e-12)
    if masked:
        assert (leaf.grad[~mask] == 0).all()


def test_no_classes_and_no_rows() -> None:
    assert memory_logits(torch.zeros(3, 4), torch.zeros(0, 1, 4), 1.0).shape == (3, 0)
    assert memory_logits(torch.zeros(0, 4), torch.zeros(2, 1, 4), 1.0).shape == (0, 2)


def test_distinct_rows_keep_the_order_of_first_appearance() -> None:
    rows = np.array([[3.0, 1], [1, 2], [3, 1], [0, 5], [1, 2]])
    assert distinct_rows(rows).tolist() == [[3, 1], [1, 2], [0, 5]]


def test_few_images_are_the_memory_themselves() -> None:
    z = unit_rows(5, 8).float().numpy()
    np.testing.assert_array_equal(init_memory(z, 16), z)
    np.testing.assert_array_equal(init_memory(z, 5), z)
    np.testing.assert_array_equal(init_memory(z[:1], 16), z[:1])


def test_duplicates_count_once() -> None:
    z = unit_rows(3, 8).float().numpy()
    np.testing.assert_array_equal(init_memory(z[[0, 1, 0, 2, 2, 1, 0]], 4), z)
    np.testing.assert_array_equal(init_memory(np.repeat(z[:1], 40, axis=0), 16), z[:1])


def test_many_images_give_scikit_learn_s_centres() -> None:
    z = unit_rows(60, 8).float().numpy()
    memory = init_memory(z, 4)
    kmeans = KMeans(n_clusters=4, n_init=10, random_state=42).fit(z.astype(np.float64))
    np.testing.assert_array_equal(memory, kmeans.cluster_centers_.astype(np.float32))
    assert memory.dtype == np.float32
    assert (np.linalg.norm(memory, axis=1) < 0.95).all()  # means of unit vectors, not normalised again


def test_duplicates_among_many_images_weigh_in_k_means() -> None:
    z = unit_rows(6, 8).float().numpy()[[0, 0, 0, 0, 1, 2, 3, 4, 5]]
    kmeans = KMeans(n_clusters=4, n_init=10, random_state=42).fit(z.astype(np.float64))
    np.testing.assert_array_equal(init_memory(z, 4), kmeans.cluster_centers_.astype(np.float32))


def test_stack_pads_with_masked_zeros() -> None:
    memory, mask = stack_memory([np.full((n, 2), n, np.float32) for n in (2, 1, 3)])
    assert memory[..., 0].tolist() == [[2, 2, 0], [1, 0, 0], [3, 3, 3]]
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
