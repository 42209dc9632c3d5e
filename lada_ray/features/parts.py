"""An append-only table in storage: immutable Parquet parts, and a manifest that says which of them count.

Many processes and runs may add at once. A part is written once under the hash of its bytes and then entered in the
manifest, which is replaced only if it is unchanged. A part that was written but not entered, because its writer was
killed in between, is adopted by the next start.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from lada_ray.errors import Conflict
from lada_ray.store import Store

MANIFEST = "manifest.json"
# More parts than this are merged: reading keys costs one request a part.
MERGE_ABOVE = 48
# A merged part aims at this many rows; 65 536 features of 512 float32 are 128 MiB.
MERGED_ROWS = 65_536
# Parts that a merge replaced stay readable this long, for readers that still hold the old manifest.
RETIRED_KEPT_S = 24 * 3600.0
REPLACE_TRIES = 100
# In a part's metadata: the names of those that it was made from.
REPLACES = b"replaces"


@dataclass(frozen=True)
class Part:
    """An entry of the manifest."""

    name: str
    rows: int
    bytes: int
    by: dict[str, int]
    """Rows added, by run id: it survives merging and pruning, so that a run's own additions can be counted across
    its restarts."""


@dataclass
class Manifest:
    """Which parts count, and when others were retired (unix seconds by name)."""

    parts: dict[str, Part] = field(default_factory=dict)
    retired: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse manifest.json."""
        values = json.loads(data)
        return cls({part["name"]: Part(**part) for part in values["parts"]}, values["retired"])

    def to_bytes(self) -> bytes:
        """The content of manifest.json."""
        values = {"parts": [asdict(part) for part in self.parts.values()], "retired": self.retired}
        return json.dumps(values, indent=1).encode()


class PartTable:
    """The table in one folder of a store.

    Args:
        store: the folder.
        schema: of every part.
    """

    def __init__(self, store: Store, schema: pa.Schema) -> None:
        self.store, self.schema = store, schema

    def manifest(self) -> Manifest:
        """What the table holds now; one small read."""
        found = self.store.read_version(MANIFEST)
        return Manifest.from_bytes(found[0]) if found else Manifest()

    def write(self, table: pa.Table, run: str) -> Part:
        """Write one part, durable but not counted yet: hand it to `enter`."""
        rows = table.cast(self.schema).replace_schema_metadata({"run": run})
        return self._put(rows, {run: table.num_rows})

    def rewrite(self, old: list[Part], table: pa.Table, readable: bool = True) -> None:
        """Count one part with these rows (or none, if there are none) instead of `old`; see `exchange`."""
        by: dict[str, int] = {}
        for part in old:
            by = {run: by.get(run, 0) + part.by.get(run, 0) for run in {**by, **part.by}}
        new = [self._put(table.cast(self.schema), by, [part.name for part in old])] if table.num_rows else []
        self.exchange(old, new, readable)

    def _put(self, table: pa.Table, by: dict[str, int], replaces: Sequence[str] = ()) -> Part:
        sink = io.BytesIO()
        metadata = {**(table.schema.metadata or {}), b"by": json.dumps(by).encode()}
        if replaces:
            metadata[REPLACES] = json.dumps(list(replaces)).encode()
        pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
        data = sink.getvalue()
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.parquet"
        self.store.create(f"parts/{name}", data)
        return Part(name, table.num_rows, len(data), by)

    def enter(self, parts: Iterable[Part]) -> None:
        """Count these parts. Entering one again, or one that was merged meanwhile, changes nothing."""
        new = list(parts)

        def change(manifest: Manifest) -> bool:
            missing = [p for p in new if p.name not in manifest.parts and p.name not in manifest.retired]
            manifest.parts |= {part.name: part for part in missing}
            return bool(missing)

        if new:
            self._update(change)

    def adopt(self) -> int:
        """Enter the parts that killed writers left behind; returns how many."""
        self.sweep()
        manifest = self.manifest()
        found = [entry.key.rpartition("/")[2] for entry in self.store.list("parts")]
        lost = [name for name in found if name not in manifest.parts and name not in manifest.retired]
        parts = [part for part in map(self._describe, lost) if part is not None]
        self.enter(parts)
        return len(parts)

    def _describe(self, name: str) -> Part | None:
        with self.store.open(f"parts/{name}") as file:
            meta = pq.read_metadata(file)
            size = file.seek(0, io.SEEK_END)
        # What a killed merge wrote holds rows that still count elsewhere: entered, they would count twice.
        if REPLACES in meta.metadata:
            return None
        return Part(name, meta.num_rows, size, json.loads(meta.metadata[b"by"]))

    def read(self, name: str, columns: list[str]) -> pa.Table:
        """Some columns of one part; others are not fetched."""
        with self.store.open(f"parts/{name}") as file:
            return pq.read_table(file, columns=columns).replace_schema_metadata()

    def scan(self, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
        """(name, some columns) of every part that counts."""
        for name in self.manifest().parts:
            yield name, self.read(name, columns)

    def added_by(self, run: str) -> int:
        """Rows that this run added, all its restarts together."""
        return sum(part.by.get(run, 0) for part in self.manifest().parts.values())

    def merge(self) -> int:
        """Rewrite small parts as few large ones, if there are many; returns how many were replaced."""
        small = [p for p in self.manifest().parts.values() if p.rows < MERGED_ROWS // 2]
        if len(small) <= MERGE_ABOVE:
            return 0
        groups = list(_groups(small))
        for group in groups:
            self.rewrite(group, pa.concat_tables(self.read(part.name, self.schema.names) for part in group))
        self.sweep()
        return sum(map(len, groups))

    def exchange(self, old: list[Part], new: list[Part], readable: bool = True) -> None:
        """Count `new` instead of `old`, unless another process has already exchanged one of `old`.

        Args:
            old: parts that count.
            new: parts that were written.
            readable: keep the files of `old` for a while; else the next `sweep` deletes them.
        """
        names = {part.name for part in new}

        def change(manifest: Manifest) -> bool:
            if any(part.name not in manifest.parts for part in old):
                return False
            for part in old:
                del manifest.parts[part.name]
                if part.name not in names:
                    manifest.retired[part.name] = time.time() if readable else 0.0
            manifest.parts |= {part.name: part for part in new}
            return True

        self._update(change)

    def sweep(self, kept_s: float = RETIRED_KEPT_S) -> int:
        """Delete parts retired longer ago than `kept_s` seconds; returns how many."""
        before = time.time() - kept_s
        old = [name for name, when in self.manifest().retired.items() if when <= before]
        for name in old:
            self.store.delete(f"parts/{name}")

        def change(manifest: Manifest) -> bool:
            manifest.retired = {name: when for name, when in manifest.retired.items() if name not in old}
            return bool(old)

        self._update(change)
        return len(old)

    def _update(self, change: Callable[[Manifest], bool]) -> None:
        """Apply `change` to the newest manifest; again whenever somebody else was quicker."""
        for attempt in range(REPLACE_TRIES):
            found = self.store.read_version(MANIFEST)
            manifest = Manifest.from_bytes(found[0]) if found else Manifest()
            if not change(manifest):
                return
            try:
                self.store.replace(MANIFEST, manifest.to_bytes(), found[1] if found else None)
            except Conflict:
                time.sleep(0.01 * (attempt + 1))
            else:
                return
        raise Conflict(
            f"{self.store.uri}/{MANIFEST} changed {REPLACE_TRIES} times while it was being updated"
        )


def _groups(parts: list[Part]) -> Iterator[list[Part]]:
    """Consecutive parts with about `MERGED_ROWS` rows together."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if sum(p.rows for p in group) >= MERGED_ROWS:
            yield group
            group = []
    if len(group) > 1:
        yield group
