"""The weighted cross-entropy and its gradients against a naive float64 double loop."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lada_ray.method import objective
from lada_ray.method.objective import Classifier, Rows, class_logits, task_logits, weighted_loss_backward

SCALES = (20.0, 1.3, 2.5)
WIDTH = 6


class Problem(NamedTuple):
    rows: Rows
    old: Classifier
    new: Classifier


def make(old_classes: int = 4, new_classes: int = 3, rows: int = 11) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    def classifier(classes: int, length: int) -> Classifier:
        count = torch.arange(classes) % length + 1
        mask = torch.arange(length) < count.unsqueeze(1)
        memory = 0.9 * unit(classes, length, WIDTH) * mask.unsqueeze(-1)
        return Classifier(unit(classes, WIDTH), memory, mask)

    labels = torch.randint(old_classes + new_classes, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator) * 30
    old, new = classifier(old_classes, 3), classifier(new_classes, 2)
    new.text.requires_grad_()
    new.memory.requires_grad_()
    return Problem(Rows(unit(rows, WIDTH), labels, weights), old, new)


def naive(problem: Problem) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients in float64: one logit, one row at a time."""
    tau, alpha, beta = SCALES
    rows, old, new = problem
    text, memory = (leaf.detach().double().requires_grad_() for leaf in (new.text, new.memory))
    classes = [*zip(old.text.double(), old.memory.double(), old.mask, strict=True)]
    classes += [*zip(text, memory, new.mask, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for z, label, weight in zip(rows.features.double(), rows.labels, rows.weights.double(), strict=True):
        logits = []
        for t, vectors, exists in classes:
            affinities = [torch.exp(-beta * (1 - z @ w)) for w, e in zip(vectors, exists, strict=True) if e]
            logits.append(tau * (z @ t) + alpha * torch.stack(affinities).sum())
        total = total + weight * (torch.logsumexp(torch.stack(logits), 0) - logits[int(label)])
    loss = total / len(rows.features)
    loss.backward()
    return loss.item(), text.grad, memory.grad


def close(actual: Tensor | None, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual is not None
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("old_classes", [0, 4])
@pytest.mark.parametrize("max_logits", [2**25, 40, 1])
def test_loss_and_gradients_equal_the_naive_ones_in_any_chunks(
    old_classes: int, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make(old_classes)
    monkeypatch.setattr(objective, "MAX_LOGITS", max_logits)
    loss = weighted_loss_backward(problem.rows, problem.old, problem.new, SCALES, len(problem.rows.features))
    expected, text_grad, memory_grad = naive(problem)
    assert loss == pytest.approx(expected, rel=1e-6)
    close(problem.new.text.grad, text_grad)
    close(problem.new.memory.grad, memory_grad)


def test_chunks_bound_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row holds a logit per class (4 + 3) and an affinity per new memory vector (3 x 2): 13."""
    problem, seen = make(), []

    def spy(features: Tensor, classes: Classifier, *scales: float) -> Tensor:
        seen.append(len(features))
        return class_logits(features, classes, *scales)

    monkeypatch.setattr(objective, "class_logits", spy)
    monkeypatch.setattr(objective, "MAX_LOGITS", 5 * 13)
    weighted_loss_backward(problem.rows, problem.old, problem.new, SCALES, 11)
    assert seen == [5, 5, 5, 5, 1, 1]  # old and new classes of each chunk


def test_shares_of_several_workers_add_up() -> None:
    whole, parts = make(), make()
    loss = weighted_loss_backward(whole.rows, whole.old, whole.new, SCALES, 11)
    shares = [
        weighted_loss_backward(Rows(*(t[rank::3] for t in parts.rows)), parts.old, parts.new, SCALES, 11)
        for rank in range(3)
    ]
    assert sum(shares) == pytest.approx(loss, rel=1e-6)
    assert whole.new.text.grad is not None
    close(parts.new.text.grad, whole.new.text.grad.double())


def test_a_worker_without_rows_shares_zeros() -> None:
    rows, old, new = make()
    none = Rows(*(t[:0] for t in rows))
    assert weighted_loss_backward(none, old, new, SCALES, 11) == 0
    assert new.text.grad is not None
    assert new.memory.grad is not None
    assert not new.text.grad.any()
    assert not new.memory.grad.any()


def test_frozen_parts_get_no_gradient() -> None:
    rows, old, new = make()
    new.text.requires_grad_(False)
    weighted_loss_backward(rows, old, new, SCALES, 11)
    assert new.text.grad is None
    assert new.memory.grad is not None
    assert not any(t.requires_grad or t.grad is not None for t in (*old[:3], rows.features))


def test_logits_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0]])
    classes = Classifier(
        text=torch.tensor([[0.6, 0.8], [0.0, 1.0]]),
        memory=torch.tensor([[[1.0, 0.0], [0.5, 0.0]], [[0.0, 1.0], [9.0, 9.0]]]),
        mask=torch.tensor([[True, True], [True, False]]),
    )
    expected = [[10 * 0.6 + 2 * (1 + math.exp(-0.5)), 2 * math.exp(-1)]]
    torch.testing.assert_close(class_logits(z, classes, 10.0, 2.0, 1.0), torch.tensor(expected))
    torch.testing.assert_close(class_logits(z, classes, 10.0, 0.0, 1.0), torch.tensor([[6.0, 0.0]]))


def test_a_class_learnt_again_keeps_its_column_and_its_larger_memory() -> None:
    torch.manual_seed(3)
    z = F.normalize(torch.randn(5, 4), dim=-1)
    tau, alpha, beta = 3.0, 2.0, 1.5
    text, memory = F.normalize(torch.randn(2, 4), dim=-1), torch.randn(3, 2, 4)
    # Class 0 has two blocks already; the task learns class 1 again, and a new one.
    old = Classifier(text, memory, torch.ones(3, 2, dtype=torch.bool), torch.tensor([0, 1, 0]))
    new = Classifier(
        F.normalize(torch.randn(2, 4), dim=-1).requires_grad_(),
        torch.randn(2, 2, 4, requires_grad=True),
        torch.ones(2, 2, dtype=torch.bool),
    )
    sums = torch.exp(beta * (torch.einsum("nd,bld->nbl", z, memory) - 1)).sum(-1)
    fresh = torch.exp(beta * (torch.einsum("nd,bld->nbl", z, new.memory) - 1)).sum(-1)
    expected = torch.stack(
        [
            tau * z @ text[0] + alpha * torch.maximum(sums[:, 0], sums[:, 2]),
            tau * z @ new.text[0] + alpha * torch.maximum(sums[:, 1], fresh[:, 0]),
            tau * z @ new.text[1] + alpha * fresh[:, 1],
        ],
        dim=1,
    )
    columns = torch.tensor([1, 2])
    found = task_logits(z, old, new, (tau, alpha, beta), columns)
    torch.testing.assert_close(found, expected)
    leaves = [new.text, new.memory]
    for ours, theirs in zip(
        torch.autograd.grad(found.logsumexp(1).sum(), leaves),
        torch.autograd.grad(expected.logsumexp(1).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    without = task_logits(z, old, new, (tau, 0.0, beta), columns)
    torch.testing.assert_close(without[:, 1], (tau * z @ new.text[0]))


def test_columns_in_order_are_as_no_columns() -> None:
    rows, old, new = make()
    columns = torch.arange(len(old.text), len(old.text) + len(new.text))
    torch.testing.assert_close(
        task_logits(rows.features, old, new, SCALES, columns), task_logits(rows.features, old, new, SCALES)
    )


def test_mean_memory_is_exact_where_a_block_s_vectors_agree() -> None:
    random = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(6, 8, generator=random), dim=-1)
    one = F.normalize(torch.randn(3, 1, 8, generator=random), dim=-1)
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    classes = Classifier(one[:, 0], one.expand(3, 3, 8) * mask[..., None], mask)
    near = classes.at_mean_memory()
    assert near.memory.shape == (3, 1, 8)
    assert near.mask[:, 0].tolist() == [3, 1, 0]
    torch.testing.assert_close(class_logits(unit, near, 20, 10, 5), class_logits(unit, classes, 20, 10, 5))
    assert Classifier(one[:0, 0], one[:0], mask[:0]).at_mean_memory().memory.shape == (0, 1, 8)
