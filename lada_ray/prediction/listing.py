"""The images of a folder, cut into chunks; nothing is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lada_ray.domains.folder import list_images
from lada_ray.domains.listed import check_root, some
from lada_ray.errors import InputError
from lada_ray.store import Entry, open_store

# Images of a part: what a kill may cost, against the number of files. A chunk ends where a path's hash says so, so that
# new files change the chunks that they fall into and no others; but no chunk is longer than the limit.
CHUNK_IMAGES, CHUNK_LIMIT = 1024, 4096


@dataclass(frozen=True)
class Chunk:
    """Consecutive files of the listing, whose predictions are one part."""

    entries: tuple[Entry, ...]

    @cached_property
    def name(self) -> str:
        """Of the part: other files, or another version of one, are another part."""
        said = [(entry.key, entry.size, entry.version) for entry in self.entries]
        return f"{digest_of(said)}.parquet"


@dataclass(frozen=True)
class Listing:
    """The images of a folder."""

    root: str
    chunks: tuple[Chunk, ...]
    bad: Mapping[str, str] = field(default_factory=dict)
    """Reason by path, of files that cannot even be named in a table."""
    others: int = 0
    """Files that are no images by their names."""

    @property
    def images(self) -> int:
        """How many there are, unusable ones included."""
        return len(self.bad) + sum(len(chunk.entries) for chunk in self.chunks)

    @cached_property
    def digest(self) -> str:
        """Names the files and their versions."""
        return digest_of([self.root, [chunk.name for chunk in self.chunks], sorted(self.bad)])


def list_folder(images: str) -> Listing:
    """List the images below a folder or prefix.

    Raises:
        InputError: it is not there, or holds no image.
    """
    store = open_store(images)
    check_root("images", store, "a folder of images")
    found = list_images(store.uri)
    if not found.images:
        others = f"; it has {len(found.others)} other files ({some(found.others)})" if found.others else ""
        raise InputError([f"images: there is no image in {store.uri}{others}"])
    bad = {entry.key: "its name is no UTF-8 text: rename it" for entry in found.images if not _named(entry)}
    entries = [entry for entry in found.images if entry.key not in bad]
    return Listing(store.uri, tuple(cut(entries)), bad, len(found.others))


def _named(entry: Entry) -> bool:
    try:
        entry.key.encode()
    except UnicodeEncodeError:
        return False
    return True


def cut(entries: Sequence[Entry]) -> Iterator[Chunk]:
    """Cut a listing into chunks of about `CHUNK_IMAGES`; where, the paths alone decide."""
    start = 0
    for end, entry in enumerate(entries, 1):
        ends_here = int(hashlib.sha256(entry.key.encode()).hexdigest()[:8], 16) % CHUNK_IMAGES == 0
        if ends_here or end - start == CHUNK_LIMIT or end == len(entries):
            yield Chunk(tuple(entries[start:end]))
            start = end


def digest_of(said: Any) -> str:
    """32 hex digits that name plain values."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
