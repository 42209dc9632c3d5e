"""Predict a folder: list, find out what is done, stream the rest through the cluster, write parts, sum up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from lada_ray.cluster import cause, join_cluster, settle_resources, shortages
from lada_ray.config import ResourceConfig
from lada_ray.console import START_RAY, Console
from lada_ray.errors import InputError
from lada_ray.features.extract import Pool, raise_stated, stream_rows
from lada_ray.lease import Lease
from lada_ray.model import LadaModel
from lada_ray.prediction.actor import Predictor, RenderImages
from lada_ray.prediction.asked import Asked, Options, ask
from lada_ray.prediction.folder import BAD, PARTS, begin, check_folder, finish, look_up
from lada_ray.prediction.listing import Chunk, Listing
from lada_ray.prediction.parts import Gathered, Gathering, Outcome, make_part
from lada_ray.prediction.shipment import Shipment
from lada_ray.prediction.summary import summarise
from lada_ray.store import Store, open_store

# Images of a read task and of an actor's call.
PREDICT_IMAGES = 256
SHOWN = 20


@dataclass(frozen=True)
class Predicted:
    """What `predict_folder` returns: where everything lies, and the content of summary.json."""

    folder: str
    summary: dict[str, Any]
    new: int = 0
    """Images that this start has looked at."""

    @property
    def parts(self) -> str:
        """The folder of Parquet files, and of nothing else."""
        return f"{self.folder}/{PARTS}"


def predict_folder(
    model: LadaModel | str,
    images: str,
    out: str,
    options: Options | None = None,
    resources: ResourceConfig | None = None,
    fresh: bool = False,
    console: Console | None = None,
) -> Predicted:
    """Predict the class of every image below a folder, on the cluster.

    Writes `predictions/*.parquet` (path, domain, class, score, seen, ...), `bad_images.csv` and, at the end,
    `summary.json` into `out`. The same call again goes on where a killed one was, and predicts files that are new or
    changed since.

    Args:
        model: a model, or where it is (`lada_ray.load`).
        images: local folder, or s3:// or gs:// prefix.
        out: local folder shared by nobody else, or prefix.
        options: what is asked of each image.
        resources: of the encoder actors.
        fresh: remove predictions of another model, or with other options, that are there.
        console: shows progress.

    Raises:
        InputError: model or images cannot be used, or `out` holds something else; all at once.
        IntegrityError: the encoder is not the one that the model was learnt with.
        LeaseHeld: another process writes to `out`.
    """
    console = console or Console()
    with console.stage("list images, load model"):
        asked = ask(model, images, options or Options())
    if asked.model.calibration.problem:
        console.warn(asked.model.calibration.problem)
    store, meta = open_store(out), asked.meta
    check_folder(store, meta, fresh)
    with Lease.acquire(store, console.say) as lease:
        check_folder(store, meta, fresh)
        begin(store, meta, fresh)
        total, pace = _predict_missing(asked, store, lease, resources, console)
        summary = finish(store, {**summarise(asked, total), **pace.numbers(), "of": meta}, total)
    if not summary["predicted"]:
        problems = _first(total.without_prediction, store)
        raise InputError(problems, f"None of the {asked.listing.images} images can be used")
    return Predicted(store.uri, summary, pace.images)


def _predict_missing(
    asked: Asked, store: Store, lease: Lease, resources: ResourceConfig | None, console: Console
) -> tuple[Outcome, Pace]:
    """Write the parts that are missing, remove those of files that are gone, and sum all up."""
    listing, pace = asked.listing, Pace()
    done = look_up(store, listing, asked.model.calibration.outliers)
    todo = [chunk for chunk in listing.chunks if chunk.name not in done.names]
    _say_what_is_done(listing, todo, console)
    for chunk, found in predict_chunks(asked, todo, resources, pace, console):
        data, outcome = make_part(asked, chunk, found)
        lease.check()
        store.write(f"{PARTS}/{chunk.name}", data)
        done.total.add(outcome)
    for name in done.stale:
        store.delete(f"{PARTS}/{name}")
    done.total.unread |= listing.bad
    return done.total, pace


def _first(bad: Mapping[str, str], store: Store) -> list[str]:
    lines = [f"{path}: {why}" for path, why in sorted(bad.items())[:SHOWN]]
    return [*lines, f"all are listed in {store.uri}/{BAD}"] if len(bad) > SHOWN else lines


def _say_what_is_done(listing: Listing, todo: Sequence[Chunk], console: Console) -> None:
    left = sum(len(chunk.entries) for chunk in todo)
    done = listing.images - len(listing.bad) - left
    if done:
        console.say(f"  {done} of {listing.images} images are done already")


@dataclass
class Pace:
    """How fast it goes, not counting the time until the actors are there."""

    begun: float = field(default_factory=time.monotonic)
    started: float | None = None
    """When the first batch came to an actor."""
    images: int = 0

    def add(self, images: int, seconds: float) -> None:
        """A batch of so many images came back, on which an actor has spent so many seconds."""
        if self.started is None:
            self.started = time.monotonic() - seconds
        self.images += images

    def numbers(self) -> dict[str, Any]:
        """For the summary: seconds since the beginning, of which until the actors were there; and images per second."""
        now = time.monotonic()
        started = self.started or now
        rate = round(self.images / (now - started), 1) if self.images else None
        return {
            "seconds": round(now - self.begun, 1),
            "start_seconds": round(started - self.begun, 1),
            "images_per_second": rate,
        }


def predict_chunks(
    asked: Asked,
    chunks: Sequence[Chunk],
    resources: ResourceConfig | None,
    pace: Pace,
    console: Console,
) -> Iterator[tuple[Chunk, Gathered]]:
    """Predict the images of these chunks on the cluster, and yield each chunk that is complete, in any order.

    Yields:
        A chunk, and what came of its files.

    Raises:
        IntegrityError: a node's encoder is not the model's.
        LadaError: the encoder cannot be loaded on a node, or the cluster lost an actor for good.
    """
    import ray

    if not chunks:
        return
    with console.stage(START_RAY):
        join_cluster()
        settled = settle_resources(resources or ResourceConfig())
    for line in shortages(replace(settled, train_workers=0)):
        console.warn(line)
    pool = Pool.of(settled)
    gathering = Gathering(chunks, asked.model.calibration.outliers)
    with console.stage("predict"):
        try:
            for row in _stream(asked, chunks, pool):
                raise_stated(row)
                yield from gathering.add(row)
                pace.add(sum(len(row[key]) for key in ("images", "bad", "unread")), row["seconds"])
                console.progress("predict", pace.images, gathering.total)
        except ray.exceptions.RayError as error:
            raise cause(error) from error


def _stream(asked: Asked, chunks: Sequence[Chunk], pool: Pool) -> Iterator[dict[str, Any]]:
    # Not `join`: a key that cannot be opened costs its image, when it is read.
    root = asked.listing.root.rstrip("/")
    uris = [f"{root}/{entry.key}" for chunk in chunks for entry in chunk.entries]
    numbers = np.repeat(np.arange(len(chunks)), [len(chunk.entries) for chunk in chunks])
    table = pd.DataFrame({"image": np.arange(len(uris)), "chunk": numbers, "uri": uris})
    read = RenderImages(asked.model.spec.preprocess).__call__
    arguments = (Shipment.send(asked.model), asked.options)
    tasks = [table[start : start + PREDICT_IMAGES] for start in range(0, len(table), PREDICT_IMAGES)]
    return stream_rows(tasks, read, Predictor, arguments, pool, PREDICT_IMAGES)
