"""Learning a task: one step against a float64 reference from the formulas, then whole small trainings."""

from __future__ import annotations

import copy
import io
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lada_ray.method import draws, memory, objective
from lada_ray.method.fusion import add_memory, predict
from lada_ray.method.learner import Learnt, Seen, TaskData, TaskLearner
from lada_ray.method.memory import init_memory, stack_memory
from lada_ray.method.mixture import fit_mixture
from lada_ray.method.objective import Classifier, class_logits
from lada_ray.method.settings import LadaSettings
from lada_ray.method.tuner import CausalTextTower

WIDTH, TAU = 16, 20.0
SETTINGS = LadaSettings(alpha=1.2, beta=1.5, tuner_bottleneck=4, epochs=2, batch_size=8, lr=5e-3)


@pytest.fixture(scope="module")
def model(build_clip: Callable[..., nn.Module]) -> nn.Module:
    return build_clip()


@pytest.fixture
def tower(model: nn.Module) -> CausalTextTower:
    return CausalTextTower(model)


@pytest.fixture
def task(model: nn.Module, prompts: Tensor) -> TaskData:
    """Task 1: 3 classes, 19 images of 4 views; one class has fewer memory vectors."""
    rng = np.random.default_rng(1)
    centres = 3 * rng.standard_normal((3, WIDTH))
    labels = np.array([0] * 9 + [1] * 8 + [2] * 2)
    views = centres[labels][:, None] + rng.standard_normal((19, 4, WIDTH))
    unit = (views / np.linalg.norm(views, axis=-1, keepdims=True)).astype(np.float32)
    groups = [init_memory(unit[labels == j, 0], 4) for j in range(3)]
    tokens = prompts[:3]
    text = model.encode_text(tokens).numpy()  # type: ignore[operator]
    return TaskData(1, views.astype(np.float32), labels, *stack_memory(groups), text, tokens.numpy())


@pytest.fixture
def seen() -> Seen:
    """Two old classes with three components."""
    rng = np.random.default_rng(2)
    f32 = np.float32
    return Seen(
        text=(2 * rng.standard_normal((2, WIDTH))).astype(f32),
        memory=(0.25 * rng.standard_normal((2, 3, WIDTH))).astype(f32),
        mask=np.array([[True, True, True], [True, False, False]]),
        means=(3 * rng.standard_normal((3, WIDTH))).astype(f32),
        variances=np.array([0.5, 1.5, 1e-6], f32),
        weights=np.array([0.75, 0.25, 1.0], f32),
        labels=np.array([0, 0, 1]),
    )


def parameters_of(learner: TaskLearner) -> dict[str, Tensor]:
    tuner = {} if learner.tuner is None else dict(learner.tuner.named_parameters())
    return {"memory": learner.memory, **tuner}


def gradients_of(learner: TaskLearner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in parameters_of(learner).items() if p.grad is not None}


def reference_step(
    learner: TaskLearner, model: nn.Module, task: TaskData, seen: Seen, step: int
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step in float64, row by row, with open_clip's own tower on the full context.

    Reads the learner's parameters and nothing else of it.
    """
    s, double = SETTINGS, torch.float64
    model = copy.deepcopy(model).double()
    tuner = copy.deepcopy(learner.tuner).double()
    w_new = learner.memory.detach().double().requires_grad_()
    for block, adapter in zip(model.transformer.resblocks, tuner.adapters, strict=True):
        kept: dict[str, Tensor] = {}
        block.ln_2.register_forward_pre_hook(lambda _, args, kept=kept: kept.update(x=args[0]))
        block.mlp.register_forward_hook(lambda _, args, out, kept=kept, a=adapter: out + a(kept["x"]))
    tokens = torch.as_tensor(task.tokens)
    t_new = model.encode_text(tokens)
    text = torch.cat([torch.as_tensor(seen.text, dtype=double), t_new])
    text = text / text.norm(dim=-1, keepdim=True)
    vectors = [torch.as_tensor(w, dtype=double)[m] for w, m in zip(seen.memory, seen.mask, strict=True)]
    vectors += [w[torch.as_tensor(m)] for w, m in zip(w_new, task.mask, strict=True)]

    batch = draws.batch_rows(3, task.position, step, len(task.labels), s.batch_size)
    chosen = draws.view_choice(3, task.position, step, len(batch), task.views.shape[1])
    rows = [
        (task.views[i, v], len(seen.text) + task.labels[i], 1.0) for i, v in zip(batch, chosen, strict=True)
    ]
    noise = draws.replay_noise(3, task.position, step, *seen.means.shape)
    for mean, variance, weight, label, e in zip(
        seen.means, seen.variances, seen.weights, seen.labels, noise, strict=True
    ):
        trace = float(variance) * WIDTH
        rows.append((mean + e * math.sqrt(trace / WIDTH), label, 64 * float(weight)))

    losses = []
    for feature, label, weight in rows:
        z = torch.as_tensor(feature, dtype=double)
        z = z / z.norm()
        logits = torch.stack(
            [
                TAU * (z @ t) + s.alpha * torch.exp(-s.beta * (1 - w @ z)).sum()
                for t, w in zip(text, vectors, strict=True)
            ]
        )
        losses.append(weight * -F.log_softmax(logits, 0)[int(label)])
    loss = torch.stack(losses).mean()
    loss.backward()
    named = {"memory": w_new, **dict(tuner.named_parameters())}
    return loss.item(), {name: p.grad for name, p in named.items()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        scale = max(1.0, float(expected[name].abs().max()))
        error = float((actual[name].double() - expected[name].double()).abs().max())
        assert error <= tolerance * scale, (name, error, scale)


def test_a_step_equals_the_reference(
    model: nn.Module, tower: CausalTextTower, task: TaskData, seen: Seen
) -> None:
    learner = TaskLearner(task, seen, tower, TAU, SETTINGS, seed=3)
    for step in range(4):  # the first starts at the original text features; the third is a partial batch
        loss, gradients = reference_step(learner, model, task, seen, step)
        assert learner.step() == pytest.approx(loss, rel=1e-5)
        assert_close(gradients_of(learner), gradients, 1e-5)
    assert learner.steps_per_epoch == 3
    assert gradients["adapters.0.down.weight"].any()  # zero in the very first step, when `up` is


def test_chunks_change_rounding_only(
    tower: CausalTextTower, task: TaskData, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TaskLearner(task, seen, tower, TAU, SETTINGS, 3)
    chunked = TaskLearner(task, seen, tower, TAU, SETTINGS, 3)
    loss = whole.step()
    monkeypatch.setattr(objective, "MAX_LOGITS", 30)  # a row is 2 + 3 x (1 + 4) = 17: one at a time
    monkeypatch.setattr(memory, "CPU_AFFINITIES", 3)
    assert chunked.step() == pytest.approx(loss, rel=1e-6)
    assert_close(gradients_of(chunked), gradients_of(whole), 1e-6)


class Meeting:
    """An all-reduce among threads: everyone waits for everyone, then all hold the sum."""

    def __init__(self, workers: int) -> None:
        self.barrier = threading.Barrier(workers, timeout=30)
        self.held: dict[int, Tensor] = {}

    def all_reduce(self, rank: int) -> Callable[[Tensor], None]:
        def reduce(tensor: Tensor) -> None:
            self.held[rank] = tensor.clone()
            self.barrier.wait()
            tensor.copy_(sum(self.held[r] for r in sorted(self.held)))
            self.barrier.wait()

        return reduce


@pytest.mark.parametrize(("workers", "rows"), [(2, 512), (13, 512), (2, 2), (13, 2)])
def test_workers_share_one_gradient(
    workers: int, rows: int, model: nn.Module, task: TaskData, seen: Seen
) -> None:
    """13 workers: more than rows of the current task (8) and components (3), so some have nothing at all."""
    settings = replace(SETTINGS, replay_rows=rows)
    alone = TaskLearner(task, seen, CausalTextTower(model), TAU, settings, 3)
    alone_loss, meeting = alone.step(), Meeting(workers)
    learners = [
        TaskLearner(
            task,
            seen,
            CausalTextTower(model),
            TAU,
            settings,
            3,
            shard=(r, workers),
            all_reduce=meeting.all_reduce(r),
        )
        for r in range(workers)
    ]
    losses: dict[int, float] = {}
    threads = [
        threading.Thread(target=lambda r=r, one=one: losses.update({r: one.step()}))  # type: ignore[misc]
        for r, one in enumerate(learners)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(losses.values()) == [pytest.approx(alone_loss, rel=1e-5)] * workers
    for learner in learners:
        assert_close(gradients_of(learner), gradients_of(alone), 1e-5)


def test_optimiser_and_schedule(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    settings = replace(SETTINGS, lr=1e-3)
    learner = TaskLearner(task, seen, tower, TAU, settings, 3)
    assert isinstance(learner.optimizer, torch.optim.AdamW)
    (group,) = learner.optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in parameters_of(learner).values()}
    assert group["weight_decay"] == 5e-4
    rates = []
    while not learner.done:
        rates.append(group["lr"])
        learner.step()
    probe = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(probe, max_lr=1e-3, total_steps=6)
    expected = []
    for _ in range(6):
        expected.append(schedule.get_last_lr()[0])
        probe.step()
        schedule.step()
    assert rates == pytest.approx(expected)
    assert rates[0] == pytest.approx(4e-5)  # max_lr / 25
    assert rates[-1] == pytest.approx(4e-9)  # initial / 10 000


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(1, 64, 1), (2, 64, 2), (1, 19, 1)])
def test_very_short_trainings(
    epochs: int, batch_size: int, steps: int, tower: CausalTextTower, task: TaskData, seen: Seen
) -> None:
    learner = TaskLearner(task, seen, tower, TAU, replace(SETTINGS, epochs=epochs, batch_size=batch_size), 3)
    losses = []
    while not learner.done:
        losses.append(learner.step())
    assert len(losses) == steps
    assert np.isfinite(losses).all()
    assert np.isfinite(learner.learnt().text).all()


def test_weight_decay_acts_on_all_trained_tensors(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    """The difference that the decay makes to one step is lr · decay · the weight itself."""
    before, after = {}, {}
    for decay in (0.0, 0.5):
        learner = TaskLearner(task, seen, tower, TAU, replace(SETTINGS, weight_decay=decay), 3)
        before = {name: p.detach().clone() for name, p in parameters_of(learner).items()}
        rate = learner.optimizer.param_groups[0]["lr"]
        learner.step()
        after[decay] = {name: p.detach() for name, p in parameters_of(learner).items()}
    for name, start in before.items():
        torch.testing.assert_close(
            after[0.0][name] - after[0.5][name], rate * 0.5 * start, rtol=1e-2, atol=2e-7, msg=name
        )


def train(learner: TaskLearner) -> Learnt:
    while not learner.done:
        learner.step()
    return learner.learnt()


def test_alpha_zero_trains_the_tuner_alone(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    learner = TaskLearner(task, seen, tower, TAU, replace(SETTINGS, alpha=0.0), 3)
    learnt = train(learner)
    np.testing.assert_array_equal(learnt.memory, task.memory)
    assert learner.memory.grad is None
    assert np.abs(learnt.text - task.text).max() > 1e-3


def test_without_tuner_the_memory_alone_is_trained(task: TaskData, seen: Seen) -> None:
    settings = replace(SETTINGS, text_tuner="none")
    learnt = train(TaskLearner(task, seen, None, TAU, settings, 3))
    np.testing.assert_array_equal(learnt.text, task.text)
    assert np.abs(learnt.memory - task.memory)[task.mask].max() > 1e-3
    assert not learnt.memory[~task.mask].any()  # padding stays zero


def test_nothing_to_train_is_done_at_once(task: TaskData, seen: Seen) -> None:
    learner = TaskLearner(task, seen, None, TAU, replace(SETTINGS, alpha=0.0, text_tuner="none"), 3)
    assert learner.done
    np.testing.assert_array_equal(learner.learnt().text, task.text)
    np.testing.assert_array_equal(learner.learnt().memory, task.memory)


def test_the_tuner_needs_tower_and_tokens(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    with pytest.raises(ValueError, match="needs the text tower"):
        TaskLearner(task, seen, None, TAU, SETTINGS, 3)
    with pytest.raises(ValueError, match="tokenised prompts"):
        TaskLearner(replace(task, tokens=None), seen, tower, TAU, SETTINGS, 3)


def rows_of(learner: TaskLearner, step: int = 0) -> tuple[Any, int]:
    return learner._rows(step)


def test_rows_of_a_step(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    rows, total = rows_of(TaskLearner(task, seen, tower, TAU, SETTINGS, 3))
    batch = draws.batch_rows(3, 1, 0, 19, 8)
    assert total == len(rows.features) == 8 + 3
    assert rows.labels.tolist() == [*(task.labels[batch] + 2), 0, 0, 1]
    assert rows.weights.tolist() == [*[1.0] * 8, 48.0, 16.0, 64.0]  # 64 · π
    torch.testing.assert_close(rows.features.norm(dim=1), torch.ones(11))


def test_replay_can_be_switched_off(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    rows, total = rows_of(TaskLearner(task, seen, tower, TAU, replace(SETTINGS, replay=False), 3))
    assert total == len(rows.features) == 8
    assert (rows.weights == 1).all()


def test_noise_can_be_switched_off(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    settings = replace(SETTINGS, replay_noise=False)
    rows, _ = rows_of(TaskLearner(task, seen, tower, TAU, settings, 3))
    torch.testing.assert_close(rows.features[8:], F.normalize(torch.as_tensor(seen.means), dim=-1))


def test_the_first_task_replays_nothing(tower: CausalTextTower, task: TaskData) -> None:
    learner = TaskLearner(task, Seen.nothing(WIDTH), tower, TAU, SETTINGS, 3)
    rows, total = rows_of(learner)
    assert total == 8
    assert rows.labels.max() <= 2
    assert math.isfinite(learner.step())


def test_frozen_things_have_no_gradient(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    learner = TaskLearner(task, seen, tower, TAU, SETTINGS, 3)
    before = [p.clone() for p in tower.parameters()]
    learner.step()
    frozen = [*tower.parameters(), *learner.old, *learner.components, learner.text]
    assert not any(t is not None and (t.requires_grad or t.grad is not None) for t in frozen)
    assert all(map(torch.equal, before, tower.parameters()))
    assert set(gradients_of(learner)) == set(parameters_of(learner))


@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.parametrize("tuner", ["adaptformer", "none"])
def test_stopping_and_going_on_changes_no_bit(
    stop: int, tuner: str, tower: CausalTextTower, task: TaskData, seen: Seen
) -> None:
    settings = replace(SETTINGS, text_tuner=tuner)  # type: ignore[arg-type]
    first, undisturbed = (TaskLearner(task, seen, tower, TAU, settings, 3) for _ in range(2))
    losses = [undisturbed.step() for _ in range(6)]
    assert [first.step() for _ in range(stop)] == losses[:stop]
    sink = io.BytesIO()
    torch.save(first.state_dict(), sink)
    sink.seek(0)
    second = TaskLearner(task, seen, tower, TAU, settings, 3)
    second.load_state_dict(torch.load(sink, weights_only=True))
    assert second.steps_done == stop
    assert [second.step() for _ in range(6 - stop)] == losses[stop:]
    assert second.done
    np.testing.assert_array_equal(second.learnt().text, undisturbed.learnt().text)
    np.testing.assert_array_equal(second.learnt().memory, undisturbed.learnt().memory)


def test_a_task_leaves_no_trace_in_the_next(tower: CausalTextTower, task: TaskData, seen: Seen) -> None:
    fresh = TaskLearner(task, seen, tower, TAU, SETTINGS, 3).step()
    train(TaskLearner(task, seen, tower, TAU, SETTINGS, 4))
    assert TaskLearner(task, seen, tower, TAU, SETTINGS, 3).step() == fresh


def make_domain(position: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw features [n, V, d] around one centre per class, labels [n], and half-right text features [c, d]."""
    rng = np.random.default_rng([seed, position])
    centres = rng.standard_normal((classes, WIDTH))
    labels = np.repeat(np.arange(classes), 12)
    features = centres[labels][:, None] + 0.9 * rng.standard_normal((len(labels), 3, WIDTH))
    text = centres + 1.2 * rng.standard_normal(centres.shape)
    return features.astype(np.float32), labels, text.astype(np.float32)


def after(seen: Seen, task: TaskData, learnt: Learnt, views: np.ndarray, labels: np.ndarray) -> Seen:
    """What is seen after a task: its frozen text and memory, and its mixtures."""
    mixtures = [fit_mixture(views[labels == j, 0], 4) for j in range(len(task.text))]
    offset = len(seen.text)
    new = Seen(
        text=learnt.text,
        memory=learnt.memory,
        mask=task.mask,
        means=np.concatenate([m.means for m in mixtures]),
        variances=np.concatenate([m.variances for m in mixtures]),
        weights=np.concatenate([m.weights for m in mixtures]),
        labels=np.concatenate([np.full(len(m.weights), offset + j) for j, m in enumerate(mixtures)]),
    )
    if offset == 0:
        return new
    arrays = [name for name in Seen.__dataclass_fields__ if name != "owner"]
    return Seen(*(np.concatenate([getattr(seen, name), getattr(new, name)]) for name in arrays))


def accuracy(seen: Seen, settings: LadaSettings, seed: int) -> list[float]:
    """Accuracy in % per task on features drawn anew."""
    z, truth, offset = [], [], 0
    for position, classes in enumerate((4, 3)):
        centres = np.random.default_rng([seed, position]).standard_normal((classes, WIDTH))
        noise = np.random.default_rng([99, position]).standard_normal((classes, 100, WIDTH))
        z.append((centres[:, None] + 0.9 * noise).reshape(-1, WIDTH))
        truth.append(offset + np.repeat(np.arange(classes), 100))
        offset += classes
    right = []
    for features, labels in zip(z, truth, strict=True):
        unit = F.normalize(torch.as_tensor(features, dtype=torch.float32), dim=-1)
        classes = Classifier(
            F.normalize(torch.as_tensor(seen.text), dim=-1),
            torch.as_tensor(seen.memory),
            torch.as_tensor(seen.mask),
        )
        text = class_logits(unit, classes, TAU, 0, 1)
        remembered = class_logits(unit, classes, TAU, 1, settings.beta) - text
        chosen = predict(text, add_memory(text, remembered, settings.alpha), remembered.shape[1])
        right.append(100 * float((chosen.numpy() == labels).mean()))
    return right


def learn_two_tasks(
    settings: LadaSettings, model: nn.Module, prompts: Tensor
) -> tuple[list[float], list[float]]:
    seen, last_losses = Seen.nothing(WIDTH), []
    tokens = torch.cat([prompts, prompts.flip(0)[1:3].clone().roll(1, 1)])
    for position, rows in enumerate((slice(0, 4), slice(4, 7))):
        views, labels, text = make_domain(position, rows.stop - rows.start, 7)
        unit = views[:, 0] / np.linalg.norm(views[:, 0], axis=-1, keepdims=True)
        stacked = stack_memory([init_memory(unit[labels == j], 4) for j in range(len(text))])
        if settings.text_tuner != "none":
            text = model.encode_text(tokens[rows]).numpy()  # type: ignore[operator]
        task = TaskData(position, views, labels, *stacked, text, tokens[rows].numpy())
        tower = None if settings.text_tuner == "none" else CausalTextTower(model)
        learner = TaskLearner(task, seen, tower, TAU, settings, 0)
        losses = []
        while not learner.done:
            losses.append(learner.step())
        last_losses.append(float(np.mean(losses[-learner.steps_per_epoch :])))
        seen = after(seen, task, learner.learnt(), views, labels)
    return accuracy(seen, settings, 7), last_losses


SMALL = LadaSettings(beta=2.0, memory_per_class=4, tuner_bottleneck=8, epochs=20, batch_size=16, lr=1e-2)


@pytest.mark.parametrize(
    ("changed", "accuracies", "losses"),
    [
        ({}, [89.75, 74.33], [0.13579, 1.17644]),
        ({"text_tuner": "none"}, [82.25, 89.67], [0.39417, 7.74260]),
        ({"alpha": 0.0}, [81.25, 36.67], [0.33942, 3.74021]),
        ({"replay": False}, [40.0, 98.67], [0.13579, 0.068887]),
        ({"replay_noise": False}, [87.25, 86.67], [0.13579, 0.40728]),
    ],
)
def test_two_small_tasks_give_the_pinned_numbers(
    changed: dict[str, Any], accuracies: list[float], losses: list[float], model: nn.Module, prompts: Tensor
) -> None:
    """Not better or worse: another number means that the method's numbers have changed."""
    measured, last_losses = learn_two_tasks(replace(SMALL, **changed), model, prompts)
    print(f"\n{changed}: accuracy {np.round(measured, 2)}, loss {np.round(last_losses, 5)}")
    assert last_losses == pytest.approx(losses, rel=3e-4)
    assert measured == pytest.approx(accuracies, abs=0.5)
