"""The history of a production model: every change of what it predicts is a new version.

It stands in `model.json` itself, so that packs and history change in one conditional write. A version is never changed
or removed; going back to an old one is a new version.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from lada_ray.errors import Conflict, InputError
from lada_ray.model import MODEL, ModelFile, check_epoch, read_model_file
from lada_ray.store import Store

Action = Literal["start", "learn", "rollback", "forget", "relearn"]


@dataclass(frozen=True)
class Version:
    """One version of a model."""

    number: int
    """1, 2, ..."""
    action: Action
    """What made it."""
    subject: str
    """The domain that was learnt or forgotten, or the version gone back to."""
    packs: tuple[str, ...]
    """Digests, in order of learning."""
    prompts: Mapping[str, str]
    """Prompt template of each of its domains."""
    at: str
    """When, ISO 8601, UTC."""
    by: str
    """user@host"""
    details: Mapping[str, Any] = field(default_factory=dict)
    """learn: what the domain's content is called, its test images, the gate's checks, the inbox entry."""

    @property
    def digest(self) -> str:
        """Names the version's content, for the registry's tags."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Version:
        """Read a record of the history."""
        return cls(**{**values, "packs": tuple(values["packs"])})


def history(model: ModelFile) -> list[Version]:
    """All versions, the oldest first."""
    return [Version.from_json(values) for values in model.history]


def promote(
    store: Store,
    epoch: int,
    action: Action,
    subject: str,
    before: Sequence[str],
    packs: Sequence[str],
    prompts: Mapping[str, str],
    details: Mapping[str, Any] | None = None,
) -> Version:
    """Make these packs the model, as a new version; all or nothing.

    Args:
        store: the model's folder.
        epoch: of the writer.
        action: what makes the version.
        subject: of the action.
        before: the packs that the change was made from.
        packs: the new ones, in order; all of them are written.
        prompts: the template of each domain.
        details: more to be remembered.

    Raises:
        LostLease: another process has taken the model over.
        Conflict: the model has changed since `before`.
    """
    model, stored = _read(store)
    check_epoch(model, epoch, store)
    versions = history(model)
    if versions and versions[-1].action == action and versions[-1].packs == tuple(packs) != tuple(before):
        return versions[-1]  # written before a kill, or by a write whose answer was lost
    if model.packs != tuple(before):
        raise Conflict(f"{store.uri} has changed since this was begun; start it again")
    version = Version(
        number=len(versions) + 1,
        action=action,
        subject=subject,
        packs=tuple(packs),
        prompts=dict(prompts),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=f"{getpass.getuser()}@{socket.gethostname()}",
        details=dict(details or {}),
    )
    new = replace(
        model, packs=version.packs, prompts=version.prompts, history=(*model.history, asdict(version))
    )
    store.replace(MODEL, new.to_bytes(), stored)
    return version


def adopt(store: Store, epoch: int, details: Mapping[str, Any]) -> list[Version]:
    """Give a model that a run has learnt a history, if it has none: its present state is version 1.

    Returns:
        the history.
    """
    model, _ = _read(store)
    if not model.history:
        promote(store, epoch, "start", "", model.packs, model.packs, model.prompts, details)
    return history(_read(store)[0])


def find_version(model: ModelFile, number: int) -> Version:
    """The version of this number.

    Raises:
        InputError: there is none; lists those there are.
    """
    versions = history(model)
    for version in versions:
        if version.number == number:
            return version
    known = f"1 to {len(versions)}" if versions else "none"
    raise InputError([f"there is no version {number} (versions: {known})"])


def open_candidate(store: Store, name: str, champion: ModelFile) -> None:
    """Prepare a candidate's file: the champion's packs, on which it learns; one left by a kill is gone on with.

    Args:
        store: the model's folder.
        name: of the candidate's file.
        champion: what it starts from; its epoch is the writer's.
    """
    found = read_model_file(store, name)
    begun = found[0].packs if found else ()
    packs = begun if begun[: len(champion.packs)] == champion.packs else champion.packs
    candidate = replace(champion, packs=packs, history=())
    store.replace(name, candidate.to_bytes(), found[1] if found else None)


def _read(store: Store) -> tuple[ModelFile, str]:
    found = read_model_file(store)
    if found is None:
        raise InputError([f"{store.uri} holds no model"])
    return found
