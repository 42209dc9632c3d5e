"""What an encoder's configuration means, and every way in which its sources can contradict one another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from open_clip.factory import get_model_config
from open_clip.pretrained import get_pretrained_cfg
from safetensors.numpy import save_file

from lada_ray.config import EncoderConfig
from lada_ray.encoder import resolve as module
from lada_ray.encoder.resolve import OPENAI_MEAN, EncoderSpec, resolve_encoder, weights_file
from lada_ray.errors import InputError, LadaError

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def resolve(model: str, pretrained: str | Path | None, **stated: Any) -> EncoderSpec:
    name = None if pretrained is None else str(pretrained)
    return resolve_encoder(EncoderConfig(model=model, pretrained=name, **stated), "fp32")


def refused(model: str, pretrained: str | Path | None, **stated: Any) -> list[str]:
    with pytest.raises(InputError) as error:
        resolve(model, pretrained, **stated)
    assert error.value.problems
    return error.value.problems


def problem(model: str, pretrained: str | Path | None, **stated: Any) -> str:
    (only,) = refused(model, pretrained, **stated)
    return only


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write(tmp_path / "weights.safetensors")


def write(path: Path, **header: str) -> Path:
    save_file({"a": np.zeros(1, np.float32)}, path, header or None)
    return path


def write_json(path: Path, said: object) -> Path:
    path.write_text(json.dumps(said))
    return path


# Hub tags


def test_openai_weights_with_the_plain_name_are_an_error() -> None:
    said = problem("ViT-B-16", "openai")
    assert "the tag openai says true" in said
    assert "the name ViT-B-16 says false" in said
    assert "ViT-B-16-quickgelu" in said


def test_openai_weights_with_the_quick_name() -> None:
    spec = resolve("ViT-B-16-quickgelu", "openai")
    assert spec.architecture["quick_gelu"] is True
    assert (spec.model, spec.pretrained, spec.precision) == ("ViT-B-16-quickgelu", "openai", "fp32")
    assert spec.preprocess == module.Preprocess(224, OPENAI_MEAN, module.OPENAI_STD)
    assert spec.local_weights is None


def test_stating_the_tag_s_activation_settles_the_plain_name() -> None:
    assert resolve("ViT-B-16", "openai", quick_gelu=True).architecture["quick_gelu"] is True
    assert resolve("ViT-B-16", "laion2b_s34b_b88k", quick_gelu=False).architecture["quick_gelu"] is False


@pytest.mark.parametrize(
    ("model", "tag", "stated"),
    [
        ("ViT-B-16", "openai", False),
        ("ViT-B-16-quickgelu", "openai", False),
        ("ViT-B-16", "laion2b_s34b_b88k", True),
    ],
)
def test_stating_another_activation_than_the_tag_is_an_error(model: str, tag: str, stated: bool) -> None:
    said = problem(model, tag, quick_gelu=stated)
    assert f"the tag {tag} says {str(not stated).lower()}" in said
    assert f"encoder.quick_gelu says {str(stated).lower()}" in said


def test_every_published_pair_resolves_as_open_clip_builds_it_or_names_the_twin() -> None:
    refusals = 0
    for model, tag in open_clip.list_pretrained():
        published, quick = (
            get_pretrained_cfg(model, tag),
            (get_model_config(model) or {}).get("quick_gelu", False),
        )
        twin = f"{model}-quickgelu"
        if published.get("quick_gelu", False) != quick and twin in open_clip.list_models():
            assert twin in problem(model, tag)
            refusals += 1
            continue
        spec = resolve(model, tag)
        assert spec.architecture["quick_gelu"] == published.get("quick_gelu", quick)
        assert spec.preprocess.mean == tuple(published["mean"])
        assert spec.preprocess.std == tuple(published["std"])
        assert (spec.preprocess.interpolation, spec.preprocess.resize_mode) == (
            published["interpolation"],
            published["resize_mode"],
        )
    assert refusals >= 25


def test_a_tag_says_its_preprocessing() -> None:
    pre = resolve("ViT-B-16-SigLIP", "webli").preprocess
    assert (pre.mean, pre.resize_mode, pre.size) == ((0.5,) * 3, "squash", 224)


def test_unknown_names() -> None:
    assert "'ViT-B-16-quickgleu' (nearest: 'ViT-B-16-quickgelu')" in " ".join(
        refused("ViT-B-16-quickgleu", "openai")
    )
    said = problem("ViT-B-16-quickgelu", "laion2b_s34b_b88k")
    assert said == (
        "encoder.pretrained: 'laion2b_s34b_b88k' is no tag of ViT-B-16-quickgelu; its tags are "
        "openai, dfn2b, metaclip_400m, metaclip_fullcc"
    )
    assert "it has no tags: give a weights file" in problem("ViT-S-16", "openai")


def test_all_problems_at_once(tmp_path: Path) -> None:
    problems = refused("ViT-B-61", tmp_path / "none.safetensors")
    assert len(problems) == 2
    assert "encoder.model" in problems[0]
    assert problems[1] == f"encoder.pretrained: there is no file {tmp_path / 'none.safetensors'}"


def test_weights_must_be_given() -> None:
    assert "give a hub tag" in problem("ViT-B-16", None)


@pytest.mark.parametrize("model", ["local-dir:/some/folder", "hf-hub:some/repository"])
def test_folders_and_repositories_are_no_names(model: str, weights: Path) -> None:
    assert "open_clip_config.json as encoder.architecture" in problem(model, weights)


# Local files


def test_a_bare_file_with_a_twin_shows_both_settings(weights: Path) -> None:
    said = problem("ViT-B-16", weights)
    assert "quick_gelu: true " in said
    assert "quick_gelu: false" in said
    assert str(weights) in said


@pytest.mark.parametrize("quick", [True, False])
def test_a_bare_file_with_its_activation_stated(quick: bool, weights: Path) -> None:
    spec = resolve("ViT-B-16", weights, quick_gelu=quick)
    assert spec.architecture["quick_gelu"] is quick
    assert spec.local_weights == weights
    assert spec.preprocess.mean == OPENAI_MEAN


def test_the_quick_name_is_a_statement(weights: Path) -> None:
    assert resolve("ViT-B-16-quickgelu", weights).architecture["quick_gelu"] is True
    assert "encoder.quick_gelu says false" in problem("ViT-B-16-quickgelu", weights, quick_gelu=False)


@pytest.mark.parametrize("quick", ["true", "false", "True"])
def test_the_header_decides(quick: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", quick_gelu=quick)
    assert resolve("ViT-B-16", path).architecture["quick_gelu"] is (quick.lower() == "true")


def test_the_header_contradicts(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", quick_gelu="true")
    said = problem("ViT-B-16", path, quick_gelu=False)
    assert "the header of w.safetensors says true" in said
    assert "encoder.quick_gelu says false" in said
    path = write(tmp_path / "w.safetensors", quick_gelu="false")
    assert "says false" in problem("ViT-B-16-quickgelu", path)


def test_an_architecture_without_a_twin_needs_no_statement(weights: Path) -> None:
    assert resolve("ViT-B-16-SigLIP", weights).architecture["quick_gelu"] is False


def test_the_folder_s_configuration_decides(weights: Path) -> None:
    said = {
        "model_cfg": {"quick_gelu": True},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear", "size": [224, 224]},
    }
    beside = write_json(weights.parent / "open_clip_config.json", said)
    spec = resolve("ViT-B-16", weights)
    assert spec.architecture["quick_gelu"] is True
    assert (spec.preprocess.mean, spec.preprocess.interpolation) == ((0.1, 0.2, 0.3), "bilinear")
    assert spec.preprocess.std == module.OPENAI_STD
    assert f"{beside} says true" in problem("ViT-B-16", weights, quick_gelu=False)


def test_header_and_folder_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", quick_gelu="true", preprocess='{"mean": [0.5, 0.5, 0.5]}')
    write_json(tmp_path / "open_clip_config.json", {"preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}})
    said = problem("ViT-B-16", path)
    assert said.startswith("encoder.preprocess.mean: ")
    assert "(0.5, 0.5, 0.5)" in said
    assert "(0.1, 0.2, 0.3)" in said


def test_the_header_s_preprocessing(tmp_path: Path) -> None:
    said = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "longest"}
    path = write(tmp_path / "w.safetensors", quick_gelu="false", preprocess=json.dumps(said))
    pre = resolve("ViT-B-16", path).preprocess
    assert (pre.mean, pre.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (pre.interpolation, pre.resize_mode) == ("bilinear", "longest")
    agreeing = {"preprocess": {"mean": [0.5] * 3}}
    assert resolve("ViT-B-16", path, **agreeing).preprocess == pre
    assert "encoder.preprocess says (0.1, 0.1, 0.1)" in problem(
        "ViT-B-16", path, preprocess={"mean": [0.1] * 3}
    )


def test_a_bare_file_takes_what_its_architecture_s_tags_agree_on(weights: Path) -> None:
    pre = resolve("ViT-B-16-SigLIP", weights).preprocess
    assert (pre.mean, pre.std, pre.resize_mode) == ((0.5,) * 3, (0.5,) * 3, "squash")


def test_what_a_statement_leaves_open_comes_from_the_tags_too(weights: Path) -> None:
    pre = resolve("ViT-B-16-SigLIP", weights, preprocess={"interpolation": "bilinear"}).preprocess
    assert (pre.mean, pre.resize_mode, pre.interpolation) == ((0.5,) * 3, "squash", "bilinear")


def test_a_bare_file_whose_tags_differ_needs_a_statement(weights: Path, tmp_path: Path) -> None:
    problems = refused("ViT-L-14", weights, quick_gelu=False)
    assert [p.split(":")[0] for p in problems] == ["encoder.preprocess.mean", "encoder.preprocess.std"]
    assert "(0.5, 0.5, 0.5)" in problems[0]
    stated = {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert resolve("ViT-L-14", weights, quick_gelu=False, preprocess=stated).preprocess.mean == (0.5,) * 3
    # A header with the activation alone does not say the preprocessing either.
    path = write(tmp_path / "quick.safetensors", quick_gelu="true")
    assert "encoder.preprocess.resize_mode" in problem("ViT-H-14-quickgelu", path)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64])
def test_files_that_are_not_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    assert "is not a safetensors file" in problem("ViT-B-16", path, quick_gelu=True)


def test_damaged_statements_are_problems_not_crashes(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", preprocess="{mean")
    assert "its header's 'preprocess' is not JSON" in problem("ViT-B-16", path, quick_gelu=True)
    path = write(tmp_path / "w.safetensors")
    (tmp_path / "open_clip_config.json").write_text("[1, 2")
    assert "open_clip_config.json is not JSON" in problem("ViT-B-16", path, quick_gelu=True)
    write_json(tmp_path / "open_clip_config.json", {"preprocess_cfg": {"interpolation": "lanczos"}})
    assert "'lanczos' is none of bicubic, bilinear" in problem("ViT-B-16", path, quick_gelu=True)


def test_a_state_dict_beside_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")  # not opened before it is loaded
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": {"quick_gelu": False}})
    assert resolve("ViT-B-16", tmp_path / "w.pt").architecture["quick_gelu"] is False


# Architectures of one's own


def test_an_architecture_file(weights: Path, tmp_path: Path) -> None:
    path = write_json(tmp_path / "tiny.json", {**TINY, "quick_gelu": True})
    spec = resolve("tiny", weights, architecture=str(path))
    assert spec.architecture == {**TINY, "quick_gelu": True}
    assert spec.preprocess.size == 32
    assert "encoder.architecture says true" in problem(
        "tiny", weights, architecture=str(path), quick_gelu=False
    )
    path = write_json(tmp_path / "tiny.json", TINY)
    assert resolve("tiny", weights, architecture=str(path)).architecture["quick_gelu"] is False
    stated = resolve("tiny", weights, architecture=str(path), quick_gelu=True)
    assert stated.architecture["quick_gelu"] is True


def test_an_open_clip_config_as_architecture(weights: Path, tmp_path: Path) -> None:
    said = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3}}
    path = write_json(tmp_path / "config.json", said)
    spec = resolve("tiny", weights, architecture=str(path))
    assert spec.architecture == {**TINY, "quick_gelu": False}
    assert spec.preprocess.mean == (0.5,) * 3


def test_an_architecture_s_image_size(weights: Path, tmp_path: Path) -> None:
    def with_size(**size: object) -> str:
        vision = {k: v for k, v in TINY["vision_cfg"].items() if k != "image_size"}  # type: ignore[attr-defined]
        return str(write_json(tmp_path / "a.json", {**TINY, "vision_cfg": {**vision, **size}}))

    assert resolve("tiny", weights, architecture=with_size()).preprocess.size == 224
    assert resolve("tiny", weights, architecture=with_size(image_size=[64, 64])).preprocess.size == 64
    said = problem("tiny", weights, architecture=with_size(image_size=[64, 96]))
    assert "images of 64 x 96; only square ones" in said


def test_damaged_architecture_files(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert f"there is no file {path}" in problem("tiny", weights, architecture=str(path))
    path.write_text("{")
    assert "is not JSON" in problem("tiny", weights, architecture=str(path))
    path.write_text("3")
    assert "is not a JSON object" in problem("tiny", weights, architecture=str(path))
    path.write_text('{"embed_dim": 8}')
    assert "lacks vision_cfg, text_cfg" in problem("tiny", weights, architecture=str(path))


def test_the_shipped_encoder_resolves() -> None:
    spec = resolve("demo-clip", "demo")
    assert spec.local_weights is not None
    assert spec.local_weights.is_file()


# The rest


def test_precision_is_the_configuration_s_or_the_machine_s() -> None:
    assert resolve("ViT-B-16-quickgelu", "openai", precision="bf16").precision == "bf16"
    assert (
        resolve_encoder(EncoderConfig(model="RN50-quickgelu", pretrained="openai"), "bf16").precision
        == "bf16"
    )


def test_a_spec_survives_json() -> None:
    spec = resolve("ViT-B-16-SigLIP", "webli")
    assert EncoderSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_failed_download_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", offline)
    with pytest.raises(LadaError, match="ViT-B-16-quickgelu / openai") as error:
        weights_file(resolve("ViT-B-16-quickgelu", "openai"))
    assert "ConnectionError: no route to host" in str(error.value)
    assert "give the file as encoder.pretrained" in str(error.value)
    assert weights_file(resolve("ViT-B-16", weights, quick_gelu=True)) == weights


@pytest.mark.parametrize(
    ("given", "in_files"),
    [
        ({"model": "demo-clip", "pretrained": "demo"}, True),
        ({"model": "own", "architecture": "/own.json", "pretrained": "/own.safetensors"}, True),
        ({"model": "own", "architecture": "/own.json", "pretrained": "openai"}, False),
        ({"model": "ViT-B-16", "pretrained": "/own.safetensors"}, False),
        ({"model": "ViT-B-16"}, False),
    ],
)
def test_whether_files_say_it_all(given: dict[str, str], in_files: bool) -> None:
    assert EncoderConfig(**given).in_files == in_files


def test_an_encoder_in_files_is_settled_without_open_clip() -> None:
    """Its import takes seconds of a job's start."""
    code = """if True:
        import sys
        from lada_ray.config import EncoderConfig
        from lada_ray.encoder.resolve import SHIPPED, resolve_encoder
        files = {"architecture": f"{SHIPPED}/demo-clip.json", "pretrained": f"{SHIPPED}/demo-clip.safetensors"}
        for given in ({"pretrained": "demo"}, files):
            resolve_encoder(EncoderConfig(model="demo-clip", **given), "fp32")
        assert "open_clip" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
