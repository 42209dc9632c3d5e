"""What is asked: which model, which images, and what of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from lada_ray.errors import InputError, LadaError
from lada_ray.model import LadaModel, ModelFile
from lada_ray.prediction.listing import Listing, digest_of, list_folder
from lada_ray.tracking import load
from lada_ray.tracking.uri import hide_passwords_in
from lada_ray.version import __version__

FORMAT = 1
Name = tuple[str | None, str]
"""(domain, class); no domain: a class that was not learnt."""


@dataclass(frozen=True)
class Options:
    """What is asked of each image."""

    classes: tuple[str, ...] = ()
    """Names of classes that were not learnt, to be recognised zero-shot."""
    top_k: int = 1
    """How many classes are told, best first; fewer where the image's side of the gate has fewer."""
    unknown: float | None = None
    """Score under which an image is flagged `unknown`; None: no such flag."""

    @property
    def problems(self) -> list[str]:
        """A line for each that cannot be."""
        problems = [] if all(name.strip() for name in self.classes) else ["classes: a name is empty"]
        return problems + ([f"top_k: must be at least 1 (got {self.top_k})"] if self.top_k < 1 else [])


@dataclass(frozen=True)
class Asked:
    """A model, images and options that go together."""

    model: LadaModel
    listing: Listing
    options: Options

    @cached_property
    def names(self) -> list[Name]:
        """All classes to choose from, seen ones first."""
        return [*self.model.class_names, *((None, name) for name in self.options.classes)]

    @property
    def seen(self) -> int:
        """How many of them are seen."""
        return len(self.model.class_names)

    @property
    def drift(self) -> bool:
        """Whether outliers can be told."""
        return bool(self.model.calibration.outliers)

    @property
    def schema(self) -> pa.Schema:
        """The columns of a part."""
        columns = [
            pa.field("path", pa.string(), nullable=False),
            ("domain", pa.string()),
            ("class", pa.string()),
            ("score", pa.float32()),
            ("seen", pa.bool_()),
        ]
        if self.options.unknown is not None:
            columns.append(("unknown", pa.bool_()))
        if self.drift:
            columns += [("outlier", pa.bool_()), ("distance", pa.float32())]
        if self.options.top_k > 1:
            lists = {"domains": pa.string(), "classes": pa.string(), "scores": pa.float32()}
            columns += [(name, pa.list_(kind)) for name, kind in lists.items()]
        return pa.schema(columns)

    @property
    def meta(self) -> dict[str, Any]:
        """What decides the content of the folder, for its _meta.json."""
        return {
            "format": FORMAT,
            "model": model_digest(self.model.file),
            "calibration": self.model.calibration.digest,
            "domains": self.model.domains,
            "images": self.listing.root,
            **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.options).items()},
            "listing": self.listing.digest,
            "lada_ray": __version__,
        }


def ask(model: LadaModel | str, images: str, options: Options) -> Asked:
    """Load the model and list the images.

    Raises:
        InputError: with all problems.
    """
    problems, loaded, listing = options.problems, None, None
    try:
        listing = list_folder(images)
    except InputError as error:
        problems += error.problems
    try:
        loaded = load_model(model) if isinstance(model, str) else model
    except InputError as error:
        problems += error.problems
    if loaded is not None and not loaded.class_names and not options.classes:
        problems.append("model: nothing is learnt yet: give --classes")
    if problems or loaded is None or listing is None:
        raise InputError(problems)
    return Asked(loaded, listing, options)


def load_model(uri: str) -> LadaModel:
    """Load a model from a path, a storage URI or MLflow, as `lada_ray.load` does.

    Raises:
        InputError: there is none, or MLflow does not give it.
        IntegrityError: a pack is missing, cut short or changed.
    """
    try:
        return load(uri)
    except LadaError:
        raise
    except FileNotFoundError as error:
        raise InputError([f"model: {error}"]) from error
    # MLflow and its stores raise many kinds; every one means that there is no such model to be had.
    except Exception as error:
        server = os.environ.get("MLFLOW_TRACKING_URI")
        said = hide_passwords_in(str(error), server) if server else str(error)
        raise InputError([f"model: {uri} cannot be loaded: {said}"]) from error


def model_digest(file: ModelFile) -> str:
    """Names what a model predicts: its encoder, its packs, and the parameters that act when predicting."""
    encoder = [file.encoder["fingerprint"], file.encoder["prompt"]]
    return digest_of([encoder, asdict(file.prediction), list(file.packs)])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each thing in which two folders' `Asked.meta` differ, the listing aside."""
    if old["format"] != new["format"]:
        return [f"they have format {old['format']}; this version of lada_ray writes {new['format']}"]
    problems = []
    if old["model"] != new["model"]:
        learnt = [", ".join(which["domains"]) or "nothing" for which in (old, new)]
        now = "other packs" if learnt[0] == learnt[1] else learnt[1]
        pin = "an alias such as models:/lada@champion moves, models:/lada/7 does not"
        problems.append(f"model: another one, which had learnt {learnt[0]}; now {now} ({pin})")
    elif old["calibration"] != new["calibration"]:
        problems.append("model: its scores were calibrated otherwise")
    for key in ("images", "classes", "top_k", "unknown"):
        if old[key] != new[key]:
            problems.append(f"{key}: was {_said(old[key])}, now {_said(new[key])}")
    return problems


def _said(value: Any) -> str:
    return (", ".join(value) if isinstance(value, list) else str(value)) if value else "none"
