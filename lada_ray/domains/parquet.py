"""Parquet files with image bytes and class labels, as the Hugging Face hub stores them or plainer ones.

Listing reads footers and label columns; images are read a row group at a time (rows.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lada_ray.domains.base import Domain, DomainSpec, Location, Sample, did_you_mean
from lada_ray.domains.listed import HEADING, Split, check_root, in_order, listed_domain, some
from lada_ray.domains.parts import ParquetRow
from lada_ray.errors import InputError
from lada_ray.store import Entry, Store, join, open_store

if TYPE_CHECKING:
    import pyarrow as pa

MAX_GROUP = 2**29
"""Largest image column of a row group, in bytes: a process that reads an image holds two of them."""


class ParquetSpec(DomainSpec):
    """Parquet files with image bytes and class labels.

    Images are a binary column, or a struct {bytes, path} (Hugging Face); labels are ClassLabel, integers or text.
    """

    path_fields: ClassVar[tuple[str, ...]] = ("root",)

    kind: Literal["parquet"] = "parquet"
    """parquet"""
    root: Location
    """Folder, or s3:// or gs:// prefix, with the files at any depth; a relative one counts from data or the
    YAML's folder."""
    train_files: str = Field(default="*train*.parquet", min_length=1)
    """Which files are for training: a pattern for their paths below root, * standing for anything."""
    test_files: str = Field(default="*test*.parquet", min_length=1)
    """Which files are for testing."""
    split_column: str | None = None
    """Column that says what a row is for; all files are read then, whatever their names (null: file names say it)."""
    train_split: str = "train"
    """With split_column: its value for training."""
    test_split: str = "test"
    """With split_column: its value for testing."""
    image_column: str | None = None
    """Column of the images (null: the only one that can be it)."""
    label_column: str | None = None
    """Column of the labels (null: the only ClassLabel, or the one called label)."""

    def load(self, storage: str) -> Domain:
        """Read footers and labels; see `DomainSpec.load`."""
        store = open_store(self.root)
        check_root(self.name, store, "Parquet files")
        shards, problems = [], []
        for entry, split in _chosen(self, store):
            try:
                shards.append(_read_shard(self, store, entry, split))
            except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
                problems.append(f"{self.name}: {join(store.uri, entry.key)}: {error}")
        if problems:
            raise InputError(problems, HEADING)
        classes = _classes(self.name, shards)
        index = {name: i for i, name in enumerate(classes)}
        samples: dict[Split, list[Sample]] = {"train": [], "test": []}
        for shard in shards:
            for split, sample in _samples(store, shard, index):
                samples[split].append(sample)
        return listed_domain(self, classes, samples, [])


@dataclass(frozen=True)
class _Shard:
    """One file: its image column, its class names where the schema has them, and each row's class and split."""

    entry: Entry
    column: str
    names: tuple[str, ...] | None
    stored: list[str]
    splits: list[Split | None]


def _chosen(spec: ParquetSpec, store: Store) -> list[tuple[Entry, Split | None]]:
    """The files to read, each with its split (None: a column says it)."""
    entries = [
        e
        for e in store.list()
        if e.key.endswith(".parquet") and not any(p[0] == "." for p in e.key.split("/"))
    ]
    if not entries:
        raise InputError([f"{spec.name}: no .parquet files in {store.uri}"], HEADING)
    if spec.split_column is not None:
        return [(entry, None) for entry in entries]
    patterns: dict[Split, str] = {"train": spec.train_files, "test": spec.test_files}
    found = {split: [e for e in entries if fnmatch(e.key, pattern)] for split, pattern in patterns.items()}
    both = [e.key for e in found["train"] if e in found["test"]]
    problems = [f"{spec.name}: {some(both)} match both train_files and test_files"] if both else []
    problems += [
        f"{spec.name}: no file in {store.uri} matches {split}_files {patterns[split]!r}; "
        f"there are {some([e.key for e in entries])}"
        for split in patterns
        if not found[split]
    ]
    if problems:
        raise InputError(problems, HEADING)
    return [(entry, split) for split in found for entry in found[split]]


def _read_shard(spec: ParquetSpec, store: Store, entry: Entry, split: Split | None) -> _Shard:
    """Read the footer, the labels and the splits of a file.

    Raises:
        ValueError: no such column, labels of another type, row groups that are too large.
    """
    import pyarrow.parquet as pq

    with store.open(entry.key) as handle:
        file = pq.ParquetFile(handle)
        schema, features = file.schema_arrow, _features(file.schema_arrow)
        image = spec.image_column or _only_image(schema)
        label = spec.label_column or _only_label(schema, features)
        columns = [label] if split else [label, str(spec.split_column)]
        for column in (image, *columns):
            if column not in schema.names:
                raise ValueError(f"has no column {column!r}{did_you_mean(column, schema.names)}")
        _check_groups(file.metadata, image)
        table = file.read(columns=columns)
    names = features.get(label, {}).get("names")
    stored = _stored(table[label].to_pylist(), label, names)
    splits: list[Split | None] = (
        [split] * len(stored) if split else _splits(spec, table[str(spec.split_column)].to_pylist())
    )
    return _Shard(entry, image, tuple(names) if names else None, stored, splits)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The Hugging Face description of the columns, {} where there is none: {"label": {"names": [...], ...}}."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def _only_image(schema: pa.Schema) -> str:
    import pyarrow.types as t

    def holds_bytes(kind: pa.DataType) -> bool:
        if t.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return bool(t.is_binary(kind) or t.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    if len(found) != 1:
        raise ValueError(
            f"{len(found) or 'no'} columns could be the images ({', '.join(found or schema.names)}); "
            "say which with image_column"
        )
    return found[0]


def _only_label(schema: pa.Schema, features: Mapping[str, Any]) -> str:
    labelled = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    if not labelled and "label" in schema.names:
        labelled = ["label"]
    if len(labelled) != 1:
        raise ValueError(
            f"{len(labelled) or 'no'} columns could be the labels ({', '.join(labelled or schema.names)}); "
            "say which with label_column"
        )
    return labelled[0]


def _check_groups(metadata: Any, column: str) -> None:
    """Refuse row groups that no process should hold."""
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = (group.column(i) for i in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
        if size > MAX_GROUP:
            raise ValueError(
                f"row group {index} has {size / 2**20:.0f} MiB of images, which would all be read for each one "
                f"(at most {MAX_GROUP / 2**20:.0f}); write it with pyarrow's row_group_size=100"
            )


def _stored(values: Sequence[Any], column: str, names: Sequence[str] | None) -> list[str]:
    """Each row's class as it is stored: its ClassLabel name, or its own text or number."""
    strange = [value for value in values if not isinstance(value, str | int) or isinstance(value, bool)]
    if strange:
        raise ValueError(
            f"column {column!r} has {len(strange)} values that are no label, such as {strange[0]!r}"
        )
    if names is None:
        return [str(value) for value in values]
    outside = [v for v in values if not isinstance(v, int) or not 0 <= v < len(names)]
    if outside:
        raise ValueError(
            f"column {column!r} has {len(outside)} values without a class name, such as {outside[0]}"
        )
    return [names[value] for value in values]


def _splits(spec: ParquetSpec, values: Sequence[Any]) -> list[Split | None]:
    """What each row is for; None for rows of other splits.

    Raises:
        ValueError: not one row is for training or testing.
    """
    named: dict[Any, Split] = {spec.train_split: "train", spec.test_split: "test"}
    if not any(value in named for value in values):
        found = ", ".join(sorted({repr(value) for value in values}))
        raise ValueError(f"column {spec.split_column!r} has {found}; set train_split and test_split")
    return [named.get(value) for value in values]


def _classes(name: str, shards: Sequence[_Shard]) -> list[str]:
    """All classes in order of their labels: as the schema has them, else as the rows do."""
    named = {shard.names: shard.entry.key for shard in shards}
    if len(named) > 1:
        first, second, *_ = named.values()
        raise InputError([f"{name}: {first} and {second} have different lists of class names"], HEADING)
    if (names := shards[0].names) is not None:
        return list(names)
    return in_order(
        s for shard in shards for s, split in zip(shard.stored, shard.splits, strict=True) if split
    )


def _samples(store: Store, shard: _Shard, index: Mapping[str, int]) -> Iterator[tuple[Split, Sample]]:
    entry = shard.entry
    for row, (stored, split) in enumerate(zip(shard.stored, shard.splits, strict=True)):
        if split is not None:
            path = entry.key + str(ParquetRow(shard.column, row))
            yield split, Sample(join(store.uri, path), path, index[stored], entry.size, entry.version)
