"""Which text towers the text tuner can tune: open_clip's own causal ones, read at the end-of-text token."""

from __future__ import annotations

from typing import Any

from torch import nn


def why_not_tunable(model: nn.Module) -> str | None:
    """Why this open_clip model's text tower cannot be tuned; None when it can."""
    text: Any = getattr(model, "text", model)
    if not hasattr(getattr(text, "transformer", None), "resblocks"):
        return f"the text tower is a {type(text).__name__}, not open_clip's own transformer"
    if getattr(text, "attn_mask", None) is None:
        return "the text tower is bidirectional (it has no causal mask)"
    if getattr(text, "cls_emb", None) is not None:
        return "the text tower reads a class token behind the prompt (CoCa), not the end-of-text token"
    pooling = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", "argmax")
    if pooling not in ("argmax", "eos"):
        return f"the text tower pools by '{pooling}', not at the end-of-text token"
    block = type(text.transformer.resblocks[0]).__name__
    return None if block == "ResidualAttentionBlock" else f"the text tower's blocks are {block}"
