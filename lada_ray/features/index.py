"""What is known of image files without reading them again: their content hash, and whether they are usable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from lada_ray.cluster import result
from lada_ray.domains.base import Sample
from lada_ray.errors import LadaError
from lada_ray.features.parts import PartTable
from lada_ray.features.reading import read_image, why_unread
from lada_ray.store import Store
from lada_ray.views import judge

HASHES = pa.schema(
    [("uri", pa.string()), ("size", pa.int64()), ("version", pa.string()), ("sha256", pa.string())]
)
VERDICTS = pa.schema([("sha256", pa.string()), ("reason", pa.string()), ("judge", pa.string())])
# Files hashed by one task: enough work to pay for the task, few enough to spread over a cluster.
CHUNK = 256


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used: which, and why."""

    uri: str
    reason: str


class FileIndex:
    """(URI, size, version) -> SHA-256, and SHA-256 -> why these bytes are no usable image.

    Args:
        store: the features folder of the storage.
    """

    def __init__(self, store: Store) -> None:
        self.hashes = PartTable(store.child("index"), HASHES)
        self.verdicts = PartTable(store.child("bad"), VERDICTS)

    def known(self, samples: Iterable[Sample]) -> dict[str, str]:
        """SHA-256 by URI, for those samples that are unchanged since they were hashed."""
        wanted = {(s.uri, s.size, s.version) for s in samples}
        found: dict[str, str] = {}
        for _, table in self.hashes.scan(HASHES.names):
            rows = zip(*(table[name].to_pylist() for name in HASHES.names), strict=True)
            found |= {uri: sha for uri, size, version, sha in rows if (uri, size, version) in wanted}
        return found

    def bad(self) -> dict[str, str]:
        """Reason by SHA-256, of all bytes that this Pillow and these limits ever found unusable."""
        reasons: dict[str, str] = {}
        for _, table in self.verdicts.scan(VERDICTS.names):
            rows = zip(*(table[name].to_pylist() for name in VERDICTS.names), strict=True)
            reasons |= {sha: reason for sha, reason, by in rows if by == judge()}
        return reasons

    def remove_images(self, shas: Collection[str]) -> None:
        """Remove for good what is known of images, by SHA-256; files that are still there are hashed again."""
        for table in (self.hashes, self.verdicts):
            table.remove("sha256", shas)

    def add_hashes(self, samples: Sequence[Sample], hashes: Mapping[str, str], run: str) -> None:
        """Remember the hashes (by URI) of these samples."""
        rows = [
            {"uri": s.uri, "size": s.size, "version": s.version, "sha256": hashes[s.uri]}
            for s in samples
            if s.uri in hashes
        ]
        if rows:
            self.hashes.enter([self.hashes.write(pa.Table.from_pylist(rows, HASHES), run)])

    def add_bad(self, reasons: Mapping[str, str], run: str) -> None:
        """Remember why these bytes (by SHA-256) cannot be used."""
        if reasons:
            by = [judge()] * len(reasons)
            columns = {"sha256": list(reasons), "reason": list(reasons.values()), "judge": by}
            self.verdicts.enter([self.verdicts.write(pa.Table.from_pydict(columns, VERDICTS), run)])


def hash_files(uris: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """Read files and hash them; runs in a Ray task.

    Returns:
        For each URI (SHA-256, None), or (None, why it could not be read).
    """
    return [_hash_file(uri) for uri in uris]


def _hash_file(uri: str) -> tuple[str | None, str | None]:
    try:
        return hashlib.sha256(read_image(uri)).hexdigest(), None
    # A file that vanished or that may not be read costs this image; it is listed like a damaged one.
    except (OSError, ValueError, LadaError) as error:
        return None, why_unread(error)


def fill_index(
    index: FileIndex, samples: Sequence[Sample], run: str, progress: Callable[[int, int], None]
) -> tuple[dict[str, str], list[BadImage]]:
    """Hash, in Ray tasks, every file that is new or changed.

    Args:
        index: where hashes are kept.
        samples: all samples of a run.
        run: id of the run that adds.
        progress: called with (files done, files to do).

    Returns:
        SHA-256 by URI for all readable samples, and the unreadable ones.

    Raises:
        LadaError: if a task failed.
    """
    import ray

    known = index.known(samples)
    # In the order in which images lie in their files, where they are parts of larger ones: neighbours are read at once.
    new = sorted((s for s in samples if s.uri not in known), key=lambda s: s.uri)
    chunks = [new[i : i + CHUNK] for i in range(0, len(new), CHUNK)]
    task = ray.remote(hash_files)
    pending = {task.remote([s.uri for s in chunk]): chunk for chunk in chunks}
    unreadable: list[BadImage] = []
    done = 0
    while pending:
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        chunk = pending.pop(ready)
        results = dict(zip([s.uri for s in chunk], result(ready), strict=True))
        hashes = {uri: sha for uri, (sha, _) in results.items() if sha is not None}
        index.add_hashes(chunk, hashes, run)
        known |= hashes
        unreadable += [BadImage(uri, why) for uri, (_, why) in results.items() if why is not None]
        done += len(chunk)
        progress(done, len(new))
    index.hashes.merge()
    return known, unreadable
