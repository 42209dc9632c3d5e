"""The recursive solutions against joint ones, and the blend with zero-shot probabilities by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lada_ray.method import rail
from lada_ray.method.rail import RailDual, RailPrimal, dual_regression, mixed, primal_regression

WIDTH, DIMENSIONS = 16, 60
# (images per class, number of seen classes): new classes, then class 1 again beside a new one, then old ones only.
TASKS = (({0: 7, 1: 4}, 2), ({2: 5, 3: 1, 4: 9}, 5), ({1: 6, 5: 3}, 6), ({0: 2, 4: 1}, 6))
Task = tuple[np.ndarray, np.ndarray, int]


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    rng = np.random.default_rng(0)
    return [_draw_task(rng, images, classes) for images, classes in TASKS]


def _draw_task(rng: np.random.Generator, images: dict[int, int], classes: int) -> Task:
    labels = rng.permutation(np.repeat(list(images), list(images.values())))
    unit = rng.normal(size=(len(labels), WIDTH)) + 2 * np.eye(WIDTH)[labels]
    return (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32), labels, classes


def _primal(**changes: Any) -> RailPrimal:
    return RailPrimal(WIDTH, seed=3, dimensions=DIMENSIONS, **{"dtype": torch.float64, **changes})


def _joint(tasks: list[Task]) -> tuple[np.ndarray, np.ndarray]:
    """All images so far, and their one-hot labels."""
    labels = np.concatenate([labels for _, labels, _ in tasks])
    return np.concatenate([unit for unit, _, _ in tasks]).astype(np.float64), np.eye(tasks[-1][2])[labels]


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_primal_equals_the_joint_solution(
    tasks: list[Task], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rail, "CHUNK_ROWS", rows)
    solver = _primal()
    projection = solver.learn(*tasks[0])["projection"].astype(np.float64)
    for k in range(1, len(tasks)):
        kept = solver.learn(*tasks[k])
        assert list(kept) == ["weights"]
        unit, targets = _joint(tasks[: k + 1])
        features = np.maximum(unit @ projection, 0)
        inverse = np.linalg.inv(features.T @ features + 0.1 * np.eye(DIMENSIONS))
        np.testing.assert_allclose(solver.state()["inverse"], inverse, atol=1e-9)
        np.testing.assert_allclose(solver.state()["weights"], inverse @ features.T @ targets, atol=1e-9)
        np.testing.assert_allclose(kept["weights"], inverse @ features.T @ targets, atol=1e-6)


def test_primal_in_float32_is_close_to_float64(tasks: list[Task]) -> None:
    exact, fast = _primal(), _primal(dtype=torch.float32)
    for task in tasks:
        weights = exact.learn(*task)["weights"]
        np.testing.assert_allclose(fast.learn(*task)["weights"], weights, atol=2e-6)
    assert fast.state()["inverse"].dtype == np.float32


def test_dual_equals_the_joint_solution(tasks: list[Task]) -> None:
    solver = RailDual()
    for k, task in enumerate(tasks):
        kept = solver.learn(*task)
        np.testing.assert_array_equal(kept["features"], task[0])
        unit, targets = _joint(tasks[: k + 1])
        # The features' lengths are one to float32 rounding only: both sides take |a - b|² as 2 - 2 a·b.
        kernel = np.exp(-0.1 * (2 - 2 * unit @ unit.T))
        joint = np.linalg.solve(kernel + 1e-3 * np.eye(len(unit)), targets)
        np.testing.assert_allclose(solver.state()["coefficients"], joint, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(kept["coefficients"], joint, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [_primal, lambda: _primal(dtype=torch.float32), RailDual])
def test_a_solver_goes_on_from_a_saved_state_bit_by_bit(
    tasks: list[Task], make: Callable[[], RailPrimal | RailDual]
) -> None:
    straight, fresh = make(), make()
    assert straight.state() == {}
    fresh.load_state({})
    for task in tasks:
        resumed = make()
        resumed.load_state({name: array.copy() for name, array in straight.state().items()})
        kept, again = straight.learn(*task), resumed.learn(*task)
        _assert_same(kept, again)
        _assert_same(straight.state(), resumed.state())
        _assert_same(kept, fresh.learn(*task))


def test_a_loaded_state_is_left_alone(tasks: list[Task]) -> None:
    for make in (_primal, RailDual):
        solver, other = make(), make()
        solver.learn(*tasks[0])
        state = solver.state()
        before = {name: array.copy() for name, array in state.items()}
        other.load_state(state)
        other.learn(*tasks[1])
        _assert_same(before, state)


def _assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        np.testing.assert_array_equal(array, b[name])


def test_a_pack_s_tensors_do_not_change_with_the_next_task(tasks: list[Task]) -> None:
    solver = _primal(dtype=torch.float32)
    kept = solver.learn(*tasks[2])["weights"]
    before = kept.copy()
    solver.learn(*tasks[3])
    np.testing.assert_array_equal(kept, before)


def test_the_projection_is_a_pure_function_of_the_seed() -> None:
    projection = rail.draw_projection(300, 400, 1)
    assert projection.dtype == np.float32
    np.testing.assert_array_equal(projection, rail.draw_projection(300, 400, 1))
    assert not np.array_equal(projection, rail.draw_projection(300, 400, 2))
    assert projection.mean() == pytest.approx(0, abs=3e-4)
    assert projection.var() == pytest.approx(1 / 900, rel=0.01)


def test_primal_regression() -> None:
    z, projection = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.5, 2.0]])
    # relu(z R) = relu([0.6, -0.2, 1.6]) = [0.6, 0, 1.6]
    weights = torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.5, -1.0]])
    assert primal_regression(z, projection, weights)[0].tolist() == pytest.approx([1.4, -1.6])
    assert primal_regression(z, projection, weights[:, :0]).shape == (1, 0)


def test_dual_regression() -> None:
    z, features = torch.tensor([[0.6, 0.8]]), torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, -1.0]])
    # |z - x|² = 0, 0.8, 3.6
    kernel = np.exp([0, -0.4, -1.8])
    coefficients = torch.tensor([[1.0, 3.0], [2.0, 0.0], [-1.0, 1.0]])
    expected = kernel @ coefficients.numpy()
    assert dual_regression(z, features, coefficients, gamma=0.5)[0].tolist() == pytest.approx(expected)
    assert dual_regression(z, features[:0], coefficients[:0, :0]).shape == (1, 0)
    assert gaussian_default(z, features) == pytest.approx(np.exp([0, -0.08, -0.36]))


def gaussian_default(z: torch.Tensor, features: torch.Tensor) -> list[float]:
    return dual_regression(z, features, torch.eye(3))[0].tolist()


def test_float32_loses_little_of_the_dual_s_large_coefficients(tasks: list[Task]) -> None:
    solver = RailDual()
    kept = [solver.learn(*task) for task in tasks]
    features = torch.from_numpy(np.concatenate([k["features"] for k in kept]))
    coefficients = torch.from_numpy(kept[-1]["coefficients"])
    exact = dual_regression(features.double(), features.double(), coefficients.double())
    assert coefficients.abs().max() > 10
    assert dual_regression(features, features, coefficients).sub(exact).abs().max() < 2e-5


# Classes 0 and 1 are seen, 2 is unseen; probabilities are made by hand, so logits are their logarithms.
P = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.2, 0.5], [0.4, 0.25, 0.35], [0.1, 0.6, 0.3]])
REGRESSION = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.5, -0.25], [0.5, 0.75]])


def test_mixed_by_hand() -> None:
    expected = [
        [0.1, 0.86, 0.04],  # the regression turns it to class 1
        [0.3, 0.2, 0.5],  # zero-shot says unseen: the regression has no say
        [-0.32, -0.15, 0.07],  # low outputs for all seen classes leave it to the unseen one
        [0.42, 0.72, 0.06],
    ]
    torch.testing.assert_close(mixed(P.log(), REGRESSION), torch.tensor(expected), atol=1e-6, rtol=0)


def test_the_weight_of_the_regression() -> None:
    torch.testing.assert_close(mixed(P.log(), REGRESSION, mix=0.0), P)
    half = mixed(P.log() + 7, REGRESSION, mix=0.5)[0]  # a shift of all logits changes nothing
    assert half.tolist() == pytest.approx([0.25, 0.65, 0.1], abs=1e-6)


def test_no_seen_class_is_zero_shot() -> None:
    torch.testing.assert_close(mixed(P.log(), torch.zeros(4, 0)), P)


def test_no_unseen_class() -> None:
    pair = torch.tensor([[0.75, 0.25]])
    assert mixed(pair.log(), REGRESSION[:1])[0].tolist() == pytest.approx([0.15, 0.85])


def test_mixed_leaves_its_arguments_alone_and_takes_no_images() -> None:
    logits, regression = P.log(), REGRESSION.clone()
    mixed(logits, regression)
    assert torch.equal(logits, P.log())
    assert torch.equal(regression, REGRESSION)
    assert mixed(logits[:0], regression[:0]).shape == (0, 3)
