"""CLIP's own text features of class prompts, and what an encoder is: computed once, kept beside the bank."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from lada_ray.encoder import EncoderInfo, EncoderSpec, load_encoder
from lada_ray.errors import InputError, IntegrityError
from lada_ray.features.bank import FeatureBank
from lada_ray.store import Store

Prompts = tuple[str, ...]


def make_prompts(template: str, class_names: Sequence[str]) -> Prompts:
    """The prompts of a domain's classes; the name goes where the template has {}."""
    return tuple(template.replace("{}", name) for name in class_names)


def text_key(prompts: Sequence[str]) -> str:
    """Where the features of these prompts are kept, below the bank of their encoder."""
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
    return f"text/{digest[:32]}.safetensors"


def read_text(bank: FeatureBank, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
    """CLIP's own text features of prompts, raw, [n, d], that `describe` left."""
    from safetensors.numpy import load

    return load(bank.store.read(text_key(prompts)))["text"]


def known_info(features: Store, spec: EncoderSpec, key: str | None = None) -> EncoderInfo | None:
    """What an earlier run found out about this encoder; None if none did, or its file has changed.

    Args:
        features: the features folder of the storage.
        spec: the encoder.
        key: `info_key(spec)` where it was asked first; None: asked here.
    """
    found = features.read_version(key or info_key(spec))
    values = json.loads(found[0]) if found else {}
    # An older version knew less of it, a newer one more: then it is found out again.
    known = values.keys() == {field.name for field in fields(EncoderInfo)}
    return EncoderInfo(**values) if known else None


def describe(
    features: Store,
    spec: EncoderSpec,
    stream_prompts: Sequence[Prompts],
    device: str = "cpu",
    key: str | None = None,
) -> EncoderInfo:
    """Load the encoder, find out what it is, and keep the text features of all prompts; runs in a Ray task.

    Args:
        features: the features folder of the storage.
        spec: the encoder.
        stream_prompts: the prompts of each domain.
        device: "cuda" if the task was given a GPU.
        key: `info_key(spec)` of the caller, which another node's copy of the weights has no say in.

    Raises:
        InputError: if its weights or text features are not finite.
        IntegrityError: if this node's weights are not those that an earlier run described.
    """
    key = key or info_key(spec)
    encoder = load_encoder(spec, device)
    info, known = encoder.info(), known_info(features, spec, key)
    if known is not None and known.fingerprint != info.fingerprint:
        raise IntegrityError(
            f"on the node {socket.gethostname()}, {spec.pretrained} is another encoder ({info.feature_key}) than an "
            f"earlier run found ({known.feature_key}). Put the same file on every node; if the new one is meant, "
            f"delete {features.uri}/{key}"
        )
    bank = FeatureBank(features, info.feature_key, info.width)
    for prompts in stream_prompts:
        if not bank.store.exists(text_key(prompts)):
            _keep(bank, prompts, encoder.encode_text(prompts))
    features.write(key, json.dumps(info.to_json(), indent=1).encode())
    return info


def known_text(features: Store, info: EncoderInfo, stream_prompts: Sequence[Prompts]) -> bool:
    """Whether the features of all prompts are kept already."""
    bank = FeatureBank(features, info.feature_key, info.width)
    return all(bank.store.exists(text_key(prompts)) for prompts in stream_prompts)


def _keep(bank: FeatureBank, prompts: Prompts, text: npt.NDArray[np.float32]) -> None:
    from safetensors.numpy import save

    if not np.isfinite(text).all():
        raise InputError(
            [f"its text features of {prompts[0]!r} are not finite: the weights are damaged"], "The encoder"
        )
    bank.store.create(text_key(prompts), save({"text": text}))


def info_key(spec: EncoderSpec) -> str:
    """Where it is kept what this encoder is: the spec, and size and time of this machine's local weights file."""
    said: list[object] = [spec.to_json()]
    if spec.local_weights is not None:
        stat = spec.local_weights.stat()
        said += [stat.st_size, stat.st_mtime_ns]
    return f"encoders/{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]}.json"
