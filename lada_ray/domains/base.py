"""What a domain is: its specification (a class per kind), its samples, and how their bytes are read."""

from __future__ import annotations

import difflib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from lada_ray.domains.parts import split_part
from lada_ray.errors import LadaError
from lada_ray.store import Store, is_remote, open_store

Augment = Literal["crop_flip", "none"]
"""`crop_flip`: random resized crop and horizontal flip. `none`: the deterministic view only."""


def check_name(name: str) -> str:
    """Return the name unchanged.

    Raises:
        ValueError: it would not be safe as one part of a path, or as a metric's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError(
            f"must start with a letter or digit and go on with letters, digits, _ . - (got {name!r})"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
"""A name that is safe as one part of a path."""
ALL_DOMAINS = "all domains"
"""Stands for a domain's name where several are learnt at once; no domain can be called so."""


def absolute(location: str, base: str | Path = "") -> str:
    """Make a path absolute, counted from `base` (by default from here); file:// URIs become paths.

    Raises:
        ValueError: empty, or a URI of a kind that cannot be read.
    """
    if not location.strip():
        raise ValueError("must not be empty")
    try:
        if is_remote(location) or "://" in location:
            return open_store(location).uri
    except LadaError as error:
        raise ValueError(str(error)) from error
    return os.path.abspath(os.path.join(base, os.path.expanduser(location)))


Location = Annotated[str, AfterValidator(absolute)]
"""A local path, made absolute so that it means the same in every process, or the URI of an object store."""

STRICT = ConfigDict(
    extra="forbid",
    frozen=True,
    use_attribute_docstrings=True,
    coerce_numbers_to_str=True,  # class folders such as 0 … 9 are numbers to YAML
    allow_inf_nan=False,
)
"""How every model of the configuration is checked: unknown keys are errors, values do not change later."""


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        uri: where its bytes are, as `read_bytes` takes it.
        path: relative to the domain's root, "/" separated. It identifies the image within its domain on every
            machine, and may name a part of a file ("file.parquet#row=000012").
        label: index into the domain's `class_names`.
        size: bytes of the object it is read from.
        version: the object's etag or modification time; when it changes, the image is read again.
    """

    uri: str
    path: str
    label: int
    size: int
    version: str


@dataclass(frozen=True)
class Domain:
    """One labelled image source, listed.

    Attributes:
        name: as in the configuration.
        class_names: as displayed: renames applied, underscores as spaces; a sample's label indexes it.
        train: in path order.
        test: in path order.
        prompt: template with `{}` for the class name; None: the encoder's.
        augment: how training views are made.
        epochs: None: the method's.
        ignored: paths of files that were found but are no images of this domain.
    """

    name: str
    class_names: tuple[str, ...]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    prompt: str | None = None
    augment: Augment = "crop_flip"
    epochs: int | None = None
    ignored: tuple[str, ...] = ()


class DomainSpec(BaseModel, ABC):
    """Where a domain comes from: the part of the configuration that all kinds share.

    A new kind is a file with a subclass that adds `kind: Literal["its name"] = "its name"`, its own keys and
    `load`, and that class's name in the union of `lada_ray.domains`.
    """

    model_config = STRICT

    path_fields: ClassVar[tuple[str, ...]] = ()
    """Keys that hold a path or URI; a relative one counts from the folder of the YAML that states it."""

    name: Name
    """Name of the domain: letters, digits, _ . -"""
    prompt: str | None = None
    """Template for this domain's class names, {} standing for the name (null: encoder.prompt)."""
    class_names: dict[str, str] = Field(default_factory=dict)
    """Other names for classes: {as stored (folder or label): as displayed and read by the text encoder}."""
    augment: Augment = "crop_flip"
    """How training views are made: crop_flip (random crop and horizontal flip), or none."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over this domain's training images (null: method.epochs)."""

    @field_validator("prompt")
    @classmethod
    def _has_a_place_for_the_name(cls, prompt: str | None) -> str | None:
        return None if prompt is None else check_prompt(prompt)

    @abstractmethod
    def load(self, storage: str) -> Domain:
        """List the domain's samples; reads no image.

        Args:
            storage: URI under which a kind that makes its own images keeps them.

        Raises:
            InputError: with every problem of this domain.
        """

    def displayed(self, stored: str) -> str:
        """Give the class name that is shown and read by the text encoder, for a class as it is stored."""
        return " ".join(self.class_names.get(stored, stored).replace("_", " ").split())

    def rename_problems(self, stored: Iterable[str]) -> list[str]:
        """One line for each entry of `class_names` that renames a class that is not there."""
        known = sorted(stored)
        return [
            f"{self.name}: class_names renames {name!r}, which is no class here{did_you_mean(name, known)}"
            for name in self.class_names
            if name not in known
        ]


def check_prompt(prompt: str) -> str:
    """Return the prompt template unchanged.

    Raises:
        ValueError: when it has no `{}` where the class name goes.
    """
    if "{}" not in prompt:
        raise ValueError("must contain {} where the class name goes")
    return prompt


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean x?"` with the nearest of the known words, or `""` when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def read_bytes(uri: str) -> bytes:
    """Read the bytes of one image, from a local path, a file:// URI or an object store.

    Every place that needs an image's bytes comes through here. An image may be a part of a larger file, as
    `parts.split_part` knows them: "s3://data/train.parquet#column=image&row=12".

    Raises:
        FileNotFoundError: nothing is there (any more).
        OSError: the file has no such part, or is damaged.
    """
    file, part = split_part(uri)
    if part is not None:
        return part.read(*file_store(file))
    if not is_remote(uri):
        return Path(open_store(uri).uri).read_bytes()
    store, key = file_store(uri)
    return store.read(key)


def file_store(file: str) -> tuple[Store, str]:
    """The store that a file lies in, kept per process, and its key there.

    Args:
        file: a local path, file:// URI or the URI of an object.
    """
    if not is_remote(file):
        folder, name = os.path.split(open_store(file).uri)
        return open_store(folder), name
    scheme, _, path = file.partition("://")
    bucket, _, key = path.partition("/")
    return _object_store(f"{scheme}://{bucket}", os.environ.get("AWS_ENDPOINT_URL")), key


@lru_cache(maxsize=16)
def _object_store(root: str, endpoint: str | None) -> Store:
    # Kept per process, because a new store would mean new connections (and a TLS handshake) for every image.
    # The endpoint is part of the key, since the store is configured from it.
    return open_store(root)
