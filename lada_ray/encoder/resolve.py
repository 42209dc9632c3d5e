"""Which encoder a configuration means: architecture, activation, preprocessing; contradictions are errors.

Weights run with the wrong activation or the wrong mean lose accuracy without any error, so everything that states
how the weights were trained is collected (configuration, hub tag, safetensors header, the folder's
open_clip_config.json, the architecture's JSON) and has to agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lada_ray.config import EncoderConfig
from lada_ray.errors import InputError, LadaError
from lada_ray.views import Preprocess

SHIPPED = Path(__file__).parent.parent / "encoders"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
QUICK = "-quickgelu"


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build the encoder again, as plain JSON values."""

    model: str
    """open_clip's name of the architecture."""
    pretrained: str
    """A hub tag, or the path of a local file."""
    architecture: dict[str, Any]
    """open_clip's model configuration, `quick_gelu` included."""
    preprocess: Preprocess
    precision: str
    """"fp32", or "bf16" for the image tower under autocast."""

    @property
    def local_weights(self) -> Path | None:
        """The local weights file; None for a hub tag."""
        return Path(self.pretrained) if _is_file(self.pretrained) else None

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
        InputError: unknown model or tag, missing file, or statements that contradict one another; all at once.
    """
    config = _shipped(config)
    problems: list[str] = []
    architecture = _architecture(config, problems)
    claims = _claims(config, architecture, problems)
    if problems or architecture is None or config.pretrained is None:
        raise InputError(problems, "The encoder cannot be used")
    quick_gelu = _settle_quick_gelu(config, architecture, claims, problems)
    preprocess = _settle_preprocess(config, claims, problems)
    if problems:
        raise InputError(problems, "The encoder cannot be used")
    size = architecture["vision_cfg"]["image_size"]
    return EncoderSpec(
        model=config.model,
        pretrained=config.pretrained,
        architecture={**architecture, "quick_gelu": quick_gelu},
        preprocess=Preprocess(size=size if isinstance(size, int) else size[0], **preprocess),
        precision=config.precision or precision,
    )


def _shipped(config: EncoderConfig) -> EncoderConfig:
    """`pretrained: demo` is the small encoder that comes with the package."""
    if config.pretrained != "demo":
        return config
    files = {
        "pretrained": str(SHIPPED / f"{config.model}.safetensors"),
        "architecture": str(SHIPPED / f"{config.model}.json"),
    }
    return config.model_copy(update=files)


def _is_file(pretrained: str) -> bool:
    return "/" in pretrained or Path(pretrained).suffix in (".safetensors", ".pt", ".pth", ".bin")


def _architecture(config: EncoderConfig, problems: list[str]) -> dict[str, Any] | None:
    from open_clip import list_models
    from open_clip.factory import get_model_config

    if config.architecture is not None:
        return _read_architecture(Path(config.architecture), problems)
    known = get_model_config(config.model)
    if known is None:
        near = _nearest(config.model, list_models())
        problems.append(f"encoder.model: open_clip has no {config.model!r}{near}; for your own, give encoder.architecture")
    return known


def _read_architecture(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        architecture = json.loads(path.read_text())
    except FileNotFoundError:
        problems.append(f"encoder.architecture: there is no file {path}")
        return None
    except ValueError as error:
        problems.append(f"encoder.architecture: {path} is not JSON: {error}")
        return None
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in architecture]
    if missing:
        problems.append(f"encoder.architecture: {path} lacks {', '.join(missing)} (open_clip's model configuration)")
        return None
    return architecture


def _nearest(word: str, words: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, words, n=1)
    return f" (nearest: {near[0]!r})" if near else ""


def _claims(
    config: EncoderConfig, architecture: dict[str, Any] | None, problems: list[str]
) -> dict[str, dict[str, Any]]:
    """What each source says of the weights: {source: {"quick_gelu": bool, "mean": [...], ...}}, only what it says."""
    if config.pretrained is None:
        problems.append("encoder.pretrained is missing: give a hub tag (such as openai) or a weights file")
        return {}
    claims = {"encoder.architecture": _stated(architecture or {}, (architecture or {}).get("preprocess_cfg", {}))}
    if _is_file(config.pretrained):
        claims |= _file_claims(Path(config.pretrained), problems)
    else:
        claims |= _tag_claims(config, problems)
    return {source: said for source, said in claims.items() if said}


def _stated(model: Mapping[str, Any], preprocess: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {key: preprocess[key] for key in PREPROCESS_KEYS if preprocess.get(key)}
    if "quick_gelu" in model:
        said["quick_gelu"] = bool(model["quick_gelu"])
    return said


def _tag_claims(config: EncoderConfig, problems: list[str]) -> dict[str, dict[str, Any]]:
    from open_clip import list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    tag = get_pretrained_cfg(config.model, str(config.pretrained))
    if not tag:
        tags = list_pretrained_tags_by_model(config.model)
        listed = f"its tags are {', '.join(tags)}" if tags else "it has no tags: give a weights file"
        problems.append(f"encoder.pretrained: {config.pretrained!r} is no tag of {config.model}; {listed}")
        return {}
    return {f"the tag {config.pretrained}": {"quick_gelu": False, **_stated(tag, tag)}}


def _file_claims(path: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        problems.append(f"encoder.pretrained: there is no file {path}")
        return {}
    claims = {}
    if path.suffix == ".safetensors":
        header = _safetensors_header(path, problems)
        quick = {"quick_gelu": header["quick_gelu"].lower() == "true"} if "quick_gelu" in header else {}
        claims[f"the header of {path.name}"] = _stated(quick, json.loads(header.get("preprocess", "{}")))
    beside = path.parent / "open_clip_config.json"
    if beside.is_file():
        said = json.loads(beside.read_text())
        claims[str(beside)] = _stated(said.get("model_cfg", {}), said.get("preprocess_cfg", {}))
    return claims


def _safetensors_header(path: Path, problems: list[str]) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        problems.append(f"encoder.pretrained: {path} is not a safetensors file: {error}")
        return {}


def _settle_quick_gelu(
    config: EncoderConfig, architecture: dict[str, Any], claims: dict[str, dict[str, Any]], problems: list[str]
) -> bool:
    said = {source: claim["quick_gelu"] for source, claim in claims.items() if "quick_gelu" in claim}
    if config.quick_gelu is not None:
        said["encoder.quick_gelu"] = config.quick_gelu
    elif config.architecture is None and _has_twin(config.model):
        plain_name = not said.get("encoder.architecture", False)
        if plain_name and _is_file(str(config.pretrained)) and not said:
            problems.append(_state_quick_gelu(config))
        elif plain_name and not _is_file(str(config.pretrained)):
            said[f"the name {config.model}"] = False
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{source} says {str(value).lower()}" for source, value in said.items())
        hint = f"; use encoder.model: {config.model.removesuffix(QUICK)}{QUICK}, or a matching encoder.quick_gelu"
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
    defaults = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    stated = config.preprocess.model_dump(exclude_none=True) if config.preprocess else {}
    claims = {**claims, "encoder.preprocess": stated, **({} if claims or stated else _family(config, problems))}
    for key, default in defaults.items():
        said = {source: _plain(claim[key]) for source, claim in claims.items() if claim.get(key)}
        if len(set(said.values())) > 1:
            listed = ", ".join(f"{source} says {value}" for source, value in said.items())
            problems.append(f"encoder.preprocess.{key}: {listed}")
        settled[key] = next(iter(said.values()), default)
    return settled


def _family(config: EncoderConfig, problems: list[str]) -> dict[str, dict[str, Any]]:
    """A bare file of a built-in architecture: what that architecture's hub tags agree on."""
    from open_clip import list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    tags = list_pretrained_tags_by_model(config.model) if config.architecture is None else []
    said = [_stated({}, get_pretrained_cfg(config.model, tag)) for tag in tags]
    if len({json.dumps(claim, sort_keys=True) for claim in said}) > 1:
        problems.append(
            f"encoder.preprocess: {config.pretrained} does not say its mean and std, and published weights of "
            f"{config.model} differ in them; state encoder.preprocess"
        )
    return {f"published weights of {config.model}": said[0]} if said else {}


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
    try:
        return Path(download_pretrained(get_pretrained_cfg(spec.model, spec.pretrained)))
    # Hub clients raise many kinds of errors; every one means the same to the user.
    except Exception as error:
        raise LadaError(
            f"the weights {spec.model} / {spec.pretrained} could not be downloaded ({type(error).__name__}: {error}). "
            "Download them on a machine with network, and give the file as encoder.pretrained"
        ) from error
