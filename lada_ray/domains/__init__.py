"""Where labelled images come from: one file per kind of domain, few-shot choice, and the checks of bad input.

A new kind is a file with a `DomainSpec` subclass and its name in `AnyDomain`.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Discriminator

from lada_ray.domains.aircraft import AircraftSpec
from lada_ray.domains.base import Domain, DomainSpec, Sample, read_bytes
from lada_ray.domains.check import load_domains, overlaps, problems, shared_class_names
from lada_ray.domains.coop import CoopSpec
from lada_ray.domains.demo import DemoSpec
from lada_ray.domains.fewshot import choose
from lada_ray.domains.folder import FolderSpec
from lada_ray.domains.manifest import ManifestSpec
from lada_ray.domains.mnist import MnistSpec
from lada_ray.domains.parquet import ParquetSpec

AnyDomain = Annotated[
    FolderSpec | CoopSpec | AircraftSpec | MnistSpec | ParquetSpec | ManifestSpec | DemoSpec,
    Discriminator("kind"),
]
"""The specification of a domain of any kind, told apart by its `kind`."""

KINDS: dict[str, type[DomainSpec]] = {
    spec.model_fields["kind"].default: spec for spec in get_args(get_args(AnyDomain)[0])
}
"""The specification class of each kind."""

__all__ = [
    "KINDS",
    "AircraftSpec",
    "AnyDomain",
    "CoopSpec",
    "DemoSpec",
    "Domain",
    "DomainSpec",
    "FolderSpec",
    "ManifestSpec",
    "MnistSpec",
    "ParquetSpec",
    "Sample",
    "choose",
    "load_domains",
    "overlaps",
    "problems",
    "read_bytes",
    "shared_class_names",
]
