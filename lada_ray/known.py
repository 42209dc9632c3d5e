"""What a production model knows of the images of its domains: by content, so that none is asked for again.

Kept in the model's run folder as `domains/<content>.parquet`: a row per image, training and test alike.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from lada_ray.errors import IntegrityError
from lada_ray.evaluate import TestSet
from lada_ray.features.fill import Images
from lada_ray.features.selection import Selection
from lada_ray.inbox import Known
from lada_ray.store import Store

SCHEMA = pa.schema(
    [
        ("part", pa.dictionary(pa.int32(), pa.string())),
        ("label", pa.int32()),
        ("path", pa.string()),
        ("sha256", pa.string()),
    ]
)
ABOUT = b"domain"


@dataclass(frozen=True)
class KnownDomain:
    """A domain that a model has learnt."""

    tests: TestSet
    """Its held-out images: every later candidate is judged on them."""
    images: Mapping[str, frozenset[str]]
    """SHA-256s of all its images by class, training and test."""

    @property
    def known(self) -> Known:
        """As the inbox asks for it."""
        return Known(self.tests.domain, self.tests.class_names, self.images)


def known_key(content: str) -> str:
    """Where a domain of this content is kept."""
    return f"domains/{content}.parquet"


def write_known(
    store: Store, key: str, images: Images, selection: Selection, prompts: tuple[str, ...]
) -> None:
    """Keep what is known of a domain.

    Args:
        store: the model's run folder.
        key: from `known_key`.
        images: that hold the hashes.
        selection: the domain's images.
        prompts: one per class.
    """
    parts = [("train", s) for s in selection.train] + [("test", s) for s in selection.test]
    rows = [
        {"part": part, "label": s.label, "path": s.path, "sha256": images.hashes[s.uri]} for part, s in parts
    ]
    about = {"name": selection.domain.name, "class_names": selection.domain.class_names, "prompts": prompts}
    table = pa.Table.from_pylist(rows, SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({ABOUT: json.dumps(about)}), sink, compression="zstd")
    store.write(key, sink.getvalue())


def read_known(store: Store, key: str) -> KnownDomain:
    """What `write_known` kept.

    Raises:
        IntegrityError: it is missing or damaged.
    """
    try:
        table = pq.read_table(io.BytesIO(store.read(key)))
        about = json.loads(table.schema.metadata[ABOUT])
        rows = table.to_pandas()
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
        where = f"{store.uri}/{key}"
        raise IntegrityError(
            f"{where} cannot be read: {error}; restore it from a copy of the model"
        ) from error
    names = tuple(about["class_names"])
    by_class = rows.groupby("label")["sha256"].agg(frozenset)
    tests = rows[rows["part"] == "test"]
    return KnownDomain(
        TestSet(
            about["name"],
            names,
            tuple(about["prompts"]),
            tuple(tests["sha256"]),
            tuple(tests["label"].tolist()),
            tuple(tests["path"]),
        ),
        {names[label]: shas for label, shas in by_class.items()},
    )
