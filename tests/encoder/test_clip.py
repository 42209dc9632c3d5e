"""The encoder against open_clip's own calls, its fingerprint, and weights that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip.model
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lada_ray.config import EncoderConfig
from lada_ray.encoder import Encoder, EncoderSpec, device_for, load_encoder, resolve_encoder
from lada_ray.errors import InputError, IntegrityError, LadaError
from lada_ray.pixels import full_float32

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
PROMPTS = ["a photo of a cat.", "a photo of a very long-haired dog.", "x"]
Make = Callable[..., EncoderSpec]


def build(seed: int = 0, **changed: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.model.CLIP(**{**TINY, **changed})
    # Weights large enough for the activation to matter.
    noise = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name != "logit_scale":
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
    return model.eval().requires_grad_(False)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The spec of a tiny encoder: make(file, architecture, precision=..., quick_gelu=...)."""

    def spec(
        file: Path, architecture: dict[str, Any] = TINY, precision: str = "fp32", **stated: Any
    ) -> EncoderSpec:
        described = tmp_path / "tiny.json"
        described.write_text(json.dumps(architecture))
        said = EncoderConfig(model="tiny", pretrained=str(file), architecture=str(described), **stated)
        return resolve_encoder(said, precision)

    return spec


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file(tensors(build()), path)
    return path


def pixels(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def normalised(images: np.ndarray, spec: EncoderSpec) -> torch.Tensor:
    """open_clip's ToTensor and Normalize."""
    from torchvision.transforms.functional import normalize, to_tensor

    pre = spec.preprocess
    return torch.stack([normalize(to_tensor(image), pre.mean, pre.std) for image in images])


def cosines(a: np.ndarray, b: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.cosine_similarity(torch.from_numpy(a), b).numpy()


@pytest.mark.parametrize("quick", [True, False])
def test_features_are_open_clip_s_own(quick: bool, weights: Path, make: Make) -> None:
    spec = make(weights, quick_gelu=quick, preprocess={"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]})
    encoder, model = Encoder(spec), build(quick_gelu=quick)
    images = pixels(70)
    expected = model.encode_image(normalised(images, spec))  # type: ignore[operator]
    np.testing.assert_allclose(encoder.encode_pixels(images), expected.numpy(), atol=2e-5)
    tokens = open_clip.tokenize(PROMPTS, context_length=20)
    np.testing.assert_array_equal(encoder.tokenize(PROMPTS), tokens.numpy())
    expected = model.encode_text(tokens)  # type: ignore[operator]
    np.testing.assert_allclose(encoder.encode_text(PROMPTS), expected.numpy(), atol=2e-5)


def test_the_activation_matters_and_is_the_spec_s(weights: Path, make: Make) -> None:
    features = [Encoder(make(weights, quick_gelu=q)).encode_pixels(pixels(4)) for q in (True, False)]
    assert np.abs(features[0] - features[1]).max() > 1e-3
    encoder = Encoder(make(weights, quick_gelu=True))
    kinds = {type(m).__name__ for m in encoder.model.modules() if "GELU" in type(m).__name__}
    assert kinds == {"QuickGELU"}


def test_a_row_does_not_depend_on_its_batch(weights: Path, make: Make) -> None:
    encoder, images = Encoder(make(weights)), pixels(130)
    features = encoder.encode_pixels(images)
    assert features.shape == (130, 24)
    assert features.dtype == np.float32
    for row in (0, 5, 63, 64, 129):
        np.testing.assert_array_equal(encoder.encode_pixels(images[row : row + 1])[0], features[row])
    shuffled = np.random.default_rng(1).permutation(130)
    np.testing.assert_array_equal(encoder.encode_pixels(images[shuffled]), features[shuffled])


def test_nothing_to_encode(weights: Path, make: Make) -> None:
    encoder = Encoder(make(weights))
    assert encoder.encode_pixels(pixels(0)).shape == (0, 24)
    assert encoder.encode_text([]).shape == (0, 24)


def test_many_prompts(weights: Path, make: Make) -> None:
    encoder = Encoder(make(weights))
    prompts = [f"number {i}" for i in range(300)]
    text = encoder.encode_text(prompts)
    assert text.shape == (300, 24)
    np.testing.assert_allclose(encoder.encode_text(prompts[299:])[0], text[299], atol=1e-5)


def test_info(weights: Path, make: Make) -> None:
    encoder = load_encoder(make(weights), "cpu")
    info = encoder.info()
    assert info.width == 24
    assert info.tau == pytest.approx(1 / 0.07, rel=1e-5)
    assert info.parameters == sum(p.numel() for p in build().parameters())
    assert info.feature_key == info.fingerprint[:16]
    assert len(info.fingerprint) == 64
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert not encoder.model.training
    assert info.not_tunable is None


def test_info_says_why_a_text_tower_cannot_be_tuned(weights: Path, make: Make) -> None:
    seen = {**TINY, "text_cfg": {**TINY["text_cfg"], "no_causal_mask": True}}
    said = Encoder(make(weights, seen)).info().not_tunable
    assert said == "the text tower is bidirectional (it has no causal mask)"


def test_check_names_node_and_file(weights: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    encoder = Encoder(make(weights))
    key = encoder.info().feature_key
    encoder.check(key)
    said = rf"on the node node-7, {weights} is another encoder \({key}\) than this run's \(0123\).*every node"
    with pytest.raises(IntegrityError, match=said):
        encoder.check("0123")


def test_the_device_follows_the_gpus_that_were_given() -> None:
    assert [device_for(gpus) for gpus in (0, 0.0, 0.25, 1)] == ["cpu", "cpu", "cuda", "cuda"]


@pytest.fixture(params=[True, False])
def allowed(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether TF32 is allowed outside of the encoder."""
    backends: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = request.param
    yield request.param
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def test_float32_is_full_only_where_the_encoder_computes(
    allowed: bool, weights: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    encoder = Encoder(make(weights))
    seen: list[bool] = []
    encode = encoder.model.encode_image
    monkeypatch.setattr(
        encoder.model, "encode_image", lambda x: seen.extend(b.allow_tf32 for b in backends) or encode(x)
    )
    encoder.encode_pixels(pixels(1))
    assert seen == [False, False]
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]


def test_bf16_is_the_image_tower_s_precision(weights: Path, make: Make) -> None:
    single, half = Encoder(make(weights)), Encoder(make(weights, precision="bf16"))
    a, b = (encoder.encode_pixels(pixels(8)) for encoder in (single, half))
    assert a.dtype == b.dtype == np.float32
    assert 1e-5 < np.abs(a - b).max() < 0.3
    assert cosines(a, torch.from_numpy(b)).min() > 0.999
    np.testing.assert_array_equal(single.encode_text(PROMPTS), half.encode_text(PROMPTS))


def test_the_fingerprint_is_of_what_decides_features(weights: Path, make: Make, tmp_path: Path) -> None:
    def fingerprint(spec: EncoderSpec) -> str:
        return Encoder(spec).info().fingerprint

    base = make(weights)
    first = fingerprint(base)
    moved = tmp_path / "elsewhere" / "renamed.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(weights.read_bytes())
    as_pt = tmp_path / "weights.pt"
    torch.save(tensors(build()), as_pt)
    assert fingerprint(make(moved)) == first
    assert fingerprint(make(as_pt)) == first
    assert fingerprint(replace(base, model="another-name")) == first

    one_weight = tensors(build())
    one_weight["visual.proj"][0, 0] += 1e-6
    other = tmp_path / "other.safetensors"
    save_file(one_weight, other)
    taller = {**TINY, "text_cfg": {**TINY["text_cfg"], "heads": 4}}  # same shapes, other function
    changed = [
        make(other),
        make(weights, precision="bf16"),
        make(weights, quick_gelu=True),
        make(weights, preprocess={"mean": [0.5, 0.5, 0.5]}),
        make(weights, preprocess={"std": [0.5, 0.5, 0.5]}),
        make(weights, preprocess={"interpolation": "bilinear"}),
        make(weights, preprocess={"resize_mode": "squash"}),
        make(weights, taller),
    ]
    prints = [fingerprint(spec) for spec in changed]
    assert len({first, *prints}) == 1 + len(changed)


def test_a_state_dict_file_in_training_s_wrapping(tmp_path: Path, weights: Path, make: Make) -> None:
    """open_clip's trainer saves {"epoch": ..., "state_dict": {"module....": ...}}."""
    path = tmp_path / "epoch.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors(build()).items()}}, path)
    assert Encoder(make(path)).info() == Encoder(make(weights)).info()


def test_half_precision_weights(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in tensors(build()).items()}, path)
    encoder = Encoder(make(path))
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    expected = build().encode_text(open_clip.tokenize(PROMPTS, context_length=20))  # type: ignore[operator]
    assert cosines(encoder.encode_text(PROMPTS), expected).min() > 0.9999


def refusal(spec: EncoderSpec) -> str:
    with pytest.raises(InputError) as error:
        Encoder(spec)
    (only,) = error.value.problems
    assert spec.pretrained in only
    return only


@pytest.mark.filterwarnings("ignore")
def test_torchscript_archives_are_refused_with_a_way_out(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "openai.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    said = refusal(make(path))
    assert "a TorchScript archive" in said
    assert "torch.jit.load(FILE, 'cpu').float().state_dict()" in said


RAN: list[str] = []


class Bomb:
    """Unpickling it runs code."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return RAN.append, ("code",)


def test_code_in_weights_is_refused_and_does_not_run(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({**tensors(build()), "bomb": Bomb()}, path)
    said = refusal(make(path))
    assert "holds more than tensors, which could run code when loaded" in said
    assert RAN == []


@pytest.mark.parametrize("content", [b"", b"neither a pickle nor tensors" * 9, b"PK\x03\x04" + b"\0" * 50])
def test_damaged_files(content: bytes, tmp_path: Path, make: Make) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    assert "is damaged, or neither safetensors nor a state dict" in refusal(make(path))


def test_truncated_files(weights: Path, tmp_path: Path, make: Make) -> None:
    path = tmp_path / "cut.safetensors"
    spec = make(weights)
    path.write_bytes(weights.read_bytes()[:-100])
    assert "is damaged" in refusal(replace(spec, pretrained=str(path)))
    torch.save(tensors(build()), tmp_path / "whole.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes((tmp_path / "whole.pt").read_bytes()[:-2000])
    assert "is damaged" in refusal(make(cut))


def test_state_dicts_of_something_else(tmp_path: Path, make: Make) -> None:
    for said in ({}, [1, 2], {"state_dict": {}}, {"weight": torch.zeros(2)}):
        path = tmp_path / "other.pt"
        torch.save(said, path)
        assert "damaged" in (message := refusal(make(path))) or "does not fit the architecture" in message


def test_weights_of_another_architecture(weights: Path, make: Make) -> None:
    wider = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "width": 64}}
    said = refusal(make(weights, wider))
    assert "does not fit the architecture" in said
    assert "size mismatch" in said
    deeper = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 3}}
    assert "visual.transformer.resblocks.2" in refusal(make(weights, deeper))


def test_an_architecture_that_open_clip_cannot_build(weights: Path, make: Make) -> None:
    odd = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "windth": 64}}
    assert "windth" in refusal(make(weights, odd))


def test_weights_that_are_not_finite(tmp_path: Path, make: Make) -> None:
    for value in (float("nan"), float("inf")):
        damaged = tensors(build())
        damaged["visual.proj"][3, 1] = value
        path = tmp_path / "nan.safetensors"
        save_file(damaged, path)
        assert "has weights that are not finite, in visual.proj" in refusal(make(path))


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("offline")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", offline)
    spec = resolve_encoder(EncoderConfig(model="ViT-B-16-quickgelu", pretrained="openai"), "fp32")
    with pytest.raises(LadaError, match="Download them on a machine with network"):
        Encoder(spec)


def test_the_shipped_encoder() -> None:
    encoder = Encoder(resolve_encoder(EncoderConfig(model="demo-clip", pretrained="demo"), "fp32"))
    size = encoder.spec.preprocess.size
    assert encoder.encode_pixels(pixels(2, size)).shape == (2, encoder.info().width)
    assert np.isfinite(encoder.encode_text(PROMPTS)).all()


def test_vit_b_16_with_quick_gelu_from_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow-ish: the real architecture with random weights, against open_clip's own calls."""
    from lada_ray.encoder import clip

    monkeypatch.setitem(clip.BATCH, "cpu", 2)  # 64 padded images of this size take too long
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)
    model.eval()
    path = tmp_path / "vit_b_16.safetensors"
    save_file(tensors(model), path)
    with pytest.raises(InputError, match="quick_gelu: true"):
        resolve_encoder(EncoderConfig(model="ViT-B-16", pretrained=str(path)), "fp32")
    spec = resolve_encoder(EncoderConfig(model="ViT-B-16", pretrained=str(path), quick_gelu=True), "fp32")
    encoder, images = Encoder(spec), pixels(2, 224)
    with torch.inference_mode():
        image_cosines = cosines(encoder.encode_pixels(images), model.encode_image(normalised(images, spec)))
        tokens = open_clip.get_tokenizer("ViT-B-16-quickgelu")(PROMPTS)
        text_cosines = cosines(encoder.encode_text(PROMPTS), model.encode_text(tokens))
    print(f"\ncosines: images {image_cosines}, texts {text_cosines}")
    assert image_cosines.min() > 0.9999
    assert text_cosines.min() > 0.9999


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@on_gpu
def test_bf16_on_a_gpu_is_near_float32_on_the_cpu(weights: Path, make: Make) -> None:
    images = pixels(300)
    half = Encoder(make(weights, precision="bf16"), "cuda").encode_pixels(images)
    single = Encoder(make(weights), "cpu").encode_pixels(images)
    assert cosines(half, torch.from_numpy(single)).min() > 0.99


@on_gpu
def test_float32_on_a_gpu_is_float32(weights: Path, make: Make) -> None:
    images = pixels(300)
    encoders = [Encoder(make(weights), device) for device in ("cuda", "cpu")]
    there, here = (encoder.encode_pixels(images) for encoder in encoders)
    # TF32 would differ by about 1e-3.
    np.testing.assert_allclose(there, here, atol=5e-5)
    there, here = (encoder.encode_text(PROMPTS) for encoder in encoders)
    np.testing.assert_allclose(there, here, atol=5e-5)


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_its_batch_on_a_gpu(precision: str, weights: Path, make: Make) -> None:
    encoder, images = Encoder(make(weights, precision=precision), "cuda"), pixels(600)
    features = encoder.encode_pixels(images)
    for row in (0, 5, 255, 256, 599):
        np.testing.assert_array_equal(encoder.encode_pixels(images[row : row + 1])[0], features[row])
    shuffled = np.random.default_rng(1).permutation(600)
    np.testing.assert_array_equal(encoder.encode_pixels(images[shuffled]), features[shuffled])


@on_gpu
def test_a_gpu_that_is_only_visible_is_left_alone(weights: Path, make: Make) -> None:
    before = torch.cuda.memory_allocated()
    encoder = load_encoder(make(weights), device_for(0))
    encoder.encode_pixels(pixels(1))
    assert (encoder.device.type, torch.cuda.memory_allocated()) == ("cpu", before)
