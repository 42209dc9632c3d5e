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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lada_ray.errors import Conflict, IntegrityError
from lada_ray.store import Store

MANIFEST = "manifest.json"
# More parts than this are merged: reading keys costs one request a part.
MERGE_ABOVE = 48
# A merged part aims at this many rows; 65 536 features of 512 float32 are 128 MiB.
MERGED_ROWS = 65_536
# Parts that a merge replaced stay readable this long, for readers that still hold the old manifest.
RETIRED_KEPT_S = 24 * 3600.0
# Parts whose rows were removed for good, this long: for readers that are in the middle of one.
REMOVED_KEPT_S = 15 * 60.0
REPLACE_TRIES = 100
# In a part's metadata: the names of those that it was made from.
REPLACES = b"replaces"
# In a part's metadata, where an equal one was removed for good a moment ago and its file is about to go.
AGAIN = b"again"

T = TypeVar("T")


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
    """Which parts count, and when others were retired (unix seconds by name).

    Negative seconds: the rows were removed for good, they do not count elsewhere.
    """

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
        keys: columns that identify a row, where a row that stands there twice would count twice.
    """

    def __init__(self, store: Store, schema: pa.Schema, keys: Sequence[str] = ()) -> None:
        self.store, self.schema, self.keys = store, schema, list(keys)

    def manifest(self) -> Manifest:
        """What the table holds now; one small read."""
        found = self.store.read_version(MANIFEST)
        return Manifest.from_bytes(found[0]) if found else Manifest()

    def write(self, table: pa.Table, run: str) -> Part:
        """Write one part, durable but not counted yet: hand it to `enter`."""
        rows = table.cast(self.schema).replace_schema_metadata({"run": run})
        return self._put(rows, {run: table.num_rows})

    def rewrite(self, old: list[Part], table: pa.Table, readable: bool = True) -> bool:
        """Count one part with these rows (or none, if there are none) instead of `old`; see `exchange`."""
        by: dict[str, int] = {}
        for part in old:
            by = {run: by.get(run, 0) + part.by.get(run, 0) for run in {**by, **part.by}}
        new = [self._put(table.cast(self.schema), by, [part.name for part in old])] if table.num_rows else []
        return self.exchange(old, new, readable)

    def _put(self, table: pa.Table, by: dict[str, int], replaces: Sequence[str] = ()) -> Part:
        metadata = {**(table.schema.metadata or {}), b"by": json.dumps(by).encode()}
        if replaces:
            metadata[REPLACES] = json.dumps(list(replaces)).encode()
        name, data = _serialized(table, metadata)
        if not self.store.create(f"parts/{name}", data) and self.manifest().retired.get(name, 1.0) <= 0:
            name, data = _serialized(table, {**metadata, AGAIN: str(time.time()).encode()})
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
        """Enter the parts that killed writers left behind, less the rows that others wrote since.

        Returns:
            How many were entered.
        """
        self.sweep()
        manifest = self.manifest()
        found = [entry.key.rpartition("/")[2] for entry in self.store.list("parts")]
        lost = [name for name in found if name not in manifest.parts and name not in manifest.retired]
        parts = [part for part in map(self._describe, lost) if part is not None]
        if not self.keys:
            self.enter(parts)
            return len(parts)
        return sum(self._adopt_new_rows(part, new) for part, new in self._new_rows(parts))

    def _new_rows(self, parts: Sequence[Part]) -> list[tuple[Part, npt.NDArray[np.bool_]]]:
        """Each part with which of its rows stand neither in the table nor in a part before it."""
        if not parts:
            return []
        keys = [row_keys(self.read(part.name, self.keys), self.keys) for part in parts]
        new = [~index.duplicated() for index in keys]
        for _, table in self.scan(self.keys):
            counted = row_keys(table, self.keys)
            for index, mask in zip(keys, new, strict=True):
                mask &= ~index.isin(counted)
        for i, mask in enumerate(new):
            for earlier in keys[:i]:
                mask &= ~keys[i].isin(earlier)
        return list(zip(parts, new, strict=True))

    def _adopt_new_rows(self, part: Part, new: npt.NDArray[np.bool_]) -> bool:
        if new.all():
            self.enter([part])
            return True
        kept: list[Part] = []
        if new.any():
            rows = self.read(part.name, self.schema.names).filter(pa.array(new)).cast(self.schema)
            # Rows that count are written by one run: only parts made from others have several, and they are not
            # adopted.
            kept = [self._put(rows, dict.fromkeys(part.by, rows.num_rows), [part.name])]

        def change(manifest: Manifest) -> bool:
            if part.name in manifest.parts or part.name in manifest.retired:
                return False
            manifest.retired[part.name] = time.time()
            manifest.parts |= {p.name: p for p in kept}
            return True

        return self._update(change) and bool(kept)

    def _describe(self, name: str) -> Part | None:
        try:
            with self.store.open(f"parts/{name}") as file:
                meta = pq.read_metadata(file)
                size = file.seek(0, io.SEEK_END)
        except FileNotFoundError:
            return None  # another job entered, replaced and swept it since it was listed
        # What a killed merge wrote holds rows that still count elsewhere: entered, they would count twice.
        if REPLACES in meta.metadata:
            return None
        return Part(name, meta.num_rows, size, json.loads(meta.metadata[b"by"]))

    def read(self, name: str, columns: list[str]) -> pa.Table:
        """Some columns of one part; others are not fetched. A column that an older version did not write is null.

        Raises:
            FileNotFoundError: another job merged or removed it meanwhile, and swept; see `scan` and `reread`.
        """
        with self.store.open(f"parts/{name}") as file:
            parquet = pq.ParquetFile(file)
            written = set(parquet.schema_arrow.names)
            table = parquet.read([c for c in columns if c in written]).replace_schema_metadata()
            rows = parquet.metadata.num_rows
        for column in columns:
            if column not in written:
                table = table.append_column(column, pa.nulls(rows, self.schema.field(column).type))
        return table.select(columns)

    def scan(self, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
        """(name, some columns) of every part that counts.

        Where a part vanishes meanwhile, because another job merged or removed it, what counts instead follows: rows
        that were given already may come again.

        Raises:
            IntegrityError: a part that counts is not there.
        """
        given: set[str] = set()
        names = list(self.manifest().parts)
        while names:
            name = names.pop(0)
            try:
                table = self.read(name, columns)
            except FileNotFoundError:
                names = self._instead(name, given)
                continue
            given.add(name)
            yield name, table

    def _instead(self, vanished: str, given: set[str]) -> list[str]:
        now = self.manifest().parts
        if vanished in now:
            raise IntegrityError(
                f"{self.store.uri}/parts/{vanished} is not there, though {MANIFEST} beside it says so: it was deleted "
                f"by hand, or the storage lost it. Restore it; or delete {self.store.uri}, which the next start fills "
                "again"
            )
        return [name for name in now if name not in given]

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
            try:
                tables = [self.read(part.name, self.schema.names) for part in group]
            except FileNotFoundError:
                continue  # another job has replaced one of them
            self.rewrite(group, pa.concat_tables(table.cast(self.schema) for table in tables))
        self.sweep()
        return sum(map(len, groups))

    def exchange(self, old: list[Part], new: list[Part], readable: bool = True) -> bool:
        """Count `new` instead of `old`, unless another process has already exchanged one of `old`.

        Args:
            old: parts that count.
            new: parts that were written.
            readable: keep the files of `old` for a day; else for some minutes, and their rows may be added again.

        Returns:
            Whether it was done.
        """
        names = {part.name for part in new}

        def change(manifest: Manifest) -> bool:
            if any(part.name not in manifest.parts for part in old):
                return False
            for part in old:
                del manifest.parts[part.name]
                if part.name not in names:
                    manifest.retired[part.name] = time.time() if readable else -time.time()
            manifest.parts |= {part.name: part for part in new}
            return True

        return self._update(change)

    def sweep(self, kept_s: float = RETIRED_KEPT_S) -> int:
        """Delete parts retired longer ago than `kept_s` seconds, or removed for good some minutes ago.

        Returns:
            How many.
        """
        now = time.time()
        kept = {True: kept_s, False: min(kept_s, REMOVED_KEPT_S)}
        old = [n for n, when in self.manifest().retired.items() if abs(when) <= now - kept[when > 0]]
        for name in old:
            self.store.delete(f"parts/{name}")

        def change(manifest: Manifest) -> bool:
            manifest.retired = {name: when for name, when in manifest.retired.items() if name not in old}
            return bool(old)

        self._update(change)
        return len(old)

    def remove(self, column: str, values: Collection[str]) -> int:
        """Remove for good every row with one of these values; its bytes are gone when this returns.

        Readers in the middle of a part read again. A writer that adds such a row at the same time may have it counted
        afterwards.

        Returns:
            How many rows that counted.
        """
        self.adopt()
        removed, wanted = 0, pa.array(sorted(values), pa.string())
        # Another job may merge parts meanwhile: until a pass finds nothing.
        while found := [name for name, some in self.scan([column]) if _hits(some[column], wanted).any()]:
            removed += sum(self._remove_from(name, column, wanted) for name in found)
        self.sweep(0)
        self._delete_rubble(column, wanted)
        return removed

    def _remove_from(self, name: str, column: str, wanted: pa.Array) -> int:
        part = self.manifest().parts.get(name)
        if part is None:
            return 0
        try:
            table = self.read(name, self.schema.names)
        except FileNotFoundError:
            return 0
        gone = _hits(table[column], wanted)
        done = self.rewrite([part], table.filter(pa.array(~gone)), readable=False)
        return int(gone.sum()) if done else 0

    def _delete_rubble(self, column: str, wanted: pa.Array) -> None:
        """Delete what killed merges left of such rows; a live one cannot enter it, as its sources were rewritten."""
        manifest = self.manifest()
        for entry in list(self.store.list("parts")):
            name = entry.key.rpartition("/")[2]
            if name in manifest.parts or name in manifest.retired:
                continue
            with suppress(FileNotFoundError):
                if _hits(self.read(name, [column])[column], wanted).any():
                    self.store.delete(entry.key)

    def _update(self, change: Callable[[Manifest], bool]) -> bool:
        """Apply `change` to the newest manifest; again whenever somebody else was quicker. Whether it changed it."""
        for attempt in range(REPLACE_TRIES):
            found = self.store.read_version(MANIFEST)
            manifest = Manifest.from_bytes(found[0]) if found else Manifest()
            if not change(manifest):
                return False
            try:
                self.store.replace(MANIFEST, manifest.to_bytes(), found[1] if found else None)
            except Conflict:
                time.sleep(0.01 * (attempt + 1))
            else:
                return True
        raise Conflict(
            f"{self.store.uri}/{MANIFEST} changed {REPLACE_TRIES} times while it was being updated"
        )


def _hits(column: pa.ChunkedArray, wanted: pa.Array) -> npt.NDArray[np.bool_]:
    """Which values of a column are wanted, [n]."""
    import pyarrow.compute as pc

    return pc.is_in(column.cast(pa.string()), wanted).to_numpy(zero_copy_only=False).astype(np.bool_)


def row_keys(table: pa.Table, columns: Sequence[str]) -> pd.MultiIndex:
    """What identifies each row of a table."""
    return pd.MultiIndex.from_arrays([table[c].to_pandas().astype(str) for c in columns], names=list(columns))


def reread(action: Callable[[], T]) -> T:
    """Do something that reads the manifest and then parts; once more, if a part vanished in between."""
    try:
        return action()
    except FileNotFoundError:
        return action()


def _serialized(table: pa.Table, metadata: dict[bytes, bytes]) -> tuple[str, bytes]:
    """A part's name and bytes."""
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    data = sink.getvalue()
    return f"{hashlib.sha256(data).hexdigest()[:32]}.parquet", data


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
