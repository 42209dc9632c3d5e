"""Trees of prompts: what is shared, who sees whom, and that the features are those of whole prompts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lada_ray.method import prompts as module
from lada_ray.method.prompts import PromptTrees
from lada_ray.method.tuner import CausalTextTower

START, END = 48, 49


def tokens(*texts: list[int]) -> Tensor:
    """Prompts of these words, [n, 12]; behind their end stands what nobody may read."""
    rows = torch.full((len(texts), 12), 7)
    for row, words in zip(rows, texts, strict=True):
        row[: len(words) + 2] = torch.tensor([START, *words, END])
    return rows


def ends(rows: Tensor) -> Tensor:
    return (rows == END).int().argmax(dim=-1)


ALIKE = tokens([1, 2, 3], [1, 2, 4, 5], [1, 2, 3], [6], [1, 2, 3, 3])


def test_what_prompts_begin_with_stands_there_once() -> None:
    trees = PromptTrees.of(ALIKE, ends(ALIKE))
    assert trees.tokens.tolist() == [[START, 1, 2, 3, END, 4, 5, END, 6, END, 3, END]]
    assert trees.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 1, 2, 4, 5]]
    assert trees.ends.tolist() == [4, 7, 4, 9, 11]
    sees = [(row == 0).nonzero().flatten().tolist() for row in trees.mask[0]]
    assert sees[4] == [0, 1, 2, 3, 4]
    assert sees[7] == [0, 1, 2, 5, 6, 7]
    assert sees[9] == [0, 8, 9]
    assert sees[11] == [0, 1, 2, 3, 10, 11]
    assert set(trees.mask.flatten().tolist()) == {0.0, float("-inf")}


@pytest.mark.parametrize("group", [1, 2, 3, 32])
def test_features_are_those_of_whole_prompts(
    group: int, build_clip: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP", group)
    model = build_clip()
    tower = CausalTextTower(model)
    full = tokens(*ALIKE[:, 1:4].tolist(), list(range(1, 11)))
    for rows in (ALIKE, ALIKE[:1], ALIKE.flip(0), full):
        begun = tower.begin(rows)
        assert len(begun.stream) == -(-len(rows) // group)
        expected = model.encode_text(rows)  # type: ignore[operator]
        torch.testing.assert_close(tower(begun), expected, rtol=0, atol=1e-5)


def test_a_prompt_does_not_depend_on_its_neighbours(build_clip: Callable[..., nn.Module]) -> None:
    tower = CausalTextTower(build_clip())
    alone = tower(tower.begin(ALIKE[:1]))
    torch.testing.assert_close(tower(tower.begin(ALIKE))[:1], alone, rtol=0, atol=1e-6)


def test_prompts_that_share_nothing_stay_small() -> None:
    """Attention is over a tree: one of all tokens of a thousand long prompts would not fit."""
    rows = torch.arange(1000)[:, None] * 100 + torch.arange(40)
    trees = PromptTrees.of(rows, torch.full((1000,), 39))
    assert trees.tokens.shape[1] <= 256
    assert trees.tokens.numel() < 1.1 * rows.numel()
    assert len(trees.ends) == 1000
    one = PromptTrees.of(torch.arange(300)[None], torch.tensor([299]))  # longer than a tree should be
    assert one.tokens.shape == (1, 300)
