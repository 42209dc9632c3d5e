"""The history of a production model: every change of what it predicts is a new version.

It stands in `model.json` itself, so that packs and history change in one conditional write. A version is never changed
or removed; going back to an old one is a new version. What `forget` deletes leaves its record here, without its packs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Literal

from lada_ray.errors import Conflict, InputError
from lada_ray.lease import Owner
from lada_ray.model import MODEL, ModelFile, check_epoch, read_model_file
from lada_ray.pack import TaskPack
from lada_ray.run import prompts_of
from lada_ray.store import Store

Action = Literal["start", "learn", "rollback", "forget"]
TOMBSTONE = "tombstone"
"""Key of a version's details: what was forgotten with it (lada_ray.forget)."""


@dataclass(frozen=True)
class State:
    """What a version consists of."""

    packs: tuple[str, ...]
    """Digests, in order of learning."""
    prompts: Mapping[str, str]
    """Prompt template of each of its domains."""
    domains: tuple[str, ...]
    """Keys of what is known of its domains' images (known.py), one for each pack."""

    def __post_init__(self) -> None:
        if len(self.packs) != len(self.domains):
            raise ValueError(
                f"{len(self.packs)} packs and {len(self.domains)} domains: one for each is needed"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> State:
        """Read what `asdict` gave."""
        return cls(tuple(values["packs"]), values["prompts"], tuple(values["domains"]))


@dataclass(frozen=True)
class Version:
    """One version of a model."""

    number: int
    """1, 2, ..."""
    action: Action
    """What made it."""
    subject: str
    """The domain that was learnt, what was forgotten, or the version gone back to."""
    state: State
    at: str
    """When, ISO 8601, UTC."""
    by: str
    """user@host"""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    """On each domain's test images, in %."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Why it is there: the inbox entry and its owner, the gate's checks, who forced it."""

    @property
    def digest(self) -> str:
        """Names the version's content, for the registry's tags."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Version:
        """Read a record of the history."""
        return cls(**{**values, "state": State.from_json(values["state"])})


@dataclass(frozen=True)
class Change:
    """What a new version is to be."""

    action: Action
    subject: str
    state: State
    accuracy: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def history(model: ModelFile) -> list[Version]:
    """All versions, the oldest first."""
    return [Version.from_json(values) for values in model.history]


def restorable(versions: Sequence[Version]) -> list[Version]:
    """Those versions that are there as a whole: nothing that they consist of was forgotten."""
    gone = {
        number for version in versions for number in version.details.get(TOMBSTONE, {}).get("versions", ())
    }
    return [version for version in versions if version.number not in gone]


def promote(store: Store, epoch: int, before: Sequence[str], change: Change) -> Version:
    """Make a change the model's newest version; all or nothing.

    Args:
        store: the model's folder; all packs are written there.
        epoch: of the writer.
        before: the packs that the change was made from.
        change: what the version is to be.

    Raises:
        LostLease: another process has taken the model over.
        Conflict: the model has changed since `before`.
    """
    model, stored = read_production(store)
    check_epoch(model, epoch, store)
    if model.packs != tuple(before):
        raise Conflict(f"{store.uri} has changed since this was begun; start it again")
    owner = Owner.this_process(0)
    version = Version(
        number=len(model.history) + 1,
        action=change.action,
        subject=change.subject,
        state=change.state,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=f"{owner.user}@{owner.host}",
        accuracy=change.accuracy,
        details=change.details,
    )
    new = replace(
        model,
        packs=change.state.packs,
        prompts=change.state.prompts,
        history=(*model.history, asdict(version)),
    )
    try:
        store.replace(MODEL, new.to_bytes(), stored)
    except Conflict:
        # An object store may have taken the write although its answer was lost.
        if read_production(store)[0].to_bytes() != new.to_bytes():
            raise
    return version


def find_version(model: ModelFile, number: int) -> Version:
    """The version of this number.

    Raises:
        InputError: there is none; says which there are.
    """
    versions = history(model)
    for version in versions:
        if version.number == number:
            return version
    known = f"1 to {len(versions)}" if versions else "none yet"
    raise InputError([f"there is no version {number} (versions: {known})"])


def find_restorable(file: ModelFile, number: int) -> Version:
    """The version of this number, if it is there as a whole.

    Raises:
        InputError: it is not, or there is none.
    """
    version, versions = find_version(file, number), restorable(history(file))
    if version.number not in [one.number for one in versions]:
        there = ", ".join(str(one.number) for one in versions)
        raise InputError(
            [f"something that version {number} consists of was forgotten, so it is gone (there are: {there})"]
        )
    return version


def open_candidate(
    store: Store,
    name: str,
    champion: ModelFile,
    packs: Sequence[str],
    identities: Sequence[Mapping[str, Any]],
) -> None:
    """Prepare a candidate's file, in which more is learnt on these packs; one left by a kill is gone on with.

    Args:
        store: the model's folder.
        name: of the candidate's file.
        champion: gives what is not packs; its epoch is the writer's.
        packs: what the candidate starts from.
        identities: of all packs that it is to have: what was learnt from other images, say, is learnt again.
    """
    found = read_model_file(store, name)
    begun = found[0].packs if found else ()
    kept = list(packs)
    if begun[: len(packs)] == tuple(packs):
        more = zip(begun[len(packs) :], identities[len(packs) :], strict=False)
        kept += [digest for digest, _ in takewhile(lambda pair: _is_of(store, *pair), more)]
    prompts = dict(champion.prompts)
    for identity in identities[len(packs) : len(kept)]:
        prompts |= prompts_of(identity)
    candidate = replace(champion, packs=tuple(kept), prompts=prompts, history=())
    store.replace(name, candidate.to_bytes(), found[1] if found else None)


def _is_of(store: Store, digest: str, identity: Mapping[str, Any]) -> bool:
    """Whether a pack was learnt from this."""
    meta = TaskPack.read_meta(store, digest)
    return {key: meta[key] for key in identity} == json.loads(json.dumps(identity))


def read_production(store: Store) -> tuple[ModelFile, str]:
    """The model in this folder, and its version in storage.

    Raises:
        InputError: there is none.
    """
    found = read_model_file(store)
    if found is None:
        raise InputError([f"{store.uri} holds no model: learn one with jobs/run_stream.py first"])
    return found
