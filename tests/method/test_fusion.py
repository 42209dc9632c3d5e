"""The gate between seen and unseen classes, on logits made by hand."""

from __future__ import annotations

import pytest
import torch

from lada_ray.method import fusion as module
from lada_ray.method.fusion import Fusion, add_memory

# Classes 0 and 1 are seen, 2 and 3 unseen.
TEXT = torch.tensor(
    [
        [9.0, 5.0, 1.0, 0.0],  # the gate says seen; memory turns it to class 1
        [9.0, 5.0, 8.0, 0.0],  # likewise, though the unseen class 2 has more text than class 1
        [5.0, 6.0, 7.0, 0.0],  # the gate says unseen: memory has no say
        [6.0, 1.0, 2.0, 5.0],  # memory agrees with the text
    ]
)
MEMORY = torch.tensor([[0.0, 6.0], [0.0, 4.5], [9.0, 0.0], [1.0, 0.0]])


def predict(text: torch.Tensor, memory: torch.Tensor, alpha: float, fusion: Fusion = "gated") -> torch.Tensor:
    return module.predict(text, add_memory(text, memory, alpha), memory.shape[1], fusion)


def test_gated() -> None:
    assert predict(TEXT, MEMORY, 1.0).tolist() == [1, 1, 2, 0]


def test_gated_chooses_among_seen_classes_even_where_an_unseen_sum_is_larger() -> None:
    text, memory = torch.tensor([[9.0, 8.0, 8.9]]), torch.tensor([[-5.0, -5.0]])
    assert predict(text, memory, 1.0, "gated").tolist() == [0]
    assert predict(text, memory, 1.0, "additive").tolist() == [2]


def test_additive() -> None:
    # Sums: [9, 11, 1, 0], [9, 9.5, 8, 0], [14, 6, 7, 0], [7, 1, 2, 5].
    assert predict(TEXT, MEMORY, 1.0, "additive").tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("fusion", ["gated", "additive"])
def test_alpha_weighs_the_memory(fusion: str) -> None:
    assert predict(TEXT, MEMORY, 0.0, fusion).tolist() == TEXT.argmax(1).tolist()  # type: ignore[arg-type]
    assert predict(TEXT[:1], MEMORY[:1], 0.6, fusion).tolist() == [0]  # type: ignore[arg-type]
    assert predict(TEXT[:1], MEMORY[:1], 0.7, fusion).tolist() == [1]  # type: ignore[arg-type]


@pytest.mark.parametrize("fusion", ["gated", "additive"])
def test_no_unseen_class_is_the_plain_argmax_of_sums(fusion: str) -> None:
    assert predict(TEXT[:, :2], MEMORY, 1.0, fusion).tolist() == [1, 1, 0, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("fusion", ["gated", "additive"])
def test_no_seen_class_is_zero_shot(fusion: str) -> None:
    assert predict(TEXT, torch.zeros(4, 0), 1.0, fusion).tolist() == TEXT.argmax(1).tolist()  # type: ignore[arg-type]


def test_ties_go_to_the_first_class() -> None:
    even = torch.full((1, 4), 3.0)
    assert predict(even, torch.zeros(1, 2), 1.0, "gated").tolist() == [0]  # a tie at the gate is seen
    assert predict(even, torch.zeros(1, 2), 1.0, "additive").tolist() == [0]
    assert predict(torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 2), 1.0).tolist() == [0]


def test_sums_leave_their_arguments_alone() -> None:
    text = TEXT.clone()
    assert add_memory(text, MEMORY, 2.0)[0].tolist() == [9, 17, 1, 0]
    assert torch.equal(text, TEXT)


def test_no_images() -> None:
    assert predict(TEXT[:0], MEMORY[:0], 1.0).shape == (0,)
