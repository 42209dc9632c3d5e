"""Which encoder a configuration means: architecture, activation, preprocessing; contradictions are errors.

Weights run with the wrong activation or the wrong mean lose accuracy without any error, so everything that
states how the weights were trained is collected (configuration, hub tag, safetensors header, the folder's
open_clip_config.json, the architecture's JSON) and has to agree.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lada_ray.config import DEMO, EncoderConfig, is_file_name
from lada_ray.errors import InputError, LadaError
from lada_ray.store import is_remote, open_store
from lada_ray.views import Preprocess

SHIPPED_MODEL = "demo-clip"
SHIPPED = Path(__file__).parent.parent / "encoders"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# open_clip's default, for an architecture that does not say it.
OPEN_CLIP_IMAGE_SIZE = 224
CHOICES = {"interpolation": ("bicubic", "bilinear"), "resize_mode": ("shortest", "longest", "squash")}
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
QUICK = "-quickgelu"


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build the encoder again, as plain JSON values."""

    model: str
    """open_clip's name of the architecture."""
    pretrained: str
    """A hub tag, the path of a local file, or "demo"."""
    architecture: dict[str, Any]
    """open_clip's model configuration, `quick_gelu` included."""
    preprocess: Preprocess
    precision: str
    """"fp32", or "bf16" for the image tower under autocast."""

    @property
    def local_weights(self) -> Path | None:
        """The local weights file; None for a hub tag, and for a file in an object store."""
        if self.pretrained == DEMO:
            # By name, not by path: a model learnt with it can be loaded wherever the package is installed.
            return SHIPPED / f"{self.model}.safetensors"
        here = is_file_name(self.pretrained) and not is_remote(self.pretrained)
        return Path(self.pretrained) if here else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for model.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EncoderSpec:
        """The inverse of `to_json`."""
        pre = values["preprocess"]
        preprocess = Preprocess(**{**pre, "mean": tuple(pre["mean"]), "std": tuple(pre["std"])})
        return cls(**{**values, "preprocess": preprocess})


def resolve_encoder(config: EncoderConfig, precision: str) -> EncoderSpec:
    """Find the architecture and settle activation and preprocessing.

    Args:
        config: the `encoder` part of a configuration, paths already absolute.
        precision: "fp32" or "bf16", used where the configuration leaves it open.

    Raises:
        InputError: unknown model or tag, missing file, statements that contradict one another; all at once.
    """
    given, config = config.pretrained, _shipped(config)
    problems: list[str] = []
    architecture = _architecture(config, problems)
    size = _image_size(architecture, problems) if architecture else 0
    claims = _claims(config, architecture, problems)
    if problems or architecture is None or given is None:
        raise InputError(problems, "The encoder cannot be used")
    quick_gelu = _settle_quick_gelu(config, architecture, claims, problems)
    preprocess = _settle_preprocess(config, claims, problems)
    if problems:
        raise InputError(problems, "The encoder cannot be used")
    architecture.pop("preprocess_cfg", None)
    return EncoderSpec(
        model=config.model,
        pretrained=given,
        architecture={**architecture, "quick_gelu": quick_gelu},
        preprocess=Preprocess(size=size, **preprocess),
        precision=config.precision or precision,
    )


def _shipped(config: EncoderConfig) -> EncoderConfig:
    """`pretrained: demo` is the small encoder that comes with the package."""
    if config.pretrained != DEMO:
        return config
    files = {
        "pretrained": str(SHIPPED / f"{config.model}.safetensors"),
        "architecture": str(SHIPPED / f"{config.model}.json"),
    }
    return config.model_copy(update=files)


def _architecture(config: EncoderConfig, problems: list[str]) -> dict[str, Any] | None:
    if config.architecture is not None:
        return _read_architecture(Path(config.architecture), problems)
    from open_clip import list_models
    from open_clip.factory import get_model_config

    if ":" in config.model:
        problems.append(
            f"encoder.model: {config.model!r}: names that are folders or repositories are not read; give an "
            "architecture's name, or the folder's open_clip_config.json as encoder.architecture, and its "
            "weights file as encoder.pretrained"
        )
        return None
    known = get_model_config(config.model)
    if known is None:
        shipped = config.model == SHIPPED_MODEL
        near = (
            f"; {SHIPPED_MODEL} goes with pretrained: {DEMO}"
            if shipped
            else _nearest(config.model, list_models())
        )
        problems.append(
            f"encoder.model: open_clip has no {config.model!r}{near}; for your own, give encoder.architecture"
        )
    return known


def _read_architecture(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """An open_clip model configuration, or an open_clip_config.json that holds one under `model_cfg`."""
    try:
        said = _read_object(path)
    except FileNotFoundError:
        problems.append(f"encoder.architecture: there is no file {path}")
        return None
    except ValueError as error:
        problems.append(f"encoder.architecture: {error}")
        return None
    architecture = {**said.get("model_cfg", said)}
    if "preprocess_cfg" in said:
        architecture["preprocess_cfg"] = said["preprocess_cfg"]
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in architecture]
    if missing:
        lacks = ", ".join(missing)
        problems.append(f"encoder.architecture: {path} lacks {lacks} (open_clip's model configuration)")
        return None
    return architecture


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError names the file that is none."""
    try:
        said = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} is not a JSON object")
    return said


def _image_size(architecture: Mapping[str, Any], problems: list[str]) -> int:
    size = architecture["vision_cfg"].get("image_size", OPEN_CLIP_IMAGE_SIZE)
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        problems.append(f"encoder.model: takes images of {height} x {width}; only square ones are supported")
    return height


def _nearest(word: str, words: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, words, n=1)
    return f" (nearest: {near[0]!r})" if near else ""


def _claims(
    config: EncoderConfig, architecture: dict[str, Any] | None, problems: list[str]
) -> dict[str, dict[str, Any]]:
    """What each source says of the weights, {source: {"quick_gelu": bool, "mean": [...], ...}}."""
    if config.pretrained is None:
        problems.append("encoder.pretrained is missing: give a hub tag (such as openai) or a weights file")
        return {}
    claims = {
        "encoder.architecture": _stated(architecture or {}, (architecture or {}).get("preprocess_cfg", {}))
    }
    if is_file_name(config.pretrained):
        claims |= _file_claims(Path(config.pretrained), problems)
    else:
        claims |= _tag_claims(config, architecture or {}, problems)
    return {source: said for source, said in claims.items() if said}


def _stated(model: Mapping[str, Any], preprocess: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {key: preprocess[key] for key in PREPROCESS_KEYS if preprocess.get(key)}
    if "quick_gelu" in model:
        said["quick_gelu"] = bool(model["quick_gelu"])
    return said


def _tag_claims(
    config: EncoderConfig, architecture: Mapping[str, Any], problems: list[str]
) -> dict[str, dict[str, Any]]:
    from open_clip import list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    tag = get_pretrained_cfg(config.model, str(config.pretrained))
    if not tag:
        tags = list_pretrained_tags_by_model(config.model)
        listed = f"its tags are {', '.join(tags)}" if tags else "it has no tags: give a weights file"
        problems.append(f"encoder.pretrained: {config.pretrained!r} is no tag of {config.model}; {listed}")
        return {}
    # A tag that does not mention quick GELU is without, unless its architecture has no plain form
    # (roberta-ViT-B-32).
    only_quick = (
        config.architecture is None and architecture.get("quick_gelu") and not _has_twin(config.model)
    )
    implied = {} if only_quick else {"quick_gelu": False}
    return {f"the tag {config.pretrained}": {**implied, **_stated(tag, tag)}}


def _file_claims(path: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        problems.append(f"encoder.pretrained: there is no file {path}")
        return {}
    claims = {}
    beside = path.parent / "open_clip_config.json"
    try:
        if path.suffix == ".safetensors":
            claims[f"the header of {path.name}"] = _header_claims(path)
        if beside.is_file():
            said = _read_object(beside)
            claims[str(beside)] = _stated(said.get("model_cfg", {}), said.get("preprocess_cfg", {}))
    except ValueError as error:
        problems.append(f"encoder.pretrained: {error}")
    return claims


def _header_claims(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
        preprocess = json.loads(header.get("preprocess", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: its header's 'preprocess' is not JSON: {error}") from error
    quick = {"quick_gelu": header["quick_gelu"].lower() == "true"} if "quick_gelu" in header else {}
    return _stated(quick, preprocess)


def _settle_quick_gelu(
    config: EncoderConfig,
    architecture: dict[str, Any],
    claims: dict[str, dict[str, Any]],
    problems: list[str],
) -> bool:
    said = {source: claim["quick_gelu"] for source, claim in claims.items() if "quick_gelu" in claim}
    if config.quick_gelu is not None:
        said["encoder.quick_gelu"] = config.quick_gelu
    elif config.architecture is None and _has_twin(config.model):
        plain_name = not said.get("encoder.architecture", False)
        if plain_name and is_file_name(str(config.pretrained)) and not said:
            problems.append(_state_quick_gelu(config))
        elif plain_name and not is_file_name(str(config.pretrained)):
            said[f"the name {config.model}"] = False
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{source} says {str(value).lower()}" for source, value in said.items())
        plain = config.model.removesuffix(QUICK)
        hint = f"; encoder.model: {plain}{QUICK} is the one with quick GELU, {plain} the one without"
        problems.append(f"encoder.quick_gelu: {listed}{hint if _has_twin(config.model) else ''}")
    return next(iter(said.values()), False)


def _has_twin(model: str) -> bool:
    from open_clip import list_models

    return model.removesuffix(QUICK) + QUICK in list_models()


def _state_quick_gelu(config: EncoderConfig) -> str:
    return (
        f"encoder.quick_gelu: {config.pretrained} does not say with which activation it was trained, and "
        f"{config.model} exists with both. State\n"
        "        quick_gelu: true     for OpenAI's weights and those derived from them (DFN, MetaCLIP)\n"
        "        quick_gelu: false    for weights trained with plain GELU (LAION, DataComp)"
    )


def _settle_preprocess(
    config: EncoderConfig, claims: dict[str, dict[str, Any]], problems: list[str]
) -> dict[str, Any]:
    settled: dict[str, Any] = {}
    stated = config.preprocess.model_dump(exclude_none=True) if config.preprocess else {}
    claims = {**claims, "encoder.preprocess": stated}
    for key in PREPROCESS_KEYS:
        said = {source: _plain(claim[key]) for source, claim in claims.items() if claim.get(key)}
        if len(set(said.values())) > 1:
            listed = ", ".join(f"{source} says {value}" for source, value in said.items())
            problems.append(f"encoder.preprocess.{key}: {listed}")
        settled[key] = next(iter(said.values())) if said else _usual(config, key, problems)
        if settled[key] not in CHOICES.get(key, (settled[key],)):
            known = ", ".join(CHOICES[key])
            problems.append(f"encoder.preprocess.{key}: {settled[key]!r} is none of {known}")
    return settled


def _usual(config: EncoderConfig, key: str, problems: list[str]) -> Any:
    """For a bare file: what the hub tags of its architecture agree on, else OpenAI's."""
    default = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic", "resize_mode": "shortest"}[
        key
    ]
    if config.architecture is not None:
        return default
    from open_clip import list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    tags = list_pretrained_tags_by_model(config.model)
    values = {_plain(get_pretrained_cfg(config.model, tag).get(key, default)) for tag in tags}
    if len(values) > 1:
        listed = " or ".join(str(value) for value in sorted(values))
        problems.append(
            f"encoder.preprocess.{key}: {config.pretrained} does not say it, and published weights of "
            f"{config.model} have {listed}; state it"
        )
    return next(iter(values), default)


def _plain(value: Any) -> Any:
    return tuple(float(v) for v in value) if isinstance(value, (list, tuple)) else value


def weights_file(spec: EncoderSpec) -> Path:
    """The weights on this machine's disk; a hub tag is downloaded (once, into open_clip's cache).

    Raises:
        LadaError: if the download fails, saying how to go on without network.
    """
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    if spec.local_weights is not None:
        return spec.local_weights
    if is_remote(spec.pretrained):
        return fetch_weights(spec.pretrained)
    try:
        return Path(download_pretrained(get_pretrained_cfg(spec.model, spec.pretrained)))
    # Hub clients raise many kinds of errors; every one means the same to the user.
    except Exception as error:
        raise LadaError(
            f"the weights {spec.model} / {spec.pretrained} could not be downloaded "
            f"({type(error).__name__}: {error}). Download them on a machine with network, and give the "
            "file as encoder.pretrained"
        ) from error


def fetch_weights(uri: str) -> Path:
    """Weights in an object store, on this machine's disk; fetched once into the user's cache.

    Raises:
        FileNotFoundError: there is nothing at `uri`.
    """
    folder, _, name = uri.rpartition("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lada_ray"
    key = f"{hashlib.sha256(folder.encode()).hexdigest()[:16]}/{name}"
    store = open_store(cache)
    if not store.exists(key):
        store.create(key, open_store(folder).read(name))
    return cache / key
