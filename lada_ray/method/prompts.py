"""Prompts as trees of tokens, so that a causal text tower computes what they have in common once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# At most so many prompts and tokens in a tree (a single prompt may have more): attention is over all of a tree's
# tokens, of which most are other prompts' and masked.
GROUP, TOKENS = 32, 256


@dataclass(frozen=True)
class PromptTrees:
    """n prompts in G trees of at most N tokens.

    In a causal tower, the state at a token depends on the tokens up to it alone. Prompts that begin alike ("a photo
    of a ...") share these states, and what stands behind the end of a text is needed by nobody: the features are
    those of whole prompts up to rounding, for half of the work where class names are short.
    """

    tokens: Tensor
    """[G, N]"""
    positions: Tensor
    """Of each token in its prompts, [G, N]."""
    mask: Tensor
    """[G, N, N]: 0 where a token sees another one (itself, and those that its prompts begin with), else -inf."""
    ends: Tensor
    """Where each prompt's end of text is among all G·N tokens, [n]."""

    @classmethod
    def of(cls, tokens: Tensor, ends: Tensor) -> PromptTrees:
        """Find what prompts have in common.

        Args:
            tokens: [n, context], n >= 1.
            ends: position of each prompt's end-of-text token, [n].
        """
        texts = [row[: end + 1] for row, end in zip(tokens.tolist(), ends.tolist(), strict=True)]
        trees = _plant(texts)
        size = max(len(tree.tokens) for tree in trees)
        # What fills a smaller tree sees itself alone: a softmax over nothing would be NaN.
        mask = torch.full((len(trees), size, size), -torch.inf)
        mask[:, range(size), range(size)] = 0.0
        ids, positions = (torch.zeros(len(trees), size, dtype=torch.long) for _ in range(2))
        for i, tree in enumerate(trees):
            ids[i, : len(tree.tokens)] = torch.tensor(tree.tokens)
            positions[i, : len(tree.tokens)] = torch.tensor([len(seen) - 1 for seen in tree.sees])
            for node, seen in enumerate(tree.sees):
                mask[i, node, seen] = 0.0
        last = [i * size + end for i, tree in enumerate(trees) for end in tree.ends]
        device = tokens.device
        return cls(ids.to(device), positions.to(device), mask.to(device), torch.tensor(last, device=device))


def _plant(texts: Sequence[Sequence[int]]) -> list[_Tree]:
    """Trees of these prompts, in order."""
    trees = [_Tree()]
    for text in texts:
        if trees[-1].ends and (len(trees[-1].ends) == GROUP or len(trees[-1].tokens) + len(text) > TOKENS):
            trees.append(_Tree())
        trees[-1].ends.append(trees[-1].add(text))
    return trees


class _Tree:
    """Prompts' tokens, those that several begin with once; a token comes after those that it sees."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.sees: list[list[int]] = []
        self.ends: list[int] = []
        self._nodes: dict[tuple[int, int], int] = {}

    def add(self, text: Sequence[int]) -> int:
        """Add a prompt; returns where its end of text is."""
        node, seen = -1, list[int]()
        for token in text:
            step = (node, token)
            if step not in self._nodes:
                self._nodes[step] = len(self.tokens)
                self.tokens.append(token)
                self.sees.append([*seen, self._nodes[step]])
            node = self._nodes[step]
            seen = self.sees[node]
        return node
