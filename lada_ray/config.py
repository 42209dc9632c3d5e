"""What a run is: one typed model that is the YAML schema, the command line and the record of a run at once.

The text under each key is its help text (`--help`). Command line over YAML over defaults: they are merged key
by key before anything is checked, so that only keys that are given override. No environment variable counts.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lada_ray.domains import KINDS, AnyDomain, DomainSpec
from lada_ray.domains.base import STRICT, Name, absolute, check_prompt, did_you_mean
from lada_ray.errors import ConfigError, LadaError
from lada_ray.method.settings import FIXED
from lada_ray.store import is_remote, join

HEADING = "The configuration is not valid"
BLANK = "***"
"""What stands where a password was."""
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
DEMO = "demo"
"""What `encoder.pretrained` says for the encoder that comes with the package."""
RESERVED = frozenset({"features", "encoders", "demo-images", "mlflow.db", "mlartifacts", "mlruns"})
"""What lies beside the run folders in a storage, so no run may have such a name."""
NETWORK_FILE_SYSTEMS = frozenset(
    ["nfs", "nfs4", "cifs", "smbfs", "smb3", "lustre", "ceph", "glusterfs", "beegfs", "gpfs", "afs", "pvfs2"]
)
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.portal"})


class PreprocessConfig(BaseModel):
    """How pixels become the encoder's input, where the weights do not say it themselves."""

    model_config = STRICT

    mean: tuple[float, float, float] | None = None
    """Mean of the red, green and blue values in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of the red, green and blue values in [0, 1]."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """How images are resized."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    """What gets the encoder's size: the shortest (then cropped), the longest (then padded), both (squash)."""

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if std is not None and min(std) <= 0:
            raise ValueError(f"must be greater than 0 (got {list(std)})")
        return std


def is_file_name(pretrained: str) -> bool:
    """Whether weights are named as a file, not as one of open_clip's tags."""
    return "/" in pretrained or pretrained.endswith(WEIGHT_SUFFIXES)


class EncoderConfig(BaseModel):
    """The frozen CLIP."""

    model_config = STRICT

    model: str
    """Name of an open_clip model (ViT-B-16-quickgelu), of the one that architecture describes, or demo-clip, which
    is shipped."""
    pretrained: str | None = None
    """Its weights: a hub tag (openai, laion2b_s34b_b88k), a local file (safetensors or a plain state dict),
    or demo, which is shipped."""
    architecture: str | None = None
    """JSON file that describes a model open_clip does not know."""
    quick_gelu: bool | None = None
    """Whether the weights were trained with quick GELU (null: as the tag or the files say)."""
    preprocess: PreprocessConfig | None = None
    """Mean, standard deviation, interpolation and resize mode (null: as the tag or the files say)."""
    precision: Literal["fp32", "bf16"] | None = None
    """Precision of encoding (null: bf16 on a GPU, fp32 on a CPU)."""
    prompt: str = "a photo of a {}."
    """Template for class names, {} standing for the name; a domain may have its own."""

    @property
    def in_files(self) -> bool:
        """Whether files say what this encoder is; else open_clip is asked, whose import takes seconds."""
        return self.pretrained == DEMO or (
            self.architecture is not None and is_file_name(self.pretrained or "")
        )

    @field_validator("prompt")
    @classmethod
    def _has_a_place_for_the_name(cls, prompt: str) -> str:
        return check_prompt(prompt)


TRAINED = frozenset({"lada", "joint"})
"""Kinds of learners that train on augmented views; the others solve a task in closed form, on the deterministic one."""


LATER: Mapping[str, Any] = {"replay_rows": None, "pack_precision": "float32"}
"""Settings of the method that older runs were started without, with what they had then: at that they are not said."""


class MethodConfig(BaseModel):
    """The learner, LADA's settings, and its parts that can be switched off."""

    model_config = STRICT

    kind: Literal["lada", "joint", "zero_shot", "ncm", "rail_primal", "rail_dual"] = "lada"
    """What learns: lada, or one to compare it with: joint (LADA on all domains at once, the upper bound), zero_shot
    (nothing), ncm (nearest class mean), rail_primal, rail_dual (ridge regression). The other settings are those of
    lada and joint; the rest have none."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the memory logits beside the text logits (0: without memory)."""
    beta: float = Field(default=1.0, gt=0)
    """Sharpness of the memory's affinity exp(-beta (1 - cosine))."""
    memory_per_class: int = Field(default=16, ge=1)
    """Memory vectors per class (lambda 1 in the paper)."""
    mixture_components: int = Field(default=4, ge=1)
    """Components of each class's Gaussian mixture (lambda 2 in the paper)."""
    replay: bool = True
    """Replay earlier classes from their mixtures while learning."""
    replay_noise: bool = True
    """Draw replayed features around the components' means (false: the means themselves)."""
    replay_weight: float = Field(default=64.0, gt=0)
    """Weight of a replayed component, times its share of its mixture, against 1 for an image."""
    replay_rows: int | None = Field(default=512, ge=1)
    """Components replayed per step, drawn anew each time where there are more, unbiased (null: all of them)."""
    fusion: Literal["gated", "additive"] = "gated"
    """How seen and unseen classes compete: gated (the text logits decide whether the class is a seen one) or
    additive (all at once)."""
    text_tuner: Literal["adaptformer", "none"] = "adaptformer"
    """What is trained in the text encoder."""
    tuner_bottleneck: int = Field(default=16, ge=1)
    """Width of the text tuner's bottleneck."""
    epochs: int = Field(default=30, ge=1)
    """Passes over a domain's training images; a domain may have its own."""
    lr: float = Field(default=1e-3, gt=0)
    """Largest learning rate of the one-cycle schedule."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """AdamW's weight decay."""
    batch_size: int = Field(default=64, ge=1)
    """Images per training step, over all workers together."""
    pack_precision: Literal["float32", "float16"] = "float32"
    """In which packs keep text features, memory vectors and component means (float16: half the size)."""

    @property
    def trains(self) -> bool:
        """Whether it trains, on augmented views and with the text tower."""
        return self.kind in TRAINED

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides what is learnt; of a learner without settings its kind, and its constants."""
        if self.trains:
            said = self.model_dump(mode="json")
            return {k: v for k, v in said.items() if k not in LATER or v != LATER[k]}
        return {"kind": self.kind, **FIXED.get(self.kind, {})}


class ResourceConfig(BaseModel):
    """What a run may take of the cluster. Nothing here changes what is learnt."""

    model_config = STRICT

    encoders: int | None = Field(default=None, ge=1)
    """Encoder actors (null: one per GPU, else two per node)."""
    gpus_per_encoder: float | None = Field(default=None, ge=0)
    """GPUs of each encoder actor (null: 1 where there are GPUs)."""
    cpus_per_encoder: float | None = Field(default=None, gt=0)
    """CPUs that each encoder actor reserves; it takes twice as many where readers leave them idle."""
    train_workers: int = Field(default=1, ge=0)
    """Ray Train workers that fit a task together (0: in the process itself, for tests)."""
    gpus_per_train_worker: float | None = Field(default=None, ge=0)
    """GPUs of each training worker (null: 1 where there are GPUs)."""
    cpus_per_train_worker: float | None = Field(default=None, gt=0)
    """CPUs, and so threads, of each training worker."""


class TrackingConfig(BaseModel):
    """Where MLflow records the run."""

    model_config = STRICT

    uri: str | None = None
    """MLflow tracking server (null: MLFLOW_TRACKING_URI, else a database in a local storage)."""
    experiment: str = Field(default="lada_ray", min_length=1)
    """MLflow experiment."""
    registered_model: str | None = Field(default=None, min_length=1)
    """Name under which the model is registered (null: not at all)."""


def check_storage(storage: str) -> str:
    """Return a storage as an absolute path or URI.

    Raises:
        ValueError: what is kept there would be lost with the job.
    """
    lost = (is_relative(storage) and in_submitted_job()) or in_submitted_job({}, absolute(storage))
    if lost:
        raise ValueError(
            f"{storage!r} lies in this job's working folder {os.getcwd()}, which is deleted with the "
            "Ray session; give the absolute path of a folder that all nodes share, or s3://… or gs://…"
        )
    return absolute(storage)


Storage = Annotated[str, AfterValidator(check_storage)]
"""Where everything is kept: a local path or the URI of an object store."""


class StreamConfig(BaseModel):
    """A run: an encoder, and the domains that it learns one after another."""

    model_config = STRICT

    name: Name
    """Name of the run, and of its folder in the storage: letters, digits, _ . -"""
    storage: Storage = Field(default="runs", validate_default=True)
    """Where runs and the feature bank are kept: a folder, shared between nodes, or s3://… or gs://…"""
    seed: int = Field(default=0, ge=0)
    """Decides shots, initial weights, batches, views and noise."""
    data: str | None = None
    """Folder, or s3://… or gs://…, from which relative roots of domains count (null: the YAML's folder)."""
    encoder: EncoderConfig
    """The frozen CLIP."""
    domains: tuple[AnyDomain, ...]
    """The domains in the order of learning; each has a name, a kind, and that kind's keys."""
    shots: int | None = Field(default=None, ge=1)
    """Training images per class (null: all)."""
    views: int = Field(default=8, ge=0)
    """Augmented views per training image (0: only the image as it is)."""
    method: MethodConfig = MethodConfig()
    """How to learn."""
    resources: ResourceConfig = ResourceConfig()
    """What a run may take of the cluster."""
    tracking: TrackingConfig = TrackingConfig()
    """Where MLflow records the run."""
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Largest share of a run's images that may be unreadable before it fails."""

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, raw: Any) -> Any:
        """Read a section that stands empty in the YAML (null) as one that is not given."""
        if not isinstance(raw, dict):
            return raw
        sections = {name for name, field in cls.model_fields.items() if section_model(field.annotation)}
        return {key: value for key, value in raw.items() if value is not None or key not in sections}

    @model_validator(mode="before")
    @classmethod
    def _roots_in_data(cls, raw: Any) -> Any:
        """Let relative roots count from `data`; from_yaml left them relative for it."""
        if not isinstance(raw, dict) or not isinstance(raw.get("data"), str):
            return raw
        data = _based(raw["data"], Path.cwd())
        return {**raw, "data": data, "domains": _roots(raw.get("domains"), data)}

    @field_validator("data")
    @classmethod
    def _absolute_data(cls, data: str | None) -> str | None:
        return None if data is None else absolute(data)

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name.lower() in RESERVED:
            raise ValueError(f"{name!r} is kept for what lies beside the runs; choose another name")
        return name

    @field_validator("domains")
    @classmethod
    def _named_once(cls, domains: tuple[DomainSpec, ...]) -> tuple[DomainSpec, ...]:
        if not domains:
            raise ValueError("must hold at least one domain")
        names = [domain.name for domain in domains]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several domains are called {', '.join(twice)}; each needs its own name")
        return domains

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a configuration.

        Args:
            path: YAML file, or the bare name of a shipped one ("demo"). Relative paths in it count from its
                folder, but for relative roots where `data` says from where they count.
            overrides: values that go first, by dotted key, {"method.beta": 2.0}. Relative paths in them
                count from the current directory.

        Raises:
            ConfigError: with every problem: unknown keys and the nearest known one, wrong types and values.
        """
        file = config_path(path)
        raw = combined(nested(overrides or {}), file)
        problems = find_problems(raw)
        if problems:
            raise ConfigError(problems, f"{HEADING} ({file})")
        return cls.model_validate(raw)

    @property
    def training_views(self) -> int:
        """Augmented views that the learner asks for."""
        return self.views if self.method.trains else 0

    def to_yaml(self) -> str:
        """Write all that holds, with absolute paths; `from_yaml` of it gives an equal configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)

    def without_password(self) -> StreamConfig:
        """The same with the password of `tracking.uri` blanked: what may be written down."""
        if self.tracking.uri is None:
            return self
        tracking = self.tracking.model_copy(update={"uri": hide_password(self.tracking.uri)})
        return self.model_copy(update={"tracking": tracking})


def hide_password(uri: str) -> str:
    """Blank the password of a URI, for messages and files."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", f":{BLANK}@")))


# ---------------------------------------------------------------- files


def config_path(path: str | Path) -> Path:
    """The absolute path of a YAML file; a bare name ("demo") is that of a shipped one.

    Raises:
        ConfigError: there is no such file.
    """
    bare = isinstance(path, str) and not Path(path).suffix and os.path.basename(path) == path
    file = shipped_config(str(path)) if bare else Path(path).expanduser().absolute()
    if not file.is_file():
        raise ConfigError([f"there is no file {file}"], "The configuration cannot be read")
    return file


def shipped_config(name: str) -> Path:
    """The YAML file of a configuration that ships with the package (in a checkout: in configs/ beside it).

    Raises:
        ConfigError: there is none of this name; lists those there are.
    """
    package = Path(__file__).parent
    folder = next(
        (f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package / "configs"
    )
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if name not in shipped:
        near = did_you_mean(name, shipped)
        problem = (
            f"no configuration called {name!r} is shipped{near} (shipped: {', '.join(shipped) or 'none'})"
        )
        raise ConfigError([problem, f"for a file of your own write {name}.yaml, or its path"], HEADING)
    return shipped[name]


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: syntax errors and keys that stand twice, with file and line.
    """
    heading = "The configuration cannot be read"
    try:
        text = file.read_text(encoding="utf-8")
        twice = [f"{file}, line {line}: key {key!r} stands twice" for key, line in _keys_twice(text)]
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError([f"{file}{where}: {error.problem}"], heading) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{file}: {error}"], heading) from None
    if twice:
        raise ConfigError(twice, heading)
    if not isinstance(raw, dict | None):
        raise ConfigError([f"{file}: must be keys with values, as in `name: demo`"], heading)
    return raw or {}


def _keys_twice(text: str) -> Iterator[tuple[str, int]]:
    """Find keys that stand twice in a mapping, and their lines; the loader would silently take the last."""
    todo = [yaml.compose(text, yaml.SafeLoader)]
    seen: set[int] = set()
    while todo:
        node = todo.pop(0)
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            known: set[str] = set()
            for key, value in node.value:
                if key.value in known:
                    yield str(key.value), key.start_mark.line + 1
                known |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
                todo.append(value)
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


# ---------------------------------------------------------------- merging


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """{"method.beta": 2} as {"method": {"beta": 2}}."""
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        tree = merged(tree, value)
    return tree


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings in one; where both have a key, sections are merged and otherwise the one above holds."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return result


def combined(given: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """What is given merged over what a YAML file says, unchecked, relative paths made absolute.

    Args:
        given: of the command line or a program; its paths count from the current directory.
        file: the YAML, from whose folder its paths count; None: there is none.

    Raises:
        ConfigError: the file is no YAML.
    """
    below = read_yaml(file) if file else {}
    # Roots stay relative where `data` holds, on whichever side it stands: they are joined when it is known.
    in_data = given.get("data", below.get("data")) is not None
    under = with_paths(below, file.parent, in_data) if file else {}
    return merged(under, with_paths(given, Path.cwd(), in_data))


def with_paths(raw: Mapping[str, Any], base: Path, in_data: bool = False) -> dict[str, Any]:
    """A copy of raw configuration with the relative paths of data, roots, weights and architecture made absolute.

    Args:
        raw: as read, unchecked.
        base: folder from which they count.
        in_data: leave roots as they are, because they count from `data`.
    """
    result = dict(raw)
    if "data" in raw:
        result["data"] = _based(raw["data"], base)
    if isinstance(raw.get("encoder"), dict):
        result["encoder"] = _encoder_paths(raw["encoder"], base)
    if not in_data:
        result |= {"domains": _roots(raw["domains"], str(base))} if "domains" in raw else {}
    return result


def _roots(domains: Any, base: str) -> Any:
    """Domains with their relative roots counted from a folder or a prefix in an object store."""
    return [_domain_paths(d, base) for d in domains] if isinstance(domains, list | tuple) else domains


def _encoder_paths(encoder: dict[str, Any], base: Path) -> dict[str, Any]:
    result = dict(encoder)
    pretrained = encoder.get("pretrained")
    if isinstance(pretrained, str) and (is_file_name(pretrained) or (base / pretrained).is_file()):
        result["pretrained"] = _based(pretrained, base)
    if "architecture" in encoder:
        result["architecture"] = _based(encoder["architecture"], base)
    return result


def _domain_paths(domain: Any, base: str) -> Any:
    if isinstance(domain, DomainSpec):
        return domain  # made in Python: its paths are absolute already
    if not isinstance(domain, dict):
        return domain
    spec = KINDS.get(str(domain.get("kind")), DomainSpec)
    return {key: _based(value, base) if key in spec.path_fields else value for key, value in domain.items()}


def _based(value: Any, base: str | Path) -> Any:
    if not isinstance(value, str):
        return value
    try:
        if isinstance(base, str) and is_relative(value) and is_remote(base):
            return join(base, *os.path.normpath(value).split("/"))
        return absolute(value, base)
    except (ValueError, LadaError):
        return value  # is refused when it is checked, with its key


# ---------------------------------------------------------------- problems in words


def known_keys(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every key of a model by its dotted name, sections taken apart, in the order of their definition."""
    keys: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        section = section_model(field.annotation)
        keys |= known_keys(section, f"{prefix}{name}.") if section else {f"{prefix}{name}": field}
    return keys


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The model of a section (`X` or `X | None` with a model X); None for the type of a plain value."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return models[0] if len(models) == 1 else None


def find_problems(raw: Mapping[str, Any], model: type[BaseModel] = StreamConfig) -> list[str]:
    """Everything that is wrong with raw configuration, one line per key; no line when it is valid."""
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return [_in_words(detail, model) for detail in error.errors(include_url=False)]
    return []


def _in_words(detail: ErrorDetails, model: type[BaseModel]) -> str:
    """One of pydantic's errors as "dotted.key: what is wrong"."""
    location = [part for part in detail["loc"] if part != "[key]"]
    known = known_keys(model)
    if location[:1] == ["domains"] and len(location) > 2:
        kind = str(location.pop(2))  # pydantic's path names the kind too
        known = known_keys(KINDS[kind], f"domains.{location[1]}.")
    key = ".".join(map(str, location))
    return (
        f"{key}: {_complaint(detail, key, known)}"
        if "union_tag" not in detail["type"]
        else _kind_problem(detail, key)
    )


def _complaint(detail: ErrorDetails, key: str, known: Mapping[str, FieldInfo]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key{nearest_key(key, known)}"
        case "missing":
            return "missing"
        case "model_type" | "model_attributes_type":
            return f"must be a section with keys (got {shortened(detail['input'])})"
        case "string_type":
            return f"must be text, in the YAML perhaps in quotes (got {shortened(detail['input'])})"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
    said = detail["msg"].replace("Input should be", "must be").replace(" should ", " must ")
    return f"{said[0].lower()}{said[1:]} (got {shortened(detail['input'])})"


def _kind_problem(detail: ErrorDetails, key: str) -> str:
    known = ", ".join(sorted(KINDS))
    if detail["type"] == "union_tag_not_found":
        return f"{key}.kind: missing; one of {known}"
    tag = detail.get("ctx", {}).get("tag", "")
    return f"{key}.kind: unknown kind {tag!r}{did_you_mean(str(tag), KINDS)} (one of {known})"


def nearest_key(key: str, known: Iterable[str]) -> str:
    """`"; did you mean method.beta?"`: the known key with the same last part, else the most alike one."""
    last, known = key.rpartition(".")[2], list(known)
    same = [name for name in known if name.rpartition(".")[2] == last]
    return f"; did you mean {same[0]}?" if same else did_you_mean(key, known)


def shortened(value: Any, length: int = 60) -> str:
    """A value as Python shows it, cut when it is long."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


# ---------------------------------------------------------------- where a run may write


def is_relative(location: str) -> bool:
    """Whether it is a path that depends on the current directory."""
    return "://" not in location and not os.path.isabs(os.path.expanduser(location))


def in_submitted_job(environ: Mapping[str, str] | None = None, folder: str | None = None) -> bool:
    """Whether this process is (or was started by) the driver of a `ray job submit` job.

    Ray's job supervisor gives every driver its job's configuration in RAY_JOB_CONFIG_JSON_ENV_VAR (ray 2.60,
    dashboard/modules/job/job_supervisor.py); uploaded folders lie below runtime_resources/working_dir_files.
    """
    environ = os.environ if environ is None else environ
    folder = os.getcwd() if folder is None else folder
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in environ or "runtime_resources/working_dir_files/" in f"{folder}/"


def tracking_uri(config: StreamConfig, environ: Mapping[str, str], mounts: str | None = None) -> str:
    """Find where MLflow records a run; see `mlflow_uri`."""
    return mlflow_uri(config.tracking.uri, config.storage, environ, mounts)


def mlflow_uri(
    configured: str | None, storage: str, environ: Mapping[str, str], mounts: str | None = None
) -> str:
    """Find where MLflow records: the configured URI, MLFLOW_TRACKING_URI, or a database in a local storage.

    Args:
        configured: `tracking.uri` of the configuration.
        storage: the storage root.
        environ: environment variables.
        mounts: table of mounted file systems, in the form of /proc/mounts (None: this machine's).

    Raises:
        ConfigError: the storage is remote or shared and no server is named, or the URI is a folder.
    """
    uri = configured or environ.get("MLFLOW_TRACKING_URI")
    if uri and f":{BLANK}@" in uri:
        advice = "passwords are not written down: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise ConfigError([f"{uri} lacks its password; {advice}"], _NOWHERE)
    if uri and (uri.startswith("file:") or ("://" not in uri and uri != "databricks")):
        raise ConfigError([f"{uri} is a folder, and MLflow no longer logs to folders. {_SERVER}"], _NOWHERE)
    if uri and not uri.startswith("sqlite:///"):
        return uri
    database = uri.removeprefix("sqlite:///") if uri else f"{storage}/mlflow.db"
    if is_relative(database) and in_submitted_job(environ):
        problem = f"{uri} lies in this job's working folder, which is deleted with the Ray session"
        raise ConfigError([f"{problem}. {_SERVER}"], _NOWHERE)
    system = "an object store" if is_remote(database) else network_file_system(absolute(database), mounts)
    if system:
        reason = f"{database} would lie on {system}, where a database file breaks or cannot be kept at all"
        raise ConfigError([f"{reason}. {_SERVER}"], _NOWHERE)
    return f"sqlite:///{absolute(database)}"


_NOWHERE = "MLflow has nowhere to record this run"
_SERVER = (
    "Start an MLflow server and pass --tracking.uri http://host:5000 or set MLFLOW_TRACKING_URI, "
    "or use a storage on a local disk"
)


def network_file_system(path: str, mounts: str | None = None) -> str | None:
    """Find the type of network file system that a path lies on ("nfs4"); None: local, or not to be told."""
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text(errors="replace") if table.exists() else ""
    real, found = os.path.realpath(path), ("", "")
    for line in mounts.splitlines():
        _, point, system, *_ = [*line.split(), "", "", ""]
        point = point.replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = (point, system)
    fuse = found[1].startswith("fuse.") and found[1] not in LOCAL_FUSE
    return found[1] if fuse or found[1] in NETWORK_FILE_SYSTEMS else None
