"""From text and memory logits to predictions: the gate between seen and unseen classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Fusion = Literal["gated", "additive"]


def predict(text_logits: Tensor, logits: Tensor, seen: int, fusion: Fusion = "gated") -> Tensor:
    """Predicted class indices among seen and unseen classes.

    "gated", as published: c = argmax of the text logits over all classes; an unseen c is the prediction, else
    the argmax over the seen classes of text_j + α memory_j. "additive": the argmax over all classes of
    text_j + α memory_j for seen and text_j for unseen ones; it shows what the gate is worth.

    Args:
        text_logits: τ z·t̂_j, [N, C + U], seen classes first; what the gate asks.
        logits: text_j + α memory_j, or what another learner makes of its seen classes, [N, C + U].
        seen: C.
        fusion: see above.

    Returns:
        [N] int64.
    """
    if fusion == "additive":
        return logits.argmax(dim=1)
    gate = text_logits.argmax(dim=1)
    if seen == 0:
        return gate
    return torch.where(gate < seen, logits[:, :seen].argmax(dim=1), gate)


def add_memory(text_logits: Tensor, memory_logits: Tensor, alpha: float) -> Tensor:
    """The ungated sums text_j + α memory_j, [N, C + U]; unseen classes have no memory."""
    total = text_logits.clone()
    total[:, : memory_logits.shape[1]] += alpha * memory_logits
    return total
