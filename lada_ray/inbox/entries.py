"""What lies in an inbox: entries that are complete, and what is written beside those that were not learnt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from lada_ray.errors import InputError
from lada_ray.store import Entry as Stored
from lada_ray.store import is_remote, join, open_store

CARD = "domain.yaml"
READY = "_READY"
REJECTED = "_REJECTED.json"
OURS = frozenset({CARD, READY, REJECTED})
"""What lies beside the data without being any of it."""
ADVICE = (
    f"Correct this, leaving {READY} in place: the entry is tried again once a file in its folder changes. If what has "
    f"to change lies elsewhere, write {READY} again."
)


@dataclass(frozen=True)
class Entry:
    """A folder of the inbox that is complete.

    Attributes:
        name: of the folder.
        uri: of the folder.
        arrived: when its `_READY` was written, unix seconds.
        fingerprint: of its listing; it changes with any file but `_REJECTED.json`, and when `_READY` is written again.
    """

    name: str
    uri: str
    arrived: float
    fingerprint: str


@dataclass(frozen=True)
class Scan:
    """What lies in an inbox.

    Attributes:
        entries: to be looked at, in order of arrival.
        incomplete: names of folders without `_READY`.
        rejected: names of entries that were rejected and did not change since.
    """

    entries: tuple[Entry, ...]
    incomplete: tuple[str, ...]
    rejected: tuple[str, ...]


def scan(inbox: str | Path) -> Scan:
    """List an inbox: every folder directly in it is an entry. Nothing but listings and rejections is read.

    Args:
        inbox: local folder or object-store prefix.

    Returns:
        Entries by the time of their `_READY`, then by name. Hidden folders and loose files are left out.

    Raises:
        InputError: there is no such folder.
        LadaError: the storage cannot be reached.
    """
    store = open_store(inbox)
    if not is_remote(store.uri) and not Path(store.uri).is_dir():
        raise InputError([f"there is no folder {store.uri}; make it, or correct --inbox"], "No inbox")
    entries, incomplete, rejected = [], [], []
    inside = (file for file in store.list() if "/" in file.key and not file.key.startswith("."))
    # By key, so the files of a folder stand together.
    for name, files in groupby(inside, key=lambda file: file.key.partition("/")[0]):
        entry, marked = _entry(name, join(store.uri, name), files)
        if entry is None:
            incomplete.append(name)
        elif marked and _rejected_as(entry) == entry.fingerprint:
            rejected.append(name)
        else:
            entries.append(entry)
    entries.sort(key=lambda entry: (entry.arrived, entry.name))
    return Scan(tuple(entries), tuple(incomplete), tuple(rejected))


def _entry(name: str, uri: str, files: Iterable[Stored]) -> tuple[Entry | None, bool]:
    """Make an entry of a folder's listing, None without `_READY`; and tell whether it was rejected before."""
    digest, arrived, marked = hashlib.sha256(), None, False
    for file in files:
        key = file.key.removeprefix(f"{name}/")
        if key == REJECTED:
            marked = True
            continue
        said = [key, file.size, file.version]
        if key == READY:
            # Its time too: an empty object that is written again keeps its etag.
            arrived = file.modified
            said.append(file.modified)
        digest.update(json.dumps(said).encode() + b"\n")
    return None if arrived is None else Entry(name, uri, arrived, digest.hexdigest()), marked


def _rejected_as(entry: Entry) -> str | None:
    """The fingerprint under which an entry was rejected; None where that cannot be read."""
    found = open_store(entry.uri).read_version(REJECTED)
    try:
        said = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None
    return said.get("fingerprint") if isinstance(said, dict) else None


def reject(entry: Entry, problems: Sequence[str], when: datetime | None = None, advice: str = ADVICE) -> str:
    """Write beside a domain why it was not learnt; it is skipped from then on, until something in its folder changes.

    Args:
        entry: as it was scanned: if it changed since, it is tried again.
        problems: all of them, one line each.
        when: now, unless given.
        advice: what its owner can do.

    Returns:
        The URI of what was written.

    Raises:
        LadaError: it cannot be written there.
    """
    said = {
        "problems": [one_line(problem) for problem in problems],
        "what_to_do": advice,
        "when": (when or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
        "fingerprint": entry.fingerprint,
    }
    open_store(entry.uri).write(REJECTED, json.dumps(said, indent=1, ensure_ascii=False).encode() + b"\n")
    return join(entry.uri, REJECTED)


def clear_rejection(entry: Entry) -> None:
    """Remove what an earlier `reject` wrote, once the domain was learnt after all."""
    open_store(entry.uri).delete(REJECTED)


def one_line(text: str) -> str:
    """A message that no name from outside can break: line ends, terminal codes and bytes that are no text escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
