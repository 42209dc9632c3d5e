"""What a production model knows of a domain's images: by content, so that no image is asked for again.

Kept in the model's run folder as `domains/<digest>.parquet`, a row per image. With the bank's features it is all that
it takes to judge a candidate on the domain, to learn it again, and to recognise its images when they come again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lada_ray.domains.base import Domain
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
KNOWN_DOMAINS = "domains.json"
"""In a run's folder: the keys of what is known of its domains, in order."""
TRAIN, TEST, REST = "train", "test", "rest"
"""Learnt from; tested on; neither, which few shots leave."""


@dataclass(frozen=True)
class KnownDomain:
    """A domain that a model has learnt, or is to learn.

    Attributes:
        name: of the domain.
        class_names: as displayed.
        prompts: one per class.
        rows: columns part, label, path, sha256; training images in the order in which they were learnt.
        complete: whether all its images are among the rows; of few shots the others may never have been read.
    """

    name: str
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    rows: pd.DataFrame
    complete: bool = True

    @classmethod
    def of(
        cls, domain: Domain, selection: Selection, prompts: tuple[str, ...], hashes: Mapping[str, str]
    ) -> KnownDomain:
        """What is known of a domain once its images are chosen.

        Args:
            domain: with all its samples.
            selection: those that are used.
            prompts: one per class.
            hashes: SHA-256 by URI; samples without one are left out.
        """
        used = {s.uri for s in selection.samples}
        others = [s for s in (*domain.train, *domain.test) if s.uri not in used]
        rest = [s for s in others if s.uri in hashes]
        parts = ((TRAIN, selection.train), (TEST, selection.test), (REST, rest))
        rows = [(part, s.label, s.path, hashes[s.uri]) for part, samples in parts for s in samples]
        table = pd.DataFrame(rows, columns=SCHEMA.names)
        complete = len(others) - len(rest) <= len(selection.bad)
        return cls(domain.name, domain.class_names, prompts, table, complete)

    @property
    def tests(self) -> TestSet:
        """Its held-out images: every later candidate is judged on them."""
        rows = self._part(TEST)
        columns = (tuple(rows[name].tolist()) for name in ("sha256", "label", "path"))
        return TestSet(self.name, self.class_names, self.prompts, *columns)

    @property
    def trained(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """SHA-256 and label of each training image."""
        rows = self._part(TRAIN)
        return tuple(rows["sha256"]), tuple(rows["label"].tolist())

    @cached_property
    def images(self) -> dict[str, frozenset[str]]:
        """SHA-256s of all its images by class."""
        by_label = self.rows.groupby("label")["sha256"].agg(frozenset)
        return {name: by_label.get(i, frozenset()) for i, name in enumerate(self.class_names)}

    @property
    def known(self) -> Known:
        """As the inbox asks for it."""
        return Known(self.name, self.class_names, self.images, self.complete)

    @property
    def key(self) -> str:
        """Where it is kept: named by all that stands in it."""
        said = json.dumps([self.name, self.class_names, self.prompts, self.rows.to_numpy().tolist()])
        return f"domains/{hashlib.sha256(said.encode()).hexdigest()[:32]}.parquet"

    def without(self, class_name: str) -> KnownDomain:
        """The same without a class; the labels after it move up."""
        gone = self.class_names.index(class_name)
        rows = self.rows[self.rows["label"] != gone]
        rows = rows.assign(label=rows["label"] - (rows["label"] > gone))
        names, prompts = ((*some[:gone], *some[gone + 1 :]) for some in (self.class_names, self.prompts))
        return replace(self, class_names=names, prompts=prompts, rows=rows.reset_index(drop=True))

    def _part(self, part: str) -> pd.DataFrame:
        return self.rows[self.rows["part"] == part]

    def write(self, store: Store) -> str:
        """Keep it in a model's run folder, once; returns its key."""
        about = {name: getattr(self, name) for name in ("name", "class_names", "prompts", "complete")}
        table = pa.Table.from_pandas(self.rows, SCHEMA, preserve_index=False)
        said = {ABOUT: json.dumps(about, ensure_ascii=False)}
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(said), sink, compression="zstd")
        store.write(self.key, sink.getvalue())
        return self.key


def read_known(store: Store, key: str) -> KnownDomain:
    """What `KnownDomain.write` kept in a run folder.

    Raises:
        IntegrityError: it is missing or damaged.
    """
    try:
        table = pq.read_table(io.BytesIO(store.read(key)))
        about: Mapping[str, Any] = json.loads(table.schema.metadata[ABOUT])
        rows = table.to_pandas().astype({"part": str})
        names, prompts = tuple(about["class_names"]), tuple(about["prompts"])
        return KnownDomain(about["name"], names, prompts, rows[SCHEMA.names], about["complete"])
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        where = f"{store.uri}/{key}"
        raise IntegrityError(
            f"{where} cannot be read: {error}; restore it from a copy of the model"
        ) from error


def keep_known(store: Store, images: Images, prompts: Sequence[tuple[str, ...]]) -> None:
    """Keep what is known of each domain of a stream, and which these are, in order.

    Args:
        store: of the run.
        images: chosen.
        prompts: of each domain's classes.
    """
    pairs = zip(images.selections, prompts, strict=True)
    keys = [KnownDomain.of(s.domain, s, some, images.hashes).write(store) for s, some in pairs]
    store.write(KNOWN_DOMAINS, json.dumps(keys, indent=1).encode())
