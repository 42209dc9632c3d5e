"""Text features of prompts and facts about the encoder: found out once, kept beside the bank."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lada_ray.encoder import EncoderSpec, load_encoder
from lada_ray.errors import InputError, IntegrityError
from lada_ray.features import text as module
from lada_ray.features.bank import FeatureBank
from lada_ray.features.text import (
    describe,
    info_key,
    known_info,
    known_text,
    make_prompts,
    read_text,
    text_key,
)
from lada_ray.store import open_store

CATS, DOGS = ("a photo of a cat.", "a photo of a lion."), ("a photo of a dog.",)


def test_the_name_goes_where_the_template_has_braces() -> None:
    assert make_prompts("a photo of a {}, a {}.", ["cat", "{}"]) == (
        "a photo of a cat, a cat.",
        "a photo of a {}, a {}.",
    )


def test_keys_tell_prompts_and_their_order_apart() -> None:
    keys = {text_key(p) for p in (["ab"], ["a", "b"], ["b", "a"], ["a b"])}
    assert len(keys) == 4
    assert text_key(("a", "b")) == text_key(["a", "b"])


def test_describe_keeps_clips_own_features(tmp_path: Path, tiny_encoder: EncoderSpec) -> None:
    features = open_store(tmp_path)
    assert known_info(features, tiny_encoder) is None
    info = describe(features, tiny_encoder, [CATS, DOGS])
    assert (info.width, round(info.tau, 4)) == (32, 14.2857)
    assert known_info(features, tiny_encoder) == info
    bank = FeatureBank(features, info.feature_key, info.width)
    assert np.array_equal(read_text(bank, CATS), load_encoder(tiny_encoder, "cpu").encode_text(CATS))
    assert known_text(features, info, [CATS, DOGS])
    assert not known_text(features, info, [CATS, (*DOGS, "a wolf")])


def test_known_prompts_are_not_encoded_again(
    tmp_path: Path, tiny_encoder: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = open_store(tmp_path)
    describe(features, tiny_encoder, [CATS])
    encoded: list[tuple[str, ...]] = []
    encoder = load_encoder(tiny_encoder, "cpu")
    encode = encoder.encode_text
    monkeypatch.setattr(encoder, "encode_text", lambda p: encoded.append(p) or encode(p))
    monkeypatch.setattr(module, "load_encoder", lambda spec, device: encoder)
    describe(features, tiny_encoder, [CATS, DOGS])
    assert encoded == [DOGS]


def test_a_changed_weights_file_is_another_encoder(tmp_path: Path, tiny_encoder: EncoderSpec) -> None:
    weights = tmp_path / "w.safetensors"
    shutil.copy(tiny_encoder.pretrained, weights)
    spec = replace(tiny_encoder, pretrained=str(weights))
    features = open_store(tmp_path / "features")
    first = describe(features, spec, [])
    tensors = load_file(weights)
    save_file({name: 2 * t if name == "visual.proj" else t for name, t in tensors.items()}, weights)
    os.utime(weights, ns=(1, 1))
    assert known_info(features, spec) is None
    assert describe(features, spec, []).fingerprint != first.fingerprint


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, tiny_encoder: EncoderSpec) -> None:
    tensors = load_file(tiny_encoder.pretrained)
    tensors["text_projection"] = np.full_like(tensors["text_projection"], np.nan)
    save_file(tensors, tmp_path / "nan.safetensors")
    spec = replace(tiny_encoder, pretrained=str(tmp_path / "nan.safetensors"))
    with pytest.raises(InputError, match="not finite"):
        describe(open_store(tmp_path), spec, [CATS])


def test_what_an_older_version_found_out_is_found_out_again(
    tmp_path: Path, tiny_encoder: EncoderSpec
) -> None:
    features = open_store(tmp_path)
    info = describe(features, tiny_encoder, [])
    assert info.not_tunable is None
    values = info.to_json()
    del values["not_tunable"]
    features.write(info_key(tiny_encoder), json.dumps(values).encode())
    assert known_info(features, tiny_encoder) is None
    assert describe(features, tiny_encoder, []) == info
    assert known_info(features, tiny_encoder) == info


def test_the_key_is_the_caller_s_whatever_this_node_s_file_says(
    tmp_path: Path, tiny_encoder: EncoderSpec
) -> None:
    weights = tmp_path / "w.safetensors"
    shutil.copy(tiny_encoder.pretrained, weights)
    spec, features = replace(tiny_encoder, pretrained=str(weights)), open_store(tmp_path / "features")
    key = info_key(spec)
    os.utime(weights, ns=(1, 1))  # the worker's copy is older
    assert info_key(spec) != key
    info = describe(features, spec, [], key=key)
    assert known_info(features, spec, key) == info
    assert known_info(features, spec) is None


def test_another_node_s_other_weights_are_refused(tmp_path: Path, tiny_encoder: EncoderSpec) -> None:
    weights = tmp_path / "w.safetensors"
    shutil.copy(tiny_encoder.pretrained, weights)
    spec, features = replace(tiny_encoder, pretrained=str(weights)), open_store(tmp_path / "features")
    key = info_key(spec)
    describe(features, spec, [], key=key)
    tensors = load_file(weights)
    save_file({name: 2 * t if name == "visual.proj" else t for name, t in tensors.items()}, weights)
    with pytest.raises(
        IntegrityError, match=r"on the node .*w\.safetensors is another encoder .*delete .*\.json"
    ):
        describe(features, spec, [CATS], key=key)


def test_the_device_is_the_one_that_was_said(
    tmp_path: Path, tiny_encoder: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encoder = load_encoder(tiny_encoder, "cpu")
    monkeypatch.setattr(module, "load_encoder", lambda spec, device: asked.append(device) or encoder)
    describe(open_store(tmp_path), tiny_encoder, [])
    describe(open_store(tmp_path), tiny_encoder, [], "cuda")
    assert asked == ["cpu", "cuda"]
