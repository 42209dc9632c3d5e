"""What lies in an inbox: entries that are complete, and what is written beside those that were not learnt."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from lada_ray.errors import InputError, LadaError
from lada_ray.inbox.folder import describe, is_link, list_unfollowed
from lada_ray.store import Entry as Stored
from lada_ray.store import Store, is_remote, join, open_store

CARD = "domain.yaml"
READY = "_READY"
REJECTED = "_REJECTED.json"
OURS = frozenset({CARD, READY, REJECTED})
"""What lies beside the data without being any of it."""
ADVICE = (
    f"Correct this, leaving {READY} in place: the entry is tried again once a file in its folder changes. If what has "
    f"to change lies elsewhere, write {READY} again."
)
REJECTED_LIMIT = 2**20
"""Bytes of a _REJECTED.json; what `reject` writes is smaller."""
LINE, LINES = 1000, 200
"""Characters of a problem, and problems of an entry, that are written at most."""


@dataclass(frozen=True)
class Entry:
    """A folder of the inbox that is complete.

    Attributes:
        name: of the folder.
        uri: of the folder.
        arrived: when its `_READY` was written, unix seconds.
        fingerprint: of its listing; it changes with any file but `_REJECTED.json`, and when `_READY` is written again.
            Of links it has where they lead, and nothing of what is there.
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
        unreadable: one line for each entry that cannot be listed, with the reason.
    """

    entries: tuple[Entry, ...]
    incomplete: tuple[str, ...]
    rejected: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


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
    entries, incomplete, rejected, unreadable = [], [], [], list[str]()
    folders = _in_bucket(store) if is_remote(store.uri) else _in_folder(store.uri, unreadable)
    for name, files in folders:
        entry, marked = _entry(name, join(store.uri, name), files)
        if entry is None:
            incomplete.append(name)
        elif marked and _rejected_as(entry) == entry.fingerprint:
            rejected.append(name)
        else:
            entries.append(entry)
    entries.sort(key=lambda entry: (entry.arrived, entry.name))
    return Scan(tuple(entries), tuple(incomplete), tuple(rejected), tuple(unreadable))


def _in_bucket(store: Store) -> Iterator[tuple[str, Iterable[Stored]]]:
    """Each folder of a bucket, with its files by key."""
    inside = (file for file in store.list() if "/" in file.key and not file.key.startswith("."))
    # By key, so the files of a folder stand together.
    for name, files in groupby(inside, key=lambda file: file.key.partition("/")[0]):
        yield name, (replace(file, key=file.key.removeprefix(f"{name}/")) for file in files)


def _in_folder(inbox: str, unreadable: list[str]) -> Iterator[tuple[str, Iterable[Stored]]]:
    """Each folder of a local inbox, with its files by key; those that cannot be listed go to `unreadable`."""
    if not os.path.isdir(inbox):
        raise InputError([f"there is no folder {inbox}; make it, or correct --inbox"], "No inbox")
    try:
        with os.scandir(inbox) as found:
            names = sorted(e.name for e in found if not e.name.startswith(".") and os.path.isdir(e.path))
    except OSError as error:
        raise LadaError(
            f"{inbox} cannot be listed: {error.strerror}. Check owner and permissions."
        ) from error
    for name in names:
        try:
            files = _files(join(inbox, name))
        except OSError as error:
            unreadable.append(one_line(f"{name}: cannot be read: {error.strerror}: {error.filename}"))
        else:
            if files:
                yield name, files


def _files(folder: str) -> list[Stored]:
    """The files of a local entry; of one that is a link, no more than is needed to refuse it, or to take it at all.

    Raises:
        OSError: they cannot be listed, or its card cannot be read.
    """
    card = join(folder, CARD)
    if os.path.isfile(card) and not os.access(card, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), card)
    if not os.path.islink(folder):
        return list_unfollowed(folder)
    inside = [file for name in (READY, CARD) for file in describe(join(folder, name), name)]
    return [*describe(folder, "."), *inside]


def _entry(name: str, uri: str, files: Iterable[Stored]) -> tuple[Entry | None, bool]:
    """Make an entry of a folder's listing, None without `_READY`; and tell whether it was rejected before."""
    digest, arrived, marked = hashlib.sha256(), None, False
    for file in files:
        if file.key == REJECTED:
            marked = not is_link(file)
            continue
        said = [file.key, file.size, file.version]
        if file.key == READY:
            # Its time too: an empty object that is written again keeps its etag.
            arrived = file.modified
            said.append(file.modified)
        digest.update(json.dumps(said).encode() + b"\n")
    return None if arrived is None else Entry(name, uri, arrived, digest.hexdigest()), marked


def _rejected_as(entry: Entry) -> str | None:
    """The fingerprint under which an entry was rejected; None where that cannot be read."""
    store = open_store(entry.uri)
    try:
        if store.stat(REJECTED).size > REJECTED_LIMIT:
            return None
        said = json.loads(store.read(REJECTED))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except LadaError:
        if is_remote(entry.uri):
            raise
        return None
    return said.get("fingerprint") if isinstance(said, dict) else None


def reject(
    entry: Entry, problems: Sequence[str], when: datetime | None = None, advice: str = ADVICE
) -> str | None:
    """Write beside a domain why it was not learnt; it is skipped from then on, until something in its folder changes.

    Args:
        entry: as it was scanned: if it changed since, it is tried again.
        problems: all of them, one line each; beyond `LINES`, their number.
        when: now, unless given.
        advice: what its owner can do.

    Returns:
        The URI of what was written. None: nothing was, as the entry is a link, or its folder is closed to us.

    Raises:
        LadaError: the object store cannot be reached.
    """
    more = [f"… and {len(problems) - LINES} more problems"] if len(problems) > LINES else []
    said = {
        "problems": [*(one_line(problem) for problem in problems[:LINES]), *more],
        "what_to_do": advice,
        "when": (when or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
        "fingerprint": entry.fingerprint,
    }
    text = json.dumps(said, indent=1, ensure_ascii=False).encode() + b"\n"
    return join(entry.uri, REJECTED) if _changed(entry, text) else None


def clear_rejection(entry: Entry) -> None:
    """Remove what an earlier `reject` wrote, once the domain was learnt after all; nothing is where that cannot be."""
    _changed(entry, None)


def _changed(entry: Entry, text: bytes | None) -> bool:
    """Write (or, without a text, remove) an entry's `_REJECTED.json`; False where a local folder does not let us."""
    # What a link leads to is somebody else's.
    if not is_remote(entry.uri) and os.path.islink(entry.uri):
        return False
    store = open_store(entry.uri)
    try:
        store.delete(REJECTED) if text is None else store.write(REJECTED, text)
    except LadaError:
        if is_remote(entry.uri):
            raise
        return False
    return True


def check_there(entry: Entry, key: str = READY) -> None:
    """Make sure that what is wrong with an entry is its own fault.

    Args:
        entry: whose.
        key: a file that it had.

    Raises:
        LadaError: it was taken away meanwhile, or its storage cannot be reached.
    """
    try:
        open_store(entry.uri).stat(key)
    except FileNotFoundError as error:
        raise LadaError(f"{entry.uri} was taken away while it was looked at") from error


def one_line(text: str) -> str:
    """A message that no name from outside can break: line ends, terminal codes and bytes that are no text escaped."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: LINE + 1])
    return line if len(line) <= LINE else f"{line[:LINE]}…"
