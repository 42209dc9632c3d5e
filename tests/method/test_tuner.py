"""The text tuner: size, start, formula; and which text towers it refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import open_clip.model
import pytest
import torch
from open_clip.coca_model import CoCa
from torch import Tensor, nn

from lada_ray.method import draws
from lada_ray.method.tuner import AdaptFormer, CausalTextTower, TextTuner

CLIP, CUSTOM = open_clip.model.CLIP, open_clip.model.CustomTextCLIP
Build = Callable[..., nn.Module]

LAYOUTS = {
    "CLIP": (CLIP, {}),
    "CustomTextCLIP": (CUSTOM, {}),
    "CLIP, end of text by id": (CLIP, {"pool_type": "eos", "eos_id": 49}),
    "CustomTextCLIP, end of text by id": (CUSTOM, {"pool_type": "eos", "eos_id": 49}),
    "layer scale": (CLIP, {"ls_init_value": 0.5}),
    "linear projection": (CUSTOM, {"proj_bias": True}),
    "no projection": (CUSTOM, {"proj_type": "none"}),
}


@pytest.fixture(params=LAYOUTS)
def model(request: pytest.FixtureRequest, build_clip: Build) -> nn.Module:
    kind, text = LAYOUTS[request.param]
    return build_clip(kind, **text)


def make_tuner(tower: CausalTextTower, seed: int = 0, task: int = 0, bottleneck: int = 4) -> TextTuner:
    return TextTuner(tower.width, len(tower.blocks), bottleneck, draws.torch_generator(seed, "tuner", task))


def shaken(tuner: TextTuner) -> TextTuner:
    """Every weight moved, as after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in tuner.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return tuner


def reference_features(model: nn.Module, tokens: Tensor, tuner: TextTuner) -> Tensor:
    """open_clip's own encode_text on the full context, the adapters written from the formula and hooked in.

    x_out = FFN(LN(x)) + 0.1 · s · up(relu(down(LN'(x)))) + x
    """
    text = getattr(model, "text", model)
    hooks = []
    for block, adapter in zip(text.transformer.resblocks, tuner.adapters, strict=True):
        inputs: dict[str, Tensor] = {}

        def keep(_: nn.Module, args: tuple[Tensor], inputs: dict[str, Tensor] = inputs) -> None:
            inputs["x"] = args[0]

        def add(
            _: nn.Module,
            args: tuple[Tensor],
            out: Tensor,
            a: AdaptFormer = adapter,
            inputs: dict[str, Tensor] = inputs,
        ) -> Tensor:
            x = inputs["x"]
            centred = x - x.mean(-1, keepdim=True)
            normed = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
            normed = normed * a.norm.weight + a.norm.bias
            hidden = (normed @ a.down.weight.T + a.down.bias).clamp(min=0)
            return out + 0.1 * a.scale * (hidden @ a.up.weight.T + a.up.bias)

        hooks += [block.ln_2.register_forward_pre_hook(keep), block.ls_2.register_forward_hook(add)]
    try:
        return model.encode_text(tokens)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()


def test_number_of_weights() -> None:
    tuner = TextTuner(512, 12, 16, torch.Generator())
    assert sum(p.numel() for p in tuner.parameters()) == 215_244
    assert [
        sum(p.numel() for p in m.parameters()) for m in (tuner.adapters[0].norm, tuner.adapters[0].down)
    ] == [
        1024,
        8208,
    ]


def test_initial_weights() -> None:
    adapter = AdaptFormer(512, 64, torch.Generator().manual_seed(0))
    # Kaiming-normal, a = √5: standard deviation sqrt(2 / (1 + 5)) / sqrt(fan in).
    assert adapter.down.weight.std().item() == pytest.approx((2 / 6 / 512) ** 0.5, rel=0.02)
    assert adapter.down.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert adapter.down.weight.abs().max() > 3 * adapter.down.weight.std()  # normal, not uniform
    for zero in (adapter.down.bias, adapter.up.weight, adapter.up.bias, adapter.norm.bias):
        assert not zero.any()
    assert (adapter.norm.weight == 1).all()
    assert adapter.scale.tolist() == [1]


def test_initial_weights_are_a_function_of_seed_and_task(build_clip: Build) -> None:
    tower = CausalTextTower(build_clip())

    def down(seed: int, task: int) -> Tensor:
        torch.manual_seed(seed + 17)  # the global generator has no say
        return make_tuner(tower, seed, task).adapters[1].down.weight

    assert torch.equal(down(0, 1), down(0, 1))
    assert not torch.equal(down(0, 1), down(0, 2))
    assert not torch.equal(down(0, 1), down(1, 1))
    tuner = make_tuner(tower)
    assert not torch.equal(tuner.adapters[0].down.weight, tuner.adapters[1].down.weight)


def test_the_tower_is_open_clip_s_encode_text(model: nn.Module, prompts: Tensor) -> None:
    tower = CausalTextTower(model)
    torch.testing.assert_close(tower(tower.begin(prompts)), model.encode_text(prompts), rtol=0, atol=1e-5)


def test_training_starts_at_the_original_features_exactly(model: nn.Module, prompts: Tensor) -> None:
    tower = CausalTextTower(model)
    assert torch.equal(tower(tower.begin(prompts), make_tuner(tower)), tower(tower.begin(prompts)))


def test_a_tuned_tower_follows_the_formula(model: nn.Module, prompts: Tensor) -> None:
    tower = CausalTextTower(model)
    tuner = shaken(make_tuner(tower))
    tuned = tower(tower.begin(prompts), tuner)
    torch.testing.assert_close(tuned, reference_features(model, prompts, tuner), rtol=0, atol=1e-5)
    assert (tuned - tower(tower.begin(prompts))).abs().max() > 0.01


def test_only_the_tuner_is_trained(build_clip: Build, prompts: Tensor) -> None:
    model = build_clip().requires_grad_(True)
    tower = CausalTextTower(model)
    tuner = shaken(make_tuner(tower))
    tower(tower.begin(prompts), tuner).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in tuner.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in tower.parameters())


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (CUSTOM, {"no_causal_mask": True}),
        (CUSTOM, {"pool_type": "last"}),
        (CLIP, {"pool_type": "first"}),
        (CoCa, {"embed_cls": True}),
        (CUSTOM, {"scale_attn": True, "block_type": "custom"}),
    ],
)
def test_other_towers_are_refused(kind: type[nn.Module], text: dict[str, object], build_clip: Build) -> None:
    with pytest.raises(ValueError, match="not open_clip's own causal one"):
        CausalTextTower(build_clip(kind, **text))


def test_a_hugging_face_tower_is_refused() -> None:
    class HFTextEncoder(nn.Module):
        transformer = nn.Identity()

    model: Any = SimpleNamespace(text=HFTextEncoder())
    with pytest.raises(ValueError, match=r"\(HFTextEncoder\) is not open_clip's own causal one"):
        CausalTextTower(model)
