"""What is to be forgotten, and where it stands: records of images, versions and packs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lada_ray.errors import IntegrityError
from lada_ray.known import KnownDomain, read_known
from lada_ray.pack import TaskPack
from lada_ray.store import Store
from lada_ray.versions import Version

DOMAINS = "domains"


@dataclass(frozen=True)
class Subject:
    """A domain, or one class of it."""

    domain: str
    class_name: str | None = None
    """None: the whole domain."""

    @property
    def said(self) -> str:
        """For people."""
        return self.domain if self.class_name is None else f"{self.domain}: {self.class_name}"

    def in_record(self, known: KnownDomain) -> bool:
        """Whether a record of images is about it."""
        return known.name == self.domain and self.class_name in (None, *known.class_names)

    def in_labels(self, labels: Iterable[Sequence[str]]) -> bool:
        """Whether it is among a pack's labels, (domain, class)."""
        return any(domain == self.domain and self.class_name in (None, name) for domain, name in labels)

    def images(self, known: KnownDomain) -> frozenset[str]:
        """SHA-256s of its images in a record."""
        if not self.in_record(known):
            return frozenset()
        classes = known.images.values() if self.class_name is None else [known.images[self.class_name]]
        return frozenset().union(*classes)

    def without(self, known: KnownDomain) -> KnownDomain | None:
        """What is left of a record; None: nothing is."""
        if not self.in_record(known):
            return known
        if self.class_name is None or len(known.class_names) == 1:
            return None
        return known.without(self.class_name)


def read_records(store: Store) -> dict[str, KnownDomain]:
    """All that a model's run folder says of domains' images, refused candidates' too, by key."""
    return {entry.key: read_known(store, entry.key) for entry in list(store.list(DOMAINS))}


def records_of(subject: Subject, records: Mapping[str, KnownDomain]) -> dict[str, KnownDomain]:
    """Those that are about it."""
    return {key: known for key, known in records.items() if subject.in_record(known)}


def images_of(
    subject: Subject, records: Iterable[KnownDomain], kept: Iterable[KnownDomain]
) -> frozenset[str]:
    """SHA-256s of all its images, less those that another class or domain, of a record that is kept, has too."""
    gone = frozenset().union(*(subject.images(known) for known in records))
    return gone.difference(*(known.rows["sha256"] for known in kept))


def versions_of(
    subject: Subject, records: Mapping[str, KnownDomain], versions: Iterable[Version]
) -> list[int]:
    """Numbers of the versions that know it."""
    keys = records_of(subject, records).keys()
    return [version.number for version in versions if not keys.isdisjoint(version.state.domains)]


def packs_of(subject: Subject, model_store: Store, kept: Collection[str]) -> frozenset[str]:
    """Digests of all packs in storage that were made with it: its own, and those that were learnt on top of one.

    Halves of packs, which a kill left and nobody can tell anything of, are among them.

    Args:
        subject: to be forgotten.
        model_store: the model's folder.
        kept: packs that are known to be without it.
    """
    metas = _metas(model_store)
    dead = {digest for digest, meta in metas.items() if meta is None or subject.in_labels(meta["labels"])}

    def orphaned(meta: Mapping[str, Any] | None) -> bool:
        parent = meta["parent"] if meta else None
        return parent is not None and (parent in dead or parent not in metas)

    while more := {digest for digest, meta in metas.items() if digest not in dead and orphaned(meta)}:
        dead |= more
    return frozenset(dead.difference(kept))


def _metas(model_store: Store) -> dict[str, Mapping[str, Any] | None]:
    """pack.json of every pack in storage; None where it is missing or damaged."""
    digests = dict.fromkeys(entry.key.split("/")[1] for entry in model_store.list("packs"))
    metas: dict[str, Mapping[str, Any] | None] = {}
    for digest in digests:
        try:
            metas[digest] = TaskPack.read_meta(model_store, digest)
        except (IntegrityError, json.JSONDecodeError, KeyError):
            metas[digest] = None
    return metas
