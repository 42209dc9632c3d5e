"""Temperatures found again in made-up logits, honest ones from images left out, and probabilities by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lada_ray.method import calibration as module
from lada_ray.method.calibration import (
    REPLAYED,
    Temperature,
    calibration_error,
    fit_temperature,
    probabilities,
    seen_temperature,
    shared_temperature,
    unseen_temperature,
)
from lada_ray.method.learner import Learnt, Seen, TaskData, TaskLearner
from lada_ray.method.memory import init_memory, stack_memory
from lada_ray.method.objective import Classifier, class_logits
from lada_ray.method.settings import LadaSettings

TAU = 20.0


def drawn(n: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=random)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_of_logits_is_found_again(true: float) -> None:
    logits, labels = drawn(4000, 7, 0)
    fitted = fit_temperature(true * logits, labels)
    assert fitted.value == pytest.approx(true, rel=0.05)
    assert fitted.images == 4000


def test_a_fitted_temperature_calibrates() -> None:
    logits, labels = drawn(4000, 7, 1)
    sure = 3 * logits
    correct = (sure.argmax(1) == labels).numpy()

    def error(t: float) -> float:
        return calibration_error((sure / t).softmax(1).amax(1).numpy(), correct)

    assert error(1.0) > 0.15
    assert error(fit_temperature(sure, labels).value) < 0.02


def test_images_that_are_all_recognised_or_absent_leave_it_finite() -> None:
    assert 0.05 < fit_temperature(torch.eye(3) * 5, torch.arange(3)).value < 1
    assert fit_temperature(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == Temperature(1.0, 0)
    assert fit_temperature(torch.ones(9, 1), torch.zeros(9, dtype=torch.int64)).value == pytest.approx(
        1, abs=1e-4
    )


def test_packs_share_the_geometric_mean_by_images() -> None:
    assert shared_temperature([Temperature(1.0, 100), Temperature(8.0, 50)]) == pytest.approx(2.0)
    assert shared_temperature([Temperature(3.0, 10), Temperature(1.0, 0)]) == pytest.approx(3.0)
    assert shared_temperature([Temperature(5.0, 0)]) == shared_temperature([]) == 1


def test_unseen_temperature_asks_the_images_at_the_gate() -> None:
    """Sure of two classes, and right in four of five; what an older class takes has no say."""
    text = np.eye(3, dtype=np.float32)
    features = np.repeat([[1.0, 0.2, 0.0], [0.2, 1.0, 0.0]], 100, axis=0).astype(np.float32)
    labels = np.repeat([0, 1, 1, 0], [80, 20, 80, 20])
    alone = unseen_temperature(features, labels, text[:2], text[:0], TAU)
    # The margin 0.8 τ/|z|, divided by T, is log 4; the weak prior moves it a little.
    assert alone.value == pytest.approx(0.8 * TAU / math.hypot(1, 0.2) / math.log(4), rel=0.02)
    assert alone.images == 200
    taken = np.concatenate([features, np.tile([[0.5, 0.4, 1.0]], (70, 1)).astype(np.float32)])
    with_old = unseen_temperature(taken, np.append(labels, np.ones(70, np.int64)), text[:2], text[2:], TAU)
    assert with_old == alone
    few = unseen_temperature(
        taken[180:], np.append(labels[180:], np.ones(70, np.int64)), text[:2], text[2:], TAU
    )
    assert few.images == 90  # 20 at the gate are too few


def noise_task(
    shots: int = 8, classes: int = 4, width: int = 24
) -> tuple[TaskData, np.ndarray, LadaSettings]:
    """Images that say nothing of their class: whoever is sure of them has learnt them by heart."""
    random = np.random.default_rng(1)
    features = random.standard_normal((shots * classes, width)).astype(np.float32)
    labels = np.repeat(np.arange(classes), shots)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    memory, mask = stack_memory([init_memory(unit[labels == label], 16) for label in range(classes)])
    text = random.standard_normal((classes, width)).astype(np.float32)
    task = TaskData(0, features[:, None], labels, memory, mask, text)
    return task, features, LadaSettings(alpha=10, beta=5, epochs=40, text_tuner="none")


def nothing(width: int = 24) -> Seen:
    return Seen.nothing(width)


def train(task: TaskData, settings: LadaSettings) -> Learnt:
    learner = TaskLearner(task, nothing(), None, TAU, settings, 0)
    while not learner.done:
        learner.step()
    return learner.learnt()


def test_images_left_out_are_less_sure_than_those_learnt() -> None:
    task, features, settings = noise_task()
    learnt = train(task, settings)
    unit = torch.nn.functional.normalize(torch.tensor(features), dim=-1)
    text = torch.nn.functional.normalize(torch.tensor(learnt.text), dim=-1)
    classes = Classifier(text, torch.tensor(learnt.memory), torch.tensor(task.mask))
    by_heart = fit_temperature(class_logits(unit, classes, TAU, 10, 5), torch.tensor(task.labels))
    folds = np.arange(len(features)) % 4
    left_out = seen_temperature(task, features, learnt, nothing(), TAU, settings, 0, folds)
    assert left_out.images == by_heart.images == 32
    assert by_heart.value < 2
    assert left_out.value > 10


def test_what_is_left_out_is_not_learnt() -> None:
    """Images of a fold reach its own judgement alone: memory of the others is the same whatever they look like."""
    from lada_ray.method.calibration import _without

    task, features, _ = noise_task()
    keep = np.arange(len(features)) % 4 != 0
    other = np.where(keep[:, None], features, 7).astype(np.float32)
    one, two = _without(task, features, keep), _without(replace(task, views=other[:, None]), other, keep)
    for name in ("views", "labels", "memory", "mask"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert one.memory.shape == (4, 6, 24)
    assert one.views.shape == (24, 1, 24)


def test_older_classes_come_first_among_the_seen_ones() -> None:
    """Classes that are told apart easily leave T small; taken for older ones, they would be wrong every time."""
    task, features, settings = noise_task()
    task = replace(task, text=np.eye(4, 24, dtype=np.float32))
    features += 20 * task.text[task.labels]
    task = replace(task, views=features[:, None])
    old = Seen(
        text=-np.ones((3, 24), np.float32),
        memory=np.zeros((3, 1, 24), np.float32),
        mask=np.ones((3, 1), np.bool_),
        means=np.zeros((0, 24), np.float32),
        variances=np.zeros(0, np.float32),
        weights=np.zeros(0, np.float32),
        labels=np.zeros(0, np.int64),
    )
    folds = np.where(np.arange(32) % 8 < 2, np.arange(32) % 8, -1)
    learnt = train(task, settings)
    one, two = (seen_temperature(task, features, learnt, old, TAU, settings, 0, folds) for _ in range(2))
    assert one == two  # repeatable
    assert one.images == 8
    assert one.value < 1.5


def test_few_replayed_rows_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few components against mean memory give nearly the temperature of all of them against whole memory."""
    task, features, settings = noise_task(shots=16)
    random = np.random.default_rng(2)
    means = random.standard_normal((4 * REPLAYED, 24)).astype(np.float32)
    memory = means.reshape(REPLAYED, 4, 24)
    old = Seen(
        text=random.standard_normal((REPLAYED, 24)).astype(np.float32),
        memory=memory / np.linalg.norm(memory, axis=-1, keepdims=True),
        mask=np.ones((REPLAYED, 4), np.bool_),
        means=means,
        variances=np.full(len(means), 0.1, np.float32),
        weights=np.full(len(means), 0.25, np.float32),
        labels=np.arange(REPLAYED).repeat(4),
    )
    folds, learnt = np.arange(len(features)) % 4, train(task, settings)
    drawn, rows = TaskLearner._drawn, set[int]()

    def count(self: TaskLearner, step: int) -> tuple[int, tuple[torch.Tensor, ...]]:
        found = drawn(self, step)
        rows.add(found[0])
        return found

    monkeypatch.setattr(TaskLearner, "_drawn", count)
    few = seen_temperature(task, features, learnt, old, TAU, settings, 0, folds)
    assert rows == {REPLAYED}
    monkeypatch.setattr(module, "REPLAYED", len(means))
    monkeypatch.setattr(Classifier, "at_mean_memory", lambda self: self)
    all_of_them = seen_temperature(task, features, learnt, old, TAU, settings, 0, folds)
    assert rows == {REPLAYED, len(means)}
    assert few.images == all_of_them.images
    assert few.value == pytest.approx(all_of_them.value, rel=0.05)


def test_no_image_can_be_left_out() -> None:
    task, features, settings = noise_task(shots=1)
    learnt = Learnt(task.text, task.memory)
    found = seen_temperature(task, features, learnt, nothing(), TAU, settings, 0, np.full(4, -1))
    assert found == Temperature(1.0, 0)


def test_probabilities_by_hand() -> None:
    log = math.log
    logits = torch.tensor([[2 * log(3), 0.0, 99.0, 0.0], [9.0, 0.0, 4 * log(4), 0.0]])
    p = probabilities(logits, torch.tensor([True, False]), 2, (2.0, 4.0))
    torch.testing.assert_close(p, torch.tensor([[0.75, 0.25, 0, 0], [0, 0, 0.8, 0.2]]))
    assert p.dtype == torch.float32


def test_probabilities_without_a_gate_or_without_one_side() -> None:
    logits = torch.tensor([[2 * math.log(3), 0.0, 0.0]])
    torch.testing.assert_close(probabilities(logits, None, 2, (2.0, 9.0)), torch.tensor([[0.6, 0.2, 0.2]]))
    all_seen = probabilities(logits, torch.tensor([True]), 3, (2.0, 9.0))
    torch.testing.assert_close(all_seen, torch.tensor([[0.6, 0.2, 0.2]]))
    none_seen = probabilities(logits, torch.tensor([False]), 0, (9.0, 2.0))
    torch.testing.assert_close(none_seen, torch.tensor([[0.6, 0.2, 0.2]]))
    assert probabilities(torch.zeros(0, 3), torch.zeros(0, dtype=torch.bool), 2, (1.0, 1.0)).shape == (0, 3)


def test_a_temperature_changes_no_prediction() -> None:
    logits, _ = drawn(50, 6, 2)
    on_seen = torch.arange(50) % 2 == 0
    plain, cool = (probabilities(logits, on_seen, 4, t) for t in ((1.0, 1.0), (5.0, 0.2)))
    assert torch.equal(plain.argmax(1), cool.argmax(1))


def test_calibration_error_by_hand() -> None:
    scores = np.array([0.95, 0.95, 0.95, 0.95, 0.35, 1.0])
    correct = np.array([True, True, True, False, False, True])
    # Bins of 1/15: |3 + 1 - 4.8| of five images in the last, |0 - 0.35| of one.
    assert calibration_error(scores, correct) == pytest.approx((0.8 + 0.35) / 6)
