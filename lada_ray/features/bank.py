"""The feature bank: (SHA-256 of the image, view) -> raw feature, for one feature key."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from lada_ray.errors import LadaError
from lada_ray.features.parts import Manifest, Part, PartTable
from lada_ray.store import Store

NEEDS = pa.schema([("sha256", pa.string()), ("view", pa.string())])
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
        self.store, self.width = store.child(feature_key), width
        schema = pa.schema(
            [
                ("sha256", pa.string()),
                ("view", pa.dictionary(pa.int32(), pa.string())),
                ("feature", pa.list_(pa.float32(), width)),
            ]
        )
        self.table = PartTable(self.store, schema)

    @classmethod
    def open(cls, store: Store, feature_key: str) -> FeatureBank:
        """An existing bank, whatever its encoder; the width is asked of its newest part."""
        table = PartTable(store.child(feature_key), pa.schema([]))
        name = next(reversed(table.manifest().parts), None)
        width = len(table.read(name, ["feature"])["feature"][0]) if name else 1
        return cls(store, feature_key, width)

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
        for _, table in self.table.scan(["sha256", "view"]):
            if wanted is not None:
                absent &= ~wanted.isin(_pairs(table))
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
        out = np.full((len(unique), len(views), self.width), np.nan, np.float32)
        found = np.zeros(out.shape[:2], np.bool_)
        rows, columns = pd.Index(unique), pd.Index(list(views))
        for name, keys in self.table.scan(["sha256", "view"]):
            row = rows.get_indexer(keys["sha256"].to_pandas())
            column = columns.get_indexer(keys["view"].to_pandas().astype(str))
            hit = np.flatnonzero((row >= 0) & (column >= 0))
            if len(hit):
                feature = self.table.read(name, ["feature"])["feature"].combine_chunks()
                out[row[hit], column[hit]] = _matrix(feature, self.width)[hit]
                found[row[hit], column[hit]] = True
        if not found.all():
            raise LadaError(
                f"{(~found).sum()} of {found.size} features are not in the bank {self.store.uri}; start the run again "
                "to encode them"
            )
        return out[inverse]

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

    def prune(self, days: float) -> int:
        """Remove every feature that no run started in the last `days` days needs; returns how many rows."""
        needed = pd.MultiIndex.from_tuples(
            list(self._needed(time.time() - days * DAY_S)), names=["sha256", "view"]
        )
        removed = 0
        for part in list(self.table.manifest().parts.values()):
            table = self.table.read(part.name, self.table.schema.names)
            keep = _pairs(table).isin(needed)
            if keep.all():
                continue
            self.table.rewrite([part], table.filter(pa.array(keep)), readable=False)
            removed += int((~keep).sum())
        self.table.sweep()
        return removed

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


def _pairs(table: pa.Table) -> pd.MultiIndex:
    columns = [table[name].to_pandas().astype(str) for name in ("sha256", "view")]
    return pd.MultiIndex.from_arrays(columns, names=["sha256", "view"])


def _matrix(feature: pa.FixedSizeListArray, width: int) -> npt.NDArray[np.float32]:
    return feature.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
