"""The feature bank: (SHA-256 of the image, view) -> raw feature, for one feature key."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lada_ray.errors import LadaError
from lada_ray.features.parts import Manifest, Part, PartTable, reread, row_keys
from lada_ray.store import Store

NEEDS = pa.schema([("sha256", pa.string()), ("view", pa.string())])
KEYS = ["sha256", "view"]
DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class BankSize:
    """What a bank holds."""

    views: int
    parts: int
    bytes: int


class FeatureBank:
    """Features of one encoder (and its deltas, if a learner changes it).

    Args:
        store: the features folder of the storage.
        feature_key: names the encoder.
        width: d.
    """

    def __init__(self, store: Store, feature_key: str, width: int) -> None:
        self.store, self.feature_key, self.width = store.child(feature_key), feature_key, width
        schema = pa.schema(
            [
                ("sha256", pa.string()),
                ("view", pa.dictionary(pa.int32(), pa.string())),
                ("feature", pa.list_(pa.float32(), width)),
            ]
        )
        self.table = PartTable(self.store, schema, KEYS)

    @classmethod
    def open(cls, store: Store, feature_key: str) -> FeatureBank:
        """An existing bank, whatever its encoder; the width is asked of its newest part."""
        table = PartTable(store.child(feature_key), pa.schema([]))

        def width() -> int:
            name = next(reversed(table.manifest().parts), None)
            return len(table.read(name, ["feature"])["feature"][0]) if name else 1

        return cls(store, feature_key, reread(width))

    def size(self) -> BankSize:
        """Views, parts and bytes, asked of the manifest alone."""
        return _size(self.table.manifest())

    def write(
        self, shas: Sequence[str], views: Sequence[str], features: npt.NDArray[np.float32], run: str
    ) -> Part:
        """Write a part with the features [n, d] of n (image, view) pairs; it counts once it is entered."""
        flat = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), self.width)
        columns = [pa.array(shas, pa.string()), pa.array(views, pa.string()).dictionary_encode(), flat]
        return self.table.write(pa.table(columns, names=self.table.schema.names), run)

    def missing(self, shas: Sequence[str], views: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of the (image, view) pairs, given as two parallel lists, are not in the bank, [n]."""
        wanted = pd.MultiIndex.from_arrays([list(shas), list(views)]) if len(shas) else None
        absent = np.ones(len(shas), np.bool_)
        for _, table in self.table.scan(KEYS):
            if wanted is not None:
                absent &= ~wanted.isin(row_keys(table, KEYS))
        return absent

    def fetch(self, shas: Sequence[str], views: Sequence[str]) -> npt.NDArray[np.float32]:
        """Features of images under views.

        Args:
            shas: n content hashes; repetitions are fine.
            views: V view names.

        Returns:
            [n, V, d] float32, raw.

        Raises:
            LadaError: if some are missing, saying how many.
        """
        unique, inverse = np.unique(np.asarray(shas, dtype=object).astype(str), return_inverse=True)
        # Keys and features of a part are two reads: it may vanish between them.
        out, found = reread(lambda: self._find(unique, views))
        if not found.all():
            raise LadaError(
                f"{(~found).sum()} of {found.size} features are not in the bank {self.store.uri}; start the run again "
                "to encode them"
            )
        return out[inverse]

    def _find(
        self, unique: npt.NDArray[np.str_], views: Sequence[str]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """The features [n, V, d] that are there, and which are, [n, V]."""
        out = np.full((len(unique), len(views), self.width), np.nan, np.float32)
        found = np.zeros(out.shape[:2], np.bool_)
        rows, columns = pd.Index(unique), pa.array(list(views), pa.string())
        for name, keys in self.table.scan(KEYS):
            row = rows.get_indexer(keys["sha256"].to_pandas())
            column = np.asarray(pc.index_in(keys["view"].cast(pa.string()), columns).fill_null(-1))
            hit = np.flatnonzero((row >= 0) & (column >= 0))
            if len(hit):
                feature = self.table.read(name, ["feature"])["feature"].combine_chunks()
                out[row[hit], column[hit]] = _matrix(feature, self.width)[hit]
                found[row[hit], column[hit]] = True
        return out, found

    def note_needs(self, run: str, shas: Sequence[str], views: Sequence[str]) -> None:
        """Record what a run uses, so that `prune` knows what is still needed."""
        table = pa.table([pa.array(shas, pa.string()), pa.array(views, pa.string())], schema=NEEDS)
        needs = PartTable(self.store.child(f"needs/{run}"), NEEDS)
        # What an earlier start left retired would be taken for retired again, if it is needed again.
        needs.sweep(0)
        old = list(needs.manifest().parts.values())
        # Even the same need again writes the manifest, whose age says when the run was last started.
        needs.exchange(old, [needs.write(table, run)])
        needs.sweep(0)

    def prune(self, days: float, keep: Iterable[tuple[str, str]] = ()) -> int:
        """Remove every feature that no run started in the last `days` days needs; returns how many rows.

        The (image, view) pairs in `keep` stay as well, however long nobody asked for them.

        Files go some minutes later, with the next start, merge or `prune`: another job may be reading them.
        """
        recent = self._needed(time.time() - days * DAY_S)
        needed = pd.MultiIndex.from_tuples([*recent, *keep], names=KEYS)
        removed = 0
        for name, table in self.table.scan(self.table.schema.names):
            keep = row_keys(table, KEYS).isin(needed)
            part = self.table.manifest().parts.get(name)
            # Gone: another job merged it; what it made of it is the next prune's.
            if keep.all() or part is None:
                continue
            if self.table.rewrite([part], table.filter(pa.array(keep)), readable=False):
                removed += int((~keep).sum())
        self.table.sweep()
        return removed

    def remove_images(self, shas: Collection[str]) -> int:
        """Remove for good all views of images, and every note that a run needs them; returns how many views."""
        for entry in list(self.store.list("needs")):
            if entry.key.endswith("/manifest.json"):
                PartTable(self.store.child(entry.key.removesuffix("/manifest.json")), NEEDS).remove(
                    "sha256", shas
                )
        return self.table.remove("sha256", shas)

    def _needed(self, since: float) -> Iterator[tuple[str, str]]:
        for entry in list(self.store.list("needs")):
            if entry.key.endswith("/manifest.json") and entry.modified >= since:
                folder = self.store.child(entry.key.removesuffix("/manifest.json"))
                for _, table in PartTable(folder, NEEDS).scan(NEEDS.names):
                    yield from zip(table["sha256"].to_pylist(), table["view"].to_pylist(), strict=True)


def banks(store: Store) -> Iterable[tuple[str, BankSize]]:
    """(feature key, size) of every bank in a storage's features folder."""
    for entry in store.list():
        folder, _, file = entry.key.rpartition("/")
        if file == "manifest.json" and "/" not in folder and folder not in ("index", "bad"):
            yield folder, _size(Manifest.from_bytes(store.read(entry.key)))


def _size(manifest: Manifest) -> BankSize:
    parts = manifest.parts.values()
    return BankSize(sum(p.rows for p in parts), len(parts), sum(p.bytes for p in parts))


def _matrix(feature: pa.FixedSizeListArray, width: int) -> npt.NDArray[np.float32]:
    return feature.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
