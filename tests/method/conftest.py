"""Small open_clip models with random weights, in every layout that the tests of the text tuner need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import open_clip.model
import pytest
import torch
from open_clip.coca_model import CoCa
from torch import nn

VOCABULARY = 50
END_OF_TEXT = VOCABULARY - 1
CONTEXT = 12
WIDTH = 16
TEXT_WIDTH = 24
LAYERS = 3


def _configuration(text: dict[str, Any]) -> dict[str, Any]:
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    sizes = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": TEXT_WIDTH}
    return {
        "embed_dim": WIDTH,
        "vision_cfg": vision,
        "text_cfg": {**sizes, "heads": 4, "layers": LAYERS, **text},
    }


def _build(kind: type[nn.Module] = open_clip.model.CLIP, **text: Any) -> nn.Module:
    extra = {"multimodal_cfg": {"width": TEXT_WIDTH, "heads": 2, "layers": 1}} if kind is CoCa else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(**_configuration(text), **extra)
    # open_clip starts biases at zero and positions near it: give every weight a say.
    noise = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def build_clip() -> Callable[..., nn.Module]:
    """Build a model of a given layout: build_clip(kind, **text_cfg)."""
    return _build


@pytest.fixture(scope="session")
def prompts() -> torch.Tensor:
    """Tokens of five prompts of different lengths, [5, context]: start, words, end of text, padding."""
    words = torch.Generator().manual_seed(2)
    tokens = torch.zeros(5, CONTEXT, dtype=torch.int64)
    for row, length in enumerate((2, 5, 3, 6, 1)):
        tokens[row, 0] = VOCABULARY - 2
        tokens[row, 1 : 1 + length] = torch.randint(1, VOCABULARY - 2, (length,), generator=words)
        tokens[row, 1 + length] = END_OF_TEXT
    return tokens


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads cost more than they save, all the more where several tests run at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
