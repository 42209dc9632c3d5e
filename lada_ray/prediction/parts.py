"""Parts: the predictions of a chunk as a Parquet file, whose metadata sums them up."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lada_ray.method.outliers import Residuals
from lada_ray.prediction.asked import Asked, Name
from lada_ray.prediction.drift import Tensors, nothing, residuals_from_json, residuals_to_json
from lada_ray.prediction.listing import Chunk

# In a part's metadata: its Outcome, so that a summary needs no rows.
OUTCOME = b"lada_ray"


class Prediction(NamedTuple):
    """What an actor tells of an image."""

    ranked: Sequence[tuple[int, float]]
    """Classes as (index, score), best first."""
    outlier: bool | None = None
    """Whether it lies outside of what the packs know; None if they are not calibrated."""
    distance: float | None = None
    """How far, as `Nearest.distance`."""


@dataclass
class Outcome:
    """What came of some images: of a chunk's, or of all."""

    residuals: Residuals
    """Of the images that have a prediction."""
    classes: Counter[int] = field(default_factory=Counter)
    """Images by predicted class."""
    outliers: Counter[int] = field(default_factory=Counter)
    """Those of them that are outliers."""
    unknown: int = 0
    """Images whose score is below what was asked."""
    bad: dict[str, str] = field(default_factory=dict)
    """Reason by path, of files that are no usable images."""
    unread: dict[str, str] = field(default_factory=dict)
    """Reason by path, of files that could not be read or rendered now: the next start tries again."""

    def to_json(self) -> str:
        """For a part's metadata."""
        return json.dumps({**vars(self), "residuals": residuals_to_json(self.residuals)})

    @classmethod
    def from_json(cls, data: bytes, packs: Sequence[Tensors]) -> Outcome:
        """Read a part's metadata; `packs` judged its images."""
        said = json.loads(data)
        for name in ("classes", "outliers"):
            said[name] = Counter({int(j): n for j, n in said[name].items()})
        return cls(**{**said, "residuals": residuals_from_json(said["residuals"], packs)})

    def add(self, other: Outcome) -> None:
        """Count other images too."""
        self.residuals = self.residuals + other.residuals
        self.classes.update(other.classes)
        self.outliers.update(other.outliers)
        self.unknown += other.unknown
        self.bad |= other.bad
        self.unread |= other.unread

    @property
    def without_prediction(self) -> dict[str, str]:
        """Reason by path, of all images that have none."""
        return {**self.bad, **self.unread}


@dataclass
class Gathered:
    """What came of a chunk's images so far, each by its position in the chunk."""

    residuals: Residuals
    predictions: dict[int, Prediction] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    unread: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.predictions) + len(self.bad) + len(self.unread)


class Gathering:
    """Puts the images of each chunk together again, as batches come in any order.

    Args:
        chunks: their files are counted through.
        packs: what judges outliers.
    """

    def __init__(self, chunks: Sequence[Chunk], packs: Sequence[Tensors]) -> None:
        self.chunks, self.packs = chunks, packs
        self.starts = np.cumsum([0, *(len(chunk.entries) for chunk in chunks)])
        self.total = int(self.starts[-1])
        self.waiting: dict[int, Gathered] = {}

    def add(self, row: Mapping[str, Any]) -> Iterator[tuple[Chunk, Gathered]]:
        """Take a batch, as `Predictor.work` gives it, and yield the chunks that are complete with it."""
        for image, prediction in zip(row["images"], row["predictions"], strict=True):
            gathered, i = self._place(image)
            gathered.predictions[i] = Prediction(*prediction)
        for why in ("bad", "unread"):
            for image, reason in row[why].items():
                gathered, i = self._place(int(image))
                getattr(gathered, why)[i] = reason
        for c, said in row["residuals"].items():
            gathered = self.waiting[int(c)]
            gathered.residuals = gathered.residuals + residuals_from_json(said, self.packs)
        for c in [c for c, some in self.waiting.items() if len(some) == len(self.chunks[c].entries)]:
            yield self.chunks[c], self.waiting.pop(c)

    def _place(self, image: int) -> tuple[Gathered, int]:
        c = int(np.searchsorted(self.starts, image, side="right")) - 1
        if c not in self.waiting:
            self.waiting[c] = Gathered(nothing(self.packs))
        return self.waiting[c], image - int(self.starts[c])


def make_part(asked: Asked, chunk: Chunk, found: Gathered) -> tuple[bytes, Outcome]:
    """The Parquet file of a chunk, a function of its images alone; and the outcome that stands in it."""
    paths = [entry.key for entry in chunk.entries]
    total, limit = Outcome(found.residuals), asked.options.unknown
    total.bad, total.unread = (
        {paths[i]: some[i] for i in sorted(some)} for some in (found.bad, found.unread)
    )
    rows = []
    for i, one in sorted(found.predictions.items()):
        best, score = one.ranked[0]
        total.classes[best] += 1
        total.outliers[best] += bool(one.outlier)
        total.unknown += limit is not None and score < limit
        rows.append({"path": paths[i], **_row(asked, one)})
    # In the order of the classes, not in that of their first images.
    total.classes, total.outliers = (
        Counter({j: n for j, n in sorted(counts.items()) if n}) for counts in (total.classes, total.outliers)
    )
    schema = asked.schema.with_metadata({OUTCOME: total.to_json()})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return sink.getvalue(), total


def _row(asked: Asked, one: Prediction) -> dict[str, Any]:
    """A row's values; those that the schema has no column for are left out of the file."""
    labels: list[Name] = [asked.names[j] for j, _ in one.ranked]
    best, score = one.ranked[0]
    limit = asked.options.unknown
    return {
        "domain": labels[0][0],
        "class": labels[0][1],
        "score": score,
        "seen": best < asked.seen,
        "unknown": limit is not None and score < limit,
        "outlier": one.outlier,
        "distance": one.distance,
        "domains": [domain for domain, _ in labels],
        "classes": [name for _, name in labels],
        "scores": [score for _, score in one.ranked],
    }
