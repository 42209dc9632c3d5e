"""A task pack: everything a task leaves behind, immutable, named by its digest.

    <model>/packs/<digest>/pack.json            what identifies it; the digest is this file's SHA-256
    <model>/packs/<digest>/tensors.safetensors  its arrays; their SHA-256 stands in pack.json

Like a commit, a pack names its parent, so a digest stands for the whole history that led to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lada_ray.domains.base import ALL_DOMAINS
from lada_ray.errors import IntegrityError
from lada_ray.store import Store
from lada_ray.version import __version__

FORMAT = 1
PACKAGES = ("torch", "numpy", "scikit-learn", "open_clip_torch", "pillow")


class Label(NamedTuple):
    """What an image can be taken for: a class of a domain. Two domains with one class name keep two labels."""

    domain: str
    name: str


@dataclass(frozen=True)
class TaskPack:
    """A pack in memory.

    tensors: text [C, d] of its C classes, and what else its learner keeps. LADA: memory [C, L, d], mask [C, L] uint8,
    and of M mixture components means [M, d], variances [M], weights [M], labels [M] (each one's class within the
    pack). Of a tensor that holds for all classes so far (RAIL's solution) the newest pack's supersedes the others.
    """

    meta: Mapping[str, Any]
    """The content of pack.json."""
    tensors: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def build(
        cls, identity: Mapping[str, Any], parent: str | None, tensors: Mapping[str, npt.NDArray[Any]]
    ) -> TaskPack:
        """Make a pack.

        Args:
            identity: `labels` as (domain, name) pairs in order, `config` (what of the configuration decided the
                tensors) and `samples` (path, SHA-256) learnt from.
            parent: digest of the pack before it.
            tensors: see above.
        """
        meta = {
            "format": FORMAT,
            "parent": parent,
            **identity,
            "versions": code_versions(),
            "tensors_sha256": hashlib.sha256(_tensor_bytes(tensors)).hexdigest(),
        }
        return cls(json.loads(_canonical(meta)), dict(tensors))

    def rebuilt(
        self,
        parent: str | None,
        identity: Mapping[str, Any] | None = None,
        tensors: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> TaskPack:
        """The same pack after another parent, or with less in it; learnt by the code that learnt this one.

        Args:
            parent: digest of the pack before it.
            identity: what of `labels`, `config` and `samples` changes.
            tensors: in place of its own.
        """
        tensors = self.tensors if tensors is None else tensors
        digest = hashlib.sha256(_tensor_bytes(tensors)).hexdigest()
        meta = {**self.meta, **(identity or {}), "parent": parent, "tensors_sha256": digest}
        return TaskPack(json.loads(_canonical(meta)), dict(tensors))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pack.json, which holds the hash of the tensors and the parent's digest."""
        return hashlib.sha256(_canonical(self.meta)).hexdigest()

    @property
    def parent(self) -> str | None:
        """Digest of the pack learnt before; None for the first."""
        return self.meta["parent"]

    @property
    def labels(self) -> list[Label]:
        """The pack's labels, in the order of its rows."""
        return [Label(*label) for label in self.meta["labels"]]

    @property
    def domain(self) -> str:
        """The domain that was learnt, or "all domains"."""
        names = dict.fromkeys(label.domain for label in self.labels)
        return next(iter(names)) if len(names) == 1 else ALL_DOMAINS

    @property
    def bytes(self) -> int:
        """Size of its tensors."""
        return sum(array.nbytes for array in self.tensors.values())

    def write(self, store: Store) -> None:
        """Write it below `packs/` of a model's folder, once; pack.json comes last and makes it whole."""
        store.create(f"packs/{self.digest}/tensors.safetensors", _tensor_bytes(self.tensors))
        store.create(f"packs/{self.digest}/pack.json", _canonical(self.meta))

    @classmethod
    def read(cls, store: Store, digest: str) -> TaskPack:
        """Read a pack and check every byte against its digest.

        Raises:
            IntegrityError: if it is missing, cut short or changed.
        """
        from safetensors.numpy import load

        meta = cls.read_meta(store, digest)
        data = _read_part(store, digest, "tensors.safetensors")
        if hashlib.sha256(data).hexdigest() != meta["tensors_sha256"]:
            where = f"{store.uri}/packs/{digest}/tensors.safetensors"
            raise IntegrityError(f"{where} was changed or cut short; restore it from a copy of the model")
        return cls(meta, load(data))

    @classmethod
    def read_meta(cls, store: Store, digest: str) -> Mapping[str, Any]:
        """Read a pack's pack.json alone, checked against its digest.

        Raises:
            IntegrityError: if it is missing, cut short or changed.
        """
        where = f"{store.uri}/packs/{digest}/pack.json"
        data = _read_part(store, digest, "pack.json")
        if hashlib.sha256(data).hexdigest() != digest:
            raise IntegrityError(f"{where} was changed: its SHA-256 is not the digest it was committed under")
        meta = json.loads(data)
        if meta["format"] != FORMAT:
            raise IntegrityError(
                f"{where} has format {meta['format']}, this version reads {FORMAT}; upgrade lada_ray"
            )
        return meta


def _read_part(store: Store, digest: str, name: str) -> bytes:
    try:
        return store.read(f"packs/{digest}/{name}")
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{store.uri}/packs/{digest} is incomplete: {error}; restore it from a copy of the model"
        ) from error


def code_versions() -> dict[str, str]:
    """Versions of everything that decides a pack's numbers."""
    # Ours by its own word: on a cluster the code may travel with the job, and not be installed.
    return {"lada_ray": __version__, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _tensor_bytes(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()})


def _canonical(meta: Mapping[str, Any]) -> bytes:
    return json.dumps(meta, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
