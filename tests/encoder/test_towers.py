"""Which text towers can be tuned, and why others cannot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import open_clip.model
import pytest
from open_clip.coca_model import CoCa
from torch import nn

from lada_ray.encoder.towers import why_not_tunable
from lada_ray.method.tuner import CausalTextTower

CLIP, CUSTOM = open_clip.model.CLIP, open_clip.model.CustomTextCLIP


def build(kind: type[nn.Module], **text: Any) -> nn.Module:
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    extra = {"multimodal_cfg": {"width": 24, "heads": 2, "layers": 1}} if kind is CoCa else {}
    sizes = {"context_length": 12, "vocab_size": 50, "width": 24, "heads": 4, "layers": 2}
    return kind(embed_dim=16, vision_cfg=vision, text_cfg={**sizes, **text}, **extra)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (CUSTOM, {"no_causal_mask": True}, "the text tower is bidirectional (it has no causal mask)"),
        (CUSTOM, {"pool_type": "last"}, "the text tower pools by 'last', not at the end-of-text token"),
        (CLIP, {"pool_type": "first"}, "the text tower pools by 'first', not at the end-of-text token"),
        (
            CoCa,
            {"embed_cls": True},
            "the text tower reads a class token behind the prompt (CoCa), not the end-of-text token",
        ),
        (
            CUSTOM,
            {"scale_attn": True, "block_type": "custom"},
            "the text tower's blocks are CustomResidualAttentionBlock",
        ),
        (CLIP, {}, None),
        (CUSTOM, {}, None),
        (CLIP, {"pool_type": "eos", "eos_id": 49}, None),
        (CUSTOM, {"ls_init_value": 0.5, "proj_bias": True}, None),
    ],
)
def test_the_reason_and_the_tuner_agree(
    kind: type[nn.Module], text: dict[str, Any], reason: str | None
) -> None:
    model = build(kind, **text)
    assert why_not_tunable(model) == reason
    if reason is None:
        CausalTextTower(model)
    else:
        with pytest.raises(ValueError, match="not open_clip's own causal one"):
            CausalTextTower(model)


def test_a_hugging_face_tower() -> None:
    class HFTextEncoder(nn.Module):
        transformer = nn.Identity()

    model: Any = SimpleNamespace(text=HFTextEncoder())
    assert why_not_tunable(model) == "the text tower is a HFTextEncoder, not open_clip's own transformer"
