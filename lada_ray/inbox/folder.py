"""Listing a local folder that strangers write into: links are told and never followed, as they may lead anywhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from lada_ray.store import LOCK, TEMPORARY
from lada_ray.store import Entry as Stored


def below(folder: str) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder that is no folder, in any order; a link to a folder is a link.

    Raises:
        OSError: a folder cannot be listed.
    """
    # No recursion: folders may be nested deeper than Python's stack.
    waiting = [folder]
    while waiting:
        # What is removed meanwhile is not there.
        with suppress(FileNotFoundError), os.scandir(waiting.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def list_unfollowed(folder: str) -> list[Stored]:
    """The files and links below a folder, by key; as `LocalStore.list` describes files.

    Raises:
        OSError: a folder cannot be listed.
    """
    found = []
    for entry in below(folder):
        if not entry.name.startswith((TEMPORARY, LOCK)):
            found += describe(entry.path, entry.path.removeprefix(f"{folder}/"))
    return sorted(found, key=lambda file: file.key)


def describe(path: str, key: str) -> list[Stored]:
    """A file or link itself; nothing for pipes, devices and folders, and where nothing is.

    Raises:
        OSError: it cannot be looked up.
    """
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return [Stored(key, 0, f"link to {os.readlink(path)}", status.st_mtime)]
        if stat.S_ISREG(status.st_mode):
            return [Stored(key, status.st_size, str(status.st_mtime_ns), status.st_mtime)]
    return []


def is_link(stored: Stored) -> bool:
    """Whether `describe` made this of a link."""
    return stored.version.startswith("link to ")
