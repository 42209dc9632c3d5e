"""Random draws are pure functions: pinned values, coverage, independence of one position from another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lada_ray.method import draws


def test_generators_differ_by_seed_purpose_and_position() -> None:
    def first(*key: object) -> float:
        return draws.generator(*key).random()  # type: ignore[arg-type]

    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (0, "a", 0)]
    assert len({first(*key) for key in keys}) == len(keys)
    assert first(0, "a", 3, 4) == first(0, "a", 3, 4)


def test_the_first_numbers_are_pinned() -> None:
    """Changing these breaks the promise that a run, continued by a later version, ends the same."""
    assert draws.batch_rows(0, 0, 0, 10, 4).tolist() == [5, 9, 0, 2]
    assert draws.view_choice(0, 1, 2, 8, 8).tolist() == [1, 2, 2, 1, 4, 5, 0, 0]
    noise = [-0.6909427, -0.0037467892, 0.8812064, 2.0653477]
    np.testing.assert_allclose(draws.replay_noise(0, 1, 2, 2, 2).ravel(), noise, rtol=1e-6)
    assert int(torch.randint(10**6, (1,), generator=draws.torch_generator(0, "tuner", 1))) == 922014


@pytest.mark.parametrize(("images", "batch", "steps"), [(10, 4, 3), (8, 4, 2), (3, 64, 1), (1, 1, 1)])
def test_an_epoch_shows_every_image_once_and_keeps_the_last_partial_batch(
    images: int, batch: int, steps: int
) -> None:
    assert draws.steps_per_epoch(images, batch) == steps
    for epoch in range(3):
        parts = [draws.batch_rows(7, 2, epoch * steps + i, images, batch) for i in range(steps)]
        assert [len(part) for part in parts[:-1]] == [batch] * (steps - 1)
        assert len(parts[-1]) == images - batch * (steps - 1)
        assert sorted(np.concatenate(parts)) == list(range(images))


def test_every_epoch_and_task_has_an_order_of_its_own() -> None:
    orders = {tuple(draws.batch_rows(0, task, epoch, 20, 20)) for task in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_views_are_uniform_and_one_view_is_no_choice() -> None:
    chosen = np.concatenate([draws.view_choice(0, 0, step, 64, 8) for step in range(250)])
    counts = np.bincount(chosen, minlength=8)
    assert len(counts) == 8
    np.testing.assert_allclose(counts, 2000, atol=150)  # 3.6 standard deviations
    assert not draws.view_choice(0, 0, 0, 64, 1).any()


def test_noise_is_standard_normal_and_fresh_at_every_step() -> None:
    noise = np.stack([draws.replay_noise(0, 1, step, 40, 50) for step in range(10)])
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(noise.reshape(10, -1)) - np.eye(10)).max() < 0.08


def test_a_step_s_draws_do_not_depend_on_other_steps() -> None:
    alone = [
        draws.batch_rows(0, 1, 9, 30, 4),
        draws.view_choice(0, 1, 9, 4, 8),
        draws.replay_noise(0, 1, 9, 3, 5),
    ]
    for step in range(9):
        draws.batch_rows(0, 1, step, 30, 4)
        draws.view_choice(0, 1, step, 4, 8)
        draws.replay_noise(0, 1, step, 3, 5)
    after = [
        draws.batch_rows(0, 1, 9, 30, 4),
        draws.view_choice(0, 1, 9, 4, 8),
        draws.replay_noise(0, 1, 9, 3, 5),
    ]
    assert all(map(np.array_equal, alone, after))


def test_global_generators_are_neither_used_nor_touched() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())
    noise = draws.replay_noise(0, 0, 0, 2, 2)
    weights = torch.randn(3, generator=draws.torch_generator(0, "tuner", 0))
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())
    torch.manual_seed(1)
    assert np.array_equal(noise, draws.replay_noise(0, 0, 0, 2, 2))
    assert torch.equal(weights, torch.randn(3, generator=draws.torch_generator(0, "tuner", 0)))
