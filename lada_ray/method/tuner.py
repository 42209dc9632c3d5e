"""The text tuner: an AdaptFormer in every block of CLIP's text tower, which computes common beginnings once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lada_ray.method.prompts import PromptTrees

ADAPTER_SCALE = 0.1


class AdaptFormer(nn.Module):
    """A bottleneck parallel to a block's FFN: 0.1 · s · up(relu(down(LN'(x)))), zero at the start.

    Chen et al., NeurIPS 2022, as LADA uses it: own LayerNorm, trained scalar s.
    """

    def __init__(self, width: int, bottleneck: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.kaiming_normal_(self.down.weight, a=5**0.5, generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """What the adapter adds to the block's output, [..., width]."""
        return ADAPTER_SCALE * self.scale * self.up(torch.relu(self.down(self.norm(x))))


class TextTuner(nn.Module):
    """One AdaptFormer per block; 215 244 weights for CLIP's 12 x 512 text tower with bottleneck 16.

    Args:
        width: of the text tower.
        layers: blocks of the text tower.
        bottleneck: of each adapter.
        generator: of the initial weights (`draws.torch_generator`).
    """

    def __init__(self, width: int, layers: int, bottleneck: int, generator: torch.Generator) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(AdaptFormer(width, bottleneck, generator) for _ in range(layers))


class Begun(NamedTuple):
    """n prompts on G trees of N tokens, as far as a tower takes them before an adapter: the same at every step.

    stream: the residual stream behind the first block's attention, [G, N, width]. ffn: what its FFN adds, likewise.
    mask: of the attention, [G · heads, N, N]. ends: where each prompt's end of text is among all G·N tokens, [n].
    """

    stream: Tensor
    ffn: Tensor
    mask: Tensor
    ends: Tensor


class CausalTextTower(nn.Module):
    """The frozen text tower of an open_clip model (CLIP or CustomTextCLIP), tunable, and on trees of prompts.

    Args:
        model: an open_clip model with a native causal text tower.

    Raises:
        ValueError: if the text tower is not native and causal. (Whoever starts a run asks `EncoderInfo.not_tunable`
            before, which says why.)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        text: Any = getattr(model, "text", model)
        if not _is_native(text):
            raise ValueError(
                f"the text tower ({type(text).__name__}) is not open_clip's own causal one, read at the end-of-text "
                "token"
            )
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.blocks = text.transformer.resblocks
        self.ln_final = text.ln_final
        self.projection = text.text_projection
        self.eos_id: int | None = _eos_id(text)
        self.requires_grad_(False)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.positional_embedding.shape[1]

    def end_of_text(self, tokens: Tensor) -> Tensor:
        """Position of each prompt's end-of-text token, [n]."""
        if self.eos_id is None:
            return tokens.argmax(dim=-1)
        return (tokens == self.eos_id).int().argmax(dim=-1)

    def begin(self, tokens: Tensor) -> Begun:
        """What `forward` takes, of tokenised prompts [n, context]; worth keeping, as adapters do not change it."""
        prompts = PromptTrees.of(tokens, self.end_of_text(tokens))
        x = self.token_embedding(prompts.tokens) + self.positional_embedding[prompts.positions]
        mask = prompts.mask.repeat_interleave(self.blocks[0].attn.num_heads, dim=0)
        return Begun(*_halves(self.blocks[0], x, mask), mask, prompts.ends)

    def forward(self, prompts: Begun, tuner: TextTuner | None = None) -> Tensor:
        """Text features of n prompts.

        Args:
            prompts: from `begin`.
            tuner: adapters to add to every block; None gives CLIP's own features.

        Returns:
            Raw text features [n, d], in the space of the image features.
        """
        x, ffn = prompts.stream, prompts.ffn
        for i, block in enumerate(self.blocks):
            if i > 0:
                x, ffn = _halves(block, x, prompts.mask)
            x = x + ffn if tuner is None else x + ffn + tuner.adapters[i](x)
        x = self.ln_final(x.flatten(0, 1)[prompts.ends])
        if self.projection is None:
            return x
        return self.projection(x) if isinstance(self.projection, nn.Linear) else x @ self.projection


def _halves(block: Any, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The residual stream behind a block's attention, and what its FFN adds."""
    x = x + block.ls_1(block.attention(block.ln_1(x), attn_mask=mask))
    return x, block.ls_2(block.mlp(block.ln_2(x)))


def _is_native(text: Any) -> bool:
    """Whether `forward` computes what this tower does: any other would be tuned wrongly without an error."""
    blocks = getattr(getattr(text, "transformer", None), "resblocks", None)
    return (
        blocks is not None
        and type(blocks[0]).__name__ == "ResidualAttentionBlock"
        and getattr(text, "attn_mask", None) is not None
        and getattr(text, "cls_emb", None) is None
        and _pooling(text) in ("argmax", "eos")
    )


def _pooling(text: Any) -> str:
    return str(getattr(text, "text_pool_type", None) or getattr(text, "pool_type", "argmax"))


def _eos_id(text: Any) -> int | None:
    """The end-of-text id where pooling asks for it; None where the highest id marks it (CLIP's tokenizer)."""
    if _pooling(text) != "eos":
        return None
    return getattr(text, "text_eos_id", None) or text.eos_id
