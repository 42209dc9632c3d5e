"""A table of (path or URI, label, split), as CSV or Parquet, with the images wherever they are."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal

from lada_ray.domains.base import Domain, DomainSpec, Location, Sample, did_you_mean, file_store
from lada_ray.domains.listed import (
    HEADING,
    Row,
    Split,
    in_order,
    listed_domain,
    missing_files,
    some,
    two_classes,
)
from lada_ray.domains.parts import split_part
from lada_ray.errors import InputError, LadaError
from lada_ray.store import Entry, is_remote

LOOKING = 32
"""Files looked up at once: each is a request where they lie in an object store."""


class ManifestSpec(DomainSpec):
    """A CSV or Parquet table that names each image, its label and its split.

    Rows of other splits than training and testing are left out. An image may be a part of a file, as in
    train.parquet#column=image&row=12.
    """

    path_fields: ClassVar[tuple[str, ...]] = ("file", "root")

    kind: Literal["manifest"] = "manifest"
    """manifest"""
    file: Location
    """The table, .csv (UTF-8, with a header) or .parquet; a relative one counts from data or the YAML's folder."""
    root: Location | None = None
    """Folder, or s3:// or gs:// prefix, from which relative paths in it count (null: the table's own folder)."""
    path_column: str = "path"
    """Column of paths or URIs."""
    label_column: str = "label"
    """Column of class names."""
    split_column: str = "split"
    """Column that says what a row is for."""
    train_split: str = "train"
    """Its value for training."""
    test_split: str = "test"
    """Its value for testing."""

    def located(self) -> dict[str, str]:
        """Where its rows lead, by path, before anything there is looked up.

        Raises:
            InputError: as `load`.
        """
        return {row.path: self._uri(row.path) for row in _rows(self, _read_table(self))}

    def load(self, storage: str) -> Domain:
        """Read the table and look its files up; see `DomainSpec.load`."""
        rows = _rows(self, _read_table(self))
        classes = in_order(row.stored for row in rows)
        label = {name: index for index, name in enumerate(classes)}
        paths = list(dict.fromkeys(row.path for row in rows))
        with ThreadPoolExecutor(LOOKING) as pool:
            entries = dict(zip(paths, pool.map(lambda path: _look_up(self._uri(path)), paths), strict=True))
        missing = [path for path in paths if entries[path] is None]
        problems = [*missing_files(self.name, self._root, missing, len(paths)), *two_classes(self.name, rows)]
        samples: dict[Split, list[Sample]] = {"train": [], "test": []}
        for row in rows:
            if entry := entries[row.path]:
                sample = Sample(self._uri(row.path), row.path, label[row.stored], entry.size, entry.version)
                samples[row.split].append(sample)
        return listed_domain(self, classes, samples, problems)

    @property
    def _root(self) -> str:
        return self.root or os.path.dirname(self.file)

    def _uri(self, path: str) -> str:
        """Where a path or URI of the table leads."""
        if "://" in path or os.path.isabs(path):
            return path
        return (
            self._root.rstrip("/") + "/" + path if is_remote(self._root) else os.path.join(self._root, path)
        )


def _read_table(spec: ManifestSpec) -> list[dict[str, Any]]:
    """Read the three columns, a mapping per row.

    Raises:
        InputError: no such file, columns that are not there, text that is no table.
    """
    wanted = [spec.path_column, spec.label_column, spec.split_column]
    store, key = file_store(spec.file)
    try:
        data = store.read(key)
        names, rows = _parquet(data, wanted) if key.endswith(".parquet") else _csv(data)
    except FileNotFoundError:
        raise InputError([f"{spec.name}: there is no file {spec.file}"], HEADING) from None
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError([f"{spec.name}: {spec.file} cannot be read: {error}"], HEADING) from None
    absent = [column for column in wanted if column not in names]
    if absent:
        has = f"(it has {', '.join(names)})"
        lines = [
            f"{spec.name}: {spec.file} has no column {c!r}{did_you_mean(c, names)} {has}" for c in absent
        ]
        raise InputError(lines, HEADING)
    return rows


def _csv(data: bytes) -> tuple[list[str], list[dict[str, Any]]]:
    table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    return list(table.fieldnames or []), list(table)


def _parquet(data: bytes, wanted: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(data))
    names = file.schema_arrow.names
    return names, file.read(columns=[name for name in wanted if name in names]).to_pylist()


def _rows(spec: ManifestSpec, table: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows that are for training or testing.

    Raises:
        InputError: rows with an empty path or label; none for training or none for testing.
    """
    named: dict[str, Split] = {spec.train_split: "train", spec.test_split: "test"}
    rows, empty, others = [], [], set()
    for number, line in enumerate(table, start=1):
        path, label, split = (
            _text(line[c]) for c in (spec.path_column, spec.label_column, spec.split_column)
        )
        if split not in named:
            others.add(split)
        elif not path or not label:
            empty.append(str(number))
        else:
            rows.append(Row(path, label, named[split]))
    problems = [f"{spec.name}: rows without path or label: {some(empty)}"] if empty else []
    strange = [row.path for row in rows if not _can_be_read(row.path)]
    if strange:
        problems.append(
            f"{spec.name}: {len(strange)} paths are of a kind that cannot be read: {some(strange)}"
        )
    for value, split in named.items():
        if not any(row.split == split for row in rows):
            found = f" (it has {some(sorted(map(repr, others)))}; see {split}_split)" if others else ""
            problems.append(f"{spec.name}: no row of {spec.file} has {spec.split_column} {value!r}{found}")
    if problems:
        raise InputError(problems, HEADING)
    return rows


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _can_be_read(path: str) -> bool:
    """Whether it is a path, or a URI of a kind that storage knows."""
    try:
        return not is_remote(path) or not {"", ".", ".."} & {*path.partition("://")[2].split("/")}
    except LadaError:
        return False


def _look_up(uri: str) -> Entry | None:
    """Size and version of a file, None where there is none."""
    store, key = file_store(split_part(uri)[0])
    try:
        return store.stat(key)
    except FileNotFoundError:
        return None
