"""The budget of replayed rows: probabilities, unbiased draws, and what the learner makes of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lada_ray.method import draws
from lada_ray.method.learner import Seen, TaskData, TaskLearner
from lada_ray.method.objective import Classifier, task_logits
from lada_ray.method.replay import FLOOR, ReplayRows, importance, inclusion, pulls
from lada_ray.method.settings import LadaSettings

WIDTH, TAU = 8, 20.0
SETTINGS = LadaSettings(text_tuner="none", epochs=40, batch_size=4, beta=1.5, lr=5e-3)


def seen(classes: int = 6, components: int = 4) -> Seen:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(components), classes).astype(np.float32).ravel()
    mask = np.ones((classes, 3), np.bool_)
    mask[1, 1:] = False
    return Seen(
        text=rng.standard_normal((classes, WIDTH), np.float32),
        memory=0.4 * rng.standard_normal((classes, 3, WIDTH), np.float32),
        mask=mask,
        means=rng.standard_normal((classes * components, WIDTH), np.float32),
        variances=np.full(classes * components, 0.01, np.float32),
        weights=weights,
        labels=np.repeat(np.arange(classes), components),
    )


def task() -> TaskData:
    rng = np.random.default_rng(1)
    views = rng.standard_normal((8, 2, WIDTH), np.float32)
    memory = 0.4 * rng.standard_normal((2, 3, WIDTH), np.float32)
    text = rng.standard_normal((2, WIDTH), np.float32)
    return TaskData(1, views, np.arange(8) % 2, memory, np.ones((2, 3), np.bool_), text)


def learner(rows: int | None, columns: list[int] | None = None, **changed: object) -> TaskLearner:
    what = replace(task(), columns=None if columns is None else np.array(columns))
    return TaskLearner(what, seen(), None, TAU, replace(SETTINGS, replay_rows=rows, **changed), 3)  # type: ignore[arg-type]


# ---------------------------------------------------------------- probabilities


def test_probabilities_are_proportional_and_sum_to_the_rows() -> None:
    np.testing.assert_allclose(inclusion(np.array([1.0, 2, 3, 4]), 2), [0.2, 0.4, 0.6, 0.8])


def test_what_the_largest_cannot_use_goes_to_the_others() -> None:
    probability = inclusion(np.array([10.0, 3, 1, 1, 1]), 3)
    np.testing.assert_allclose(probability, [1, 1, 1 / 3, 1 / 3, 1 / 3])
    random = np.random.default_rng(0).pareto(0.5, 200) + 1e-3
    for rows in (1, 50, 199):
        probability = inclusion(random, rows)
        assert probability.sum() == pytest.approx(rows)
        assert probability.max() <= 1
        open_ones = probability < 1
        ratios = probability[open_ones] / random[open_ones]
        np.testing.assert_allclose(ratios, ratios[0])


def test_importance_leaves_nobody_out() -> None:
    found = importance(np.array([0.5, 0.5, 1.0]), np.array([0.0, 0.6, 0.0]))
    np.testing.assert_allclose(found, [0.5 * FLOOR * 0.2, 0.5 * (0.6 + FLOOR * 0.2), FLOOR * 0.2])
    assert (importance(np.ones(2), np.zeros(2)) > 0).all()  # nothing is near the new classes: all alike


# ---------------------------------------------------------------- draws


def test_draws_are_unbiased_and_never_repeat_a_component() -> None:
    weights = np.random.default_rng(0).pareto(1.0, 40) + 0.01
    rows = ReplayRows(weights, 13, seed=5, task=2)
    total, steps = np.zeros(40), 4000
    for step in range(steps):
        drawn, factor = rows.draw(step)
        assert len(drawn) == 13
        assert len(np.unique(drawn)) == 13
        np.add.at(total, drawn, factor)
    # Drawn as often as 1 / factor says: an average step counts every component once.
    assert (np.abs(total / steps - 1) <= 3 / (steps * rows.probability)).all()


def test_draws_are_a_function_of_seed_task_and_step() -> None:
    weights = np.ones(100)
    first, again = (ReplayRows(weights, 10, 0, 1).draw(7)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for seed, position, step in ((1, 1, 7), (0, 2, 7), (0, 1, 8)):
        assert not np.array_equal(first, ReplayRows(weights, 10, seed, position).draw(step)[0])


def test_every_component_has_its_turn_soon() -> None:
    """At random, 13 % of the components would still be waiting after twice M / rows steps."""
    rows = ReplayRows(np.ones(1000), 50, 0, 1)
    visited = np.unique(np.concatenate([rows.draw(step)[0] for step in range(40)]))
    assert len(visited) > 980


def test_starts_are_uniform_over_seeds() -> None:
    starts = [draws.replay_start(seed, 3, 11) for seed in range(2000)]
    counts, _ = np.histogram(starts, bins=10, range=(0, 1))
    assert counts.min() > 150
    assert max(starts) < 1


# ---------------------------------------------------------------- pulls


def classifier(text: np.ndarray, memory: np.ndarray, mask: np.ndarray) -> Classifier:
    return Classifier(F.normalize(torch.tensor(text), dim=-1), torch.tensor(memory), torch.tensor(mask))


def test_pulls_are_the_softmax_over_the_new_classes() -> None:
    s, t, alpha, beta = seen(), task(), 1.2, 1.5
    old, new = classifier(s.text, s.memory, s.mask), classifier(t.text, t.memory, t.mask)
    z = F.normalize(torch.tensor(s.means), dim=-1)
    found = pulls(z, torch.tensor(s.labels), old, new, (TAU, alpha, beta))
    for i, row in enumerate(z):
        memory = [
            exists.sum() * math.exp(-beta * (1 - float(row @ vectors[exists].mean(0))))
            for vectors, exists in zip(old.memory, old.mask, strict=True)
        ] + [sum(math.exp(-beta * (1 - float(row @ w))) for w in vectors) for vectors in new.memory]
        logits = [
            TAU * float(row @ text) + alpha * float(affinity)
            for text, affinity in zip([*old.text, *new.text], memory, strict=True)
        ]
        softmax = np.exp(np.array(logits) - max(logits))
        softmax /= softmax.sum()
        assert float(found[i]) == pytest.approx(np.linalg.norm(softmax[6:]), rel=1e-4)


@pytest.mark.parametrize("case", ["new classes", "several blocks of a class", "more of a known class"])
def test_pulls_are_gradients_where_the_vectors_of_a_class_are_one(case: str) -> None:
    s, t, scales = seen(), task(), (TAU, 1.2, 1.5)
    alike = np.repeat(s.memory[:, :1], 3, axis=1)
    old, new = classifier(s.text, alike, s.mask), classifier(t.text, t.memory, t.mask)
    if case == "several blocks of a class":
        owner = torch.tensor([0, 1, 0, 2, 1, 0])
        old = old._replace(text=old.text[:3], owner=owner)
    columns = torch.tensor([2, 6]) if case == "more of a known class" else None
    z, labels = F.normalize(torch.tensor(s.means), dim=-1), torch.tensor(s.labels) % len(old.text)
    logits = task_logits(z, old, new, scales, columns).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    own = torch.arange(len(old.text), len(old.text) + 2) if columns is None else columns
    found = pulls(z, labels, old, new, scales, columns)
    torch.testing.assert_close(found, gradient[:, own].norm(dim=1), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- the learner


def test_a_budget_that_covers_all_changes_no_bit() -> None:
    losses = [[one.step() for _ in range(5)] for one in (learner(None), learner(24), learner(512))]
    assert losses[0] == losses[1] == losses[2]
    assert learner(23).step() != losses[0][0]


def test_sampled_rows_count_as_much_as_all_of_them() -> None:
    one, s = learner(7), seen()
    weights, batches = np.zeros(24), 4000
    for step in range(batches):
        features, labels, weight = one._replayed(step)
        assert features.shape == (7, WIDTH)
        drawn = one._replay.draw(step)[0]  # type: ignore[union-attr]
        np.testing.assert_array_equal(labels, s.labels[drawn])
        np.add.at(weights, drawn, weight.numpy())
    np.testing.assert_allclose(weights / batches, 64 * s.weights, rtol=0.1, atol=0.05)
    rows, total = one._rows(0)
    assert (len(rows.features), total) == (
        4 + 7,
        4 + 24,
    )  # the mean is still over all rows of the published loss


@pytest.mark.parametrize("columns", [None, [2, 6]])
def test_the_gradient_is_that_of_the_whole_replay_on_average(columns: list[int] | None) -> None:
    """Steps at fixed parameters, without noise: the mean of the sampled gradients is the whole one's."""

    def gradient(rows: int | None, steps: int) -> np.ndarray:
        one = learner(rows, columns, replay_noise=False, lr=1e-30)
        found = []
        for _ in range(steps):
            one.step()
            assert one.memory.grad is not None
            found.append(one.memory.grad.numpy().copy())
        return np.mean(found, axis=0)

    whole, sampled = gradient(None, 80), gradient(6, 80)
    error = np.linalg.norm(sampled - whole) / np.linalg.norm(whole)
    assert error < (0.002 if columns is None else 0.005)
    one = learner(6, columns, replay_noise=False, lr=1e-30)
    one.step()
    assert np.linalg.norm(one.memory.grad.numpy() - whole) / np.linalg.norm(whole) > 0.005  # type: ignore[union-attr]


def test_going_on_from_a_checkpoint_draws_the_same() -> None:
    whole, first = learner(7), learner(7)
    losses = [whole.step() for _ in range(12)]
    for _ in range(6):
        first.step()
    second = learner(7)
    second.load_state_dict(first.state_dict())
    assert [second.step() for _ in range(6)] == losses[6:]
    np.testing.assert_array_equal(second.learnt().memory, whole.learnt().memory)
