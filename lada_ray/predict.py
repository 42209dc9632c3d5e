"""Predictions for a folder of images: Ray Data streams them through encoder actors that hold the model's head too.

    read, decode (CPU tasks, uint8 pixels)  ->  encode, predict (actors)  ->  a class per image  ->  Parquet parts

Of an image nothing is kept but its row: the feature bank is not used, and neither pixels nor features leave the actors
for the driver. The sorted listing is cut into chunks; a chunk is one part, named by the files it covers. So what is
done can be told from names, and the folder ends as a function of files, model and options, however often it was killed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from lada_ray.cluster import cause, join_cluster, result, settle_resources, shortages
from lada_ray.config import ResourceConfig
from lada_ray.console import Console
from lada_ray.domains.folder import list_images
from lada_ray.domains.listed import check_root, some
from lada_ray.encoder import EncoderSpec
from lada_ray.errors import InputError, IntegrityError, LadaError
from lada_ray.features.extract import (
    NOT_FINITE,
    Batch,
    EncoderActor,
    Pool,
    raise_stated,
    render_image,
    stated,
    stream_rows,
)
from lada_ray.head import Floats
from lada_ray.lease import KEY as LEASE
from lada_ray.lease import Lease
from lada_ray.model import LadaModel, ModelFile
from lada_ray.serving import ranking
from lada_ray.store import Entry, Store, is_remote, open_store
from lada_ray.tracking import load
from lada_ray.tracking.uri import hide_passwords_in
from lada_ray.version import __version__
from lada_ray.views import TEST_VIEW, Preprocess

PARTS = "predictions"
META, SUMMARY, BAD = "_meta.json", "summary.json", "bad_images.csv"
FORMAT = 1
# In a part's metadata: its Outcome, so that a summary needs no rows.
OUTCOME = b"lada_ray"
# Images of a part: what a kill may cost, against the number of files. A chunk ends where a path's hash says so, so that
# new files change the chunks that they fall into and no others; but no chunk is longer than the limit.
CHUNK_IMAGES, CHUNK_LIMIT = 1024, 4096
# Images of a read task, and of an actor's call.
READ_IMAGES, PREDICT_IMAGES = 64, 256
# Parallel requests of a read task, where images lie in an object store.
REQUESTS = 8
# A row's bits must not depend on what else is predicted with it: the head gets so many rows at once, padded.
HEAD_ROWS = 64
SHOWN = 20

Name = tuple[str | None, str]
"""(domain, class); no domain: a class that was not learnt."""
Ranked = Sequence[tuple[int, float]]
"""Classes of an image, as (index, score), best first."""


@dataclass(frozen=True)
class Options:
    """What is asked of each image."""

    classes: tuple[str, ...] = ()
    """Names of classes that were not learnt, to be recognised zero-shot."""
    top_k: int = 1
    """How many classes are told, best first; fewer where the image's side of the gate has fewer."""
    unknown_below: float | None = None
    """Score under which an image is flagged `unknown`; None: no such flag."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of what is told of each image by yes or no, besides `seen`: `Predictor.flags` gives the values."""
        return ("unknown",) if self.unknown_below is not None else ()

    def schema(self) -> pa.Schema:
        """The columns of a part."""
        columns = [
            pa.field("path", pa.string(), nullable=False),
            ("domain", pa.string()),
            ("class", pa.string()),
            ("score", pa.float32()),
            ("seen", pa.bool_()),
            *((name, pa.bool_()) for name in self.flags),
        ]
        if self.top_k > 1:
            lists = {"domains": pa.string(), "classes": pa.string(), "scores": pa.float32()}
            columns += [(name, pa.list_(kind)) for name, kind in lists.items()]
        return pa.schema(columns)


@dataclass(frozen=True)
class Prediction:
    """What came of one image."""

    ranked: Ranked
    flags: tuple[bool, ...] = ()
    """In the order of `Options.flags`."""


@dataclass
class Outcome:
    """What came of a chunk's images; stands in its part."""

    classes: Counter[int] = field(default_factory=Counter)
    """Images by predicted class."""
    flags: Counter[str] = field(default_factory=Counter)
    """Images by flag."""
    bad: dict[str, str] = field(default_factory=dict)
    """Reason by path, of files that are no usable images."""
    unread: dict[str, str] = field(default_factory=dict)
    """Reason by path, of files that could not be read or rendered now: the next start tries again."""

    @classmethod
    def from_json(cls, data: bytes) -> Outcome:
        """Read a part's metadata."""
        said = json.loads(data)
        classes = Counter({int(j): n for j, n in said["classes"].items()})
        return cls(classes, Counter(said["flags"]), said["bad"], said["unread"])

    def add(self, other: Outcome) -> None:
        """Count another chunk's images too."""
        self.classes.update(other.classes)
        self.flags.update(other.flags)
        self.bad |= other.bad
        self.unread |= other.unread

    @property
    def without_prediction(self) -> dict[str, str]:
        """Reason by path, of all images that have none."""
        return {**self.bad, **self.unread}


@dataclass(frozen=True)
class Predicted:
    """What `predict_folder` returns: where everything lies, and the content of summary.json."""

    folder: str
    summary: Mapping[str, Any]
    new: int = 0
    """Images that this start has looked at."""

    @property
    def parts(self) -> str:
        """The folder of Parquet files, and of nothing else."""
        return f"{self.folder}/{PARTS}"


# ---------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Chunk:
    """Consecutive files of the listing, whose predictions are one part."""

    entries: tuple[Entry, ...]

    @cached_property
    def name(self) -> str:
        """Of the part: other files, or another version of one, are another part."""
        said = [(entry.key, entry.size, entry.version) for entry in self.entries]
        return f"{_digest(said)}.parquet"


@dataclass(frozen=True)
class Listing:
    """The images of a folder."""

    root: str
    chunks: tuple[Chunk, ...]
    bad: Mapping[str, str] = field(default_factory=dict)
    """Reason by path, of files that cannot even be named in a table."""
    others: int = 0
    """Files that are no images by their names."""

    @property
    def images(self) -> int:
        """How many there are, unusable ones included."""
        return len(self.bad) + sum(len(chunk.entries) for chunk in self.chunks)

    @cached_property
    def digest(self) -> str:
        """Names the files and their versions."""
        return _digest([self.root, [chunk.name for chunk in self.chunks], sorted(self.bad)])


def list_folder(images: str) -> Listing:
    """List the images below a folder or prefix; reads none.

    Raises:
        InputError: it is not there, or holds no image.
    """
    store = open_store(images)
    check_root("images", store, "a folder of images")
    found = list_images(store.uri)
    if not found.images:
        others = f"; it has {len(found.others)} other files ({some(found.others)})" if found.others else ""
        raise InputError([f"images: there is no image in {store.uri}{others}"])
    bad = {entry.key: "its name is no UTF-8 text: rename it" for entry in found.images if not _named(entry)}
    entries = [entry for entry in found.images if entry.key not in bad]
    return Listing(store.uri, tuple(cut(entries)), bad, len(found.others))


def _named(entry: Entry) -> bool:
    try:
        entry.key.encode()
    except UnicodeEncodeError:
        return False
    return True


def cut(entries: Sequence[Entry]) -> Iterator[Chunk]:
    """Cut a listing into chunks of about `CHUNK_IMAGES`; where, the paths alone decide."""
    start = 0
    for end, entry in enumerate(entries, 1):
        ends_here = int(hashlib.sha256(entry.key.encode()).hexdigest()[:8], 16) % CHUNK_IMAGES == 0
        if ends_here or end - start == CHUNK_LIMIT or end == len(entries):
            yield Chunk(tuple(entries[start:end]))
            start = end


def model_digest(file: ModelFile) -> str:
    """Names what a model predicts: its encoder, its packs, and the parameters that act when predicting."""
    encoder = [file.encoder["fingerprint"], file.encoder["prompt"]]
    return _digest([encoder, asdict(file.prediction), list(file.packs)])


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def load_model(uri: str) -> LadaModel:
    """Load a model from a path, a storage URI or MLflow, as `lada_ray.load` does.

    Raises:
        InputError: there is none, or MLflow does not give it.
        IntegrityError: a pack is missing, cut short or changed.
    """
    try:
        return load(uri)
    except LadaError:
        raise
    except FileNotFoundError as error:
        raise InputError([f"model: {error}"]) from error
    # MLflow and its stores raise many kinds; every one means that there is no such model to be had.
    except Exception as error:
        server = os.environ.get("MLFLOW_TRACKING_URI")
        said = hide_passwords_in(str(error), server) if server else str(error)
        raise InputError([f"model: {uri} cannot be loaded: {said}"]) from error


def _asked(model: LadaModel | str, images: str, options: Options) -> tuple[LadaModel, Listing, list[Name]]:
    """The model, the files, and all classes to choose from.

    Raises:
        InputError: with all problems.
    """
    problems = [] if all(name.strip() for name in options.classes) else ["classes: a name is empty"]
    problems += [f"top_k: must be at least 1 (got {options.top_k})"] if options.top_k < 1 else []
    loaded = listing = None
    try:
        listing = list_folder(images)
    except InputError as error:
        problems += error.problems
    try:
        loaded = load_model(model) if isinstance(model, str) else model
    except InputError as error:
        problems += error.problems
    names: list[Name] = [*(loaded.class_names if loaded else ()), *((None, name) for name in options.classes)]
    if loaded is not None and not names:
        problems.append("model: nothing is learnt yet: give --classes")
    if problems or loaded is None or listing is None:
        raise InputError(problems)
    return loaded, listing, names


# ---------------------------------------------------------------- in the actors


@dataclass(frozen=True)
class Shipment:
    """A model on its way to the actors, by the cluster's object store; `send` makes one."""

    spec: EncoderSpec
    model: Any
    """Reference to (ModelFile, packs)."""
    node: str
    """The driver's. Weights that are a file there (MLflow's download, say) other nodes may not have."""

    @classmethod
    def send(cls, model: LadaModel) -> Shipment:
        """Put a model into the object store; its encoder's weights stay where they are."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return cls(model.spec, ray.put((model.file, model.packs)), node)

    @contextmanager
    def received(self) -> Iterator[tuple[EncoderSpec, LadaModel]]:
        """What to build the encoder of on this node, and the model without it."""
        import ray

        model, weights = LadaModel(*ray.get(self.model)), Path(self.spec.pretrained)
        if not weights.is_absolute() or weights.is_file():
            yield self.spec, model
            return
        folder = tempfile.mkdtemp(prefix="lada_ray-")
        try:
            file = Path(folder) / weights.name
            file.write_bytes(read_on(self.node, weights))
            yield replace(self.spec, pretrained=str(file)), model
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def read_on(node: str, file: Path) -> bytes:
    """The content of a file on another node of the cluster.

    Raises:
        LadaError: it cannot be read there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(Path.read_bytes)
    return result(task.options(num_cpus=0, scheduling_strategy=there).remote(file))


class RenderImages:
    """Reads and decodes images; pixels are uint8."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, batch: Batch) -> Batch:
        """Map rows (image, uri) to rows with pixels, or why there are none."""
        uris = [str(uri) for uri in batch["uri"]]
        if is_remote(uris[0]):
            with ThreadPoolExecutor(REQUESTS) as pool:
                rendered = list(pool.map(self._render, uris))
        else:
            rendered = [self._render(uri) for uri in uris]
        return {
            "image": np.asarray(batch["image"]),
            "pixels": np.concatenate([one.pixels for one in rendered]),
            "reason": np.array([one.reason for one in rendered]),
            "unread": np.array([one.unread for one in rendered]),
        }

    def _render(self, uri: str) -> Any:
        return render_image(uri, (TEST_VIEW,), self.preprocess)


class Predictor(EncoderActor):
    """An actor that holds a whole model: pixels in, predictions out.

    Args:
        shipment: the model.
        options: what is asked of each image.
        threads: of torch.
        device: "cuda" if the actor was given GPUs.
    """

    def __init__(self, shipment: Shipment, options: Options, threads: int, device: str = "cpu") -> None:
        self.options = options
        try:
            with shipment.received() as (spec, model):
                super().__init__(spec, model.file.encoder["fingerprint"][:16], threads, device)
        except LadaError as error:
            self.refused = error
        if self.refused is None:
            self.head, self.unseen = model.head, self._text(model)

    def _text(self, model: LadaModel) -> Floats | None:
        whole = LadaModel(model.file, model.packs, self.encoder)
        return whole._text(self.options.classes) if self.options.classes else None

    def work(self, batch: Batch) -> dict[str, Any]:
        """Encode rows of pixels and predict; images are named by their position in the listing."""
        started = time.perf_counter()
        good, features, not_finite = self.encode(batch)
        images, predictions = batch["image"], self.predict(features)
        unread = stated(batch, "image", "unread") | {str(images[i]): NOT_FINITE for i in not_finite}
        return {
            "images": images[good].tolist(),
            "predictions": [[one.ranked, one.flags] for one in predictions],
            "bad": stated(batch, "image", "reason"),
            "unread": unread,
            "seconds": time.perf_counter() - started,
        }

    def predict(self, features: Floats) -> list[Prediction]:
        """A prediction for each row of raw features, [n, d]; its bits depend on that row alone."""
        found: list[Prediction] = []
        for start in range(0, len(features), HEAD_ROWS):
            some = features[start : start + HEAD_ROWS]
            padded = np.zeros((HEAD_ROWS, features.shape[1]), np.float32)
            padded[: len(some)] = some
            ranked = ranking(self.head, padded, self.unseen, self.options.top_k)[: len(some)]
            told = self.flags(some, ranked)
            flags = [tuple(told[name][i] for name in self.options.flags) for i in range(len(some))]
            found += map(Prediction, ranked, flags)
        return found

    def flags(self, features: Floats, ranked: Sequence[Ranked]) -> dict[str, list[bool]]:
        """What is told of each image by yes or no, under the names of `Options.flags`.

        A flag is a column of the parts, and a count and share of the summary. The place for whatever else can be told
        from features and packs, such as whether an image lies outside what the packs know.

        Args:
            features: raw, [n, d].
            ranked: classes and scores, n.
        """
        limit = self.options.unknown_below
        return {} if limit is None else {"unknown": [row[0][1] < limit for row in ranked]}


# ---------------------------------------------------------------- the folder


def _meta(model: LadaModel, listing: Listing, options: Options) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": model_digest(model.file),
        "domains": model.domains,
        "images": listing.root,
        **{name: _plain(value) for name, value in asdict(options).items()},
        "listing": listing.digest,
        "lada_ray": __version__,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_folder(store: Store, meta: Mapping[str, Any], fresh: bool = False) -> None:
    """Make sure that a folder holds predictions of this kind, or nothing.

    Args:
        store: the folder.
        meta: what is to be written to it.
        fresh: predictions of another kind may be replaced.

    Raises:
        InputError: it holds others, saying in what they differ; or something else.
        IntegrityError: its _meta.json is damaged.
    """
    found = store.read_version(META)
    if found is None:
        strangers = [entry.key for entry in store.list() if entry.key != LEASE]
        if strangers:
            advice = "give a folder of its own, such as " + f"{store.uri}/predicted"
            raise InputError([f"out: {store.uri} holds other files ({some(strangers)}); {advice}"])
        return
    try:
        problems = _differences(json.loads(found[0]), meta)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{store.uri}/{META} is damaged: {error}; remove the folder") from error
    if problems and not fresh:
        advice = "--fresh removes them and starts over; another --out keeps them"
        raise InputError([*problems, advice], f"{store.uri} holds other predictions")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if old["format"] != FORMAT:
        return [f"they have format {old['format']}; this version of lada_ray writes {FORMAT}"]
    problems = []
    if old["model"] != new["model"]:
        learnt = [", ".join(which["domains"]) or "nothing" for which in (old, new)]
        now = "other packs" if learnt[0] == learnt[1] else learnt[1]
        pin = "an alias such as models:/lada@champion moves, models:/lada/7 does not"
        problems.append(f"model: another one, which had learnt {learnt[0]}; now {now} ({pin})")
    for key in ("images", "classes", "top_k", "unknown_below"):
        if old[key] != new[key]:
            problems.append(f"{key}: was {_said(old[key])}, now {_said(new[key])}")
    return problems


def _said(value: Any) -> str:
    return (", ".join(value) if isinstance(value, list) else str(value)) if value else "none"


def begin(store: Store, meta: Mapping[str, Any], fresh: bool) -> None:
    """Note what is being written, and remove what holds no longer: a summary, or all of it with `fresh`."""
    found = store.read_version(META)
    if fresh and found is not None:
        for entry in list(store.list(PARTS)):
            store.delete(entry.key)
    data = json.dumps(meta, indent=1, ensure_ascii=False).encode()
    if fresh or found is None or found[0] != data:
        store.delete(SUMMARY)
        store.delete(BAD)
        store.write(META, data)


def look_up(store: Store, listing: Listing) -> tuple[dict[str, Outcome], list[str]]:
    """What the parts of a folder say.

    Returns:
        The outcome of each chunk that is done, by the part's name; and the names of parts that the listing has no
        chunk for.
    """
    wanted = {chunk.name for chunk in listing.chunks}
    names = [entry.key.rpartition("/")[2] for entry in store.list(PARTS)]
    with ThreadPoolExecutor(REQUESTS) as pool:
        known = [name for name in names if name in wanted]
        outcomes = dict(zip(known, pool.map(lambda name: _read_outcome(store, name), known), strict=True))
    done = {name: outcome for name, outcome in outcomes.items() if outcome and not outcome.unread}
    return done, [name for name in names if name not in wanted]


def _read_outcome(store: Store, name: str) -> Outcome | None:
    """None for a part that cannot be read, which is made again."""
    try:
        with store.open(f"{PARTS}/{name}") as file:
            return Outcome.from_json(pq.read_metadata(file).metadata[OUTCOME])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_part(
    chunk: Chunk, found: Sequence[Prediction | Outcome], names: Sequence[Name], seen: int, options: Options
) -> tuple[bytes, Outcome]:
    """The Parquet file of a chunk.

    Args:
        chunk: its files.
        found: for each of them a prediction, or an outcome that says why there is none.
        names: of all classes, seen ones first.
        seen: how many those are.
        options: what was asked.

    Returns:
        The file's bytes, and the outcome that stands in it.
    """
    total, rows = Outcome(), []
    for entry, one in zip(chunk.entries, found, strict=True):
        if isinstance(one, Outcome):
            total.add(one)
            continue
        best, score = one.ranked[0]
        total.classes[best] += 1
        flags = dict(zip(options.flags, one.flags, strict=True))
        total.flags.update(name for name, value in flags.items() if value)
        row = dict(zip(("domain", "class"), names[best], strict=True))
        rows.append(
            {"path": entry.key, **row, "score": score, "seen": best < seen, **flags, **_lists(one, names)}
        )
    schema = options.schema().with_metadata({OUTCOME: json.dumps(vars(total))})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return sink.getvalue(), total


def _lists(prediction: Prediction, names: Sequence[Name]) -> dict[str, list[Any]]:
    """The columns of the best classes, which are written where more than one is asked for."""
    labels = [names[j] for j, _ in prediction.ranked]
    return {
        "domains": [domain for domain, _ in labels],
        "classes": [name for _, name in labels],
        "scores": [score for _, score in prediction.ranked],
    }


# ---------------------------------------------------------------- the job


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
    options, console = options or Options(), console or Console()
    with console.stage("list images, load model"):
        loaded, listing, names = _asked(model, images, options)
    store, meta = open_store(out), _meta(loaded, listing, options)
    check_folder(store, meta, fresh)
    with Lease.acquire(store, console.say) as lease:
        check_folder(store, meta, fresh)
        begin(store, meta, fresh)
        outcomes, stale = look_up(store, listing)
        todo = [chunk for chunk in listing.chunks if chunk.name not in outcomes]
        _say_what_is_done(listing, todo, console)
        pace = Pace()
        for chunk, found in predict_chunks(loaded, listing.root, todo, options, resources, pace, console):
            data, outcomes[chunk.name] = make_part(chunk, found, names, len(loaded.class_names), options)
            lease.check()
            store.write(f"{PARTS}/{chunk.name}", data)
        for name in stale:
            store.delete(f"{PARTS}/{name}")
        total = Outcome(unread=dict(listing.bad))
        for outcome in outcomes.values():
            total.add(outcome)
        summary = summarise(total, listing, names, len(loaded.class_names), options)
        summary = finish(store, {**summary, **pace.numbers(), "of": meta}, total)
    if not summary["predicted"]:
        raise InputError(
            _first(total.without_prediction, store), f"None of the {listing.images} images can be used"
        )
    return Predicted(store.uri, summary, pace.images)


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
    model: LadaModel,
    root: str,
    chunks: Sequence[Chunk],
    options: Options,
    resources: ResourceConfig | None,
    pace: Pace,
    console: Console,
) -> Iterator[tuple[Chunk, list[Prediction | Outcome]]]:
    """Predict the images of these chunks on the cluster, and yield each chunk that is complete, in any order.

    Yields:
        A chunk, and for each of its files a prediction, or an outcome that says why there is none.

    Raises:
        IntegrityError: a node's encoder is not the model's.
        LadaError: the encoder cannot be loaded on a node, or the cluster lost an actor for good.
    """
    import ray

    if not chunks:
        return
    with console.stage("start Ray"):
        join_cluster()
        settled = settle_resources(resources or ResourceConfig())
    for line in shortages(replace(settled, train_workers=0)):
        console.warn(line)
    pool = Pool(settled.encoders, settled.cpus_per_encoder, settled.gpus_per_encoder)
    gathering = Gathering(chunks)
    with console.stage("predict"):
        try:
            for row in _stream(model, root, chunks, options, pool):
                raise_stated(row)
                yield from gathering.add(row)
                pace.add(gathering.came, row["seconds"])
                console.progress("predict", pace.images, gathering.total)
        except ray.exceptions.RayError as error:
            raise cause(error) from error


def _stream(
    model: LadaModel, root: str, chunks: Sequence[Chunk], options: Options, pool: Pool
) -> Iterator[dict[str, Any]]:
    # Not `join`: a key that cannot be opened costs its image, when it is read.
    uris = [f"{root.rstrip('/')}/{entry.key}" for chunk in chunks for entry in chunk.entries]
    table = pd.DataFrame({"image": np.arange(len(uris)), "uri": uris})
    read = RenderImages(model.spec.preprocess).__call__
    arguments = (Shipment.send(model), options)
    return stream_rows(table, read, Predictor, arguments, pool, READ_IMAGES, PREDICT_IMAGES)


class Gathering:
    """Puts the images of each chunk together again, as batches come in any order.

    Args:
        chunks: their files are counted through.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = chunks
        sizes = [len(chunk.entries) for chunk in chunks]
        self.starts = np.cumsum([0, *sizes])
        self.total = int(self.starts[-1])
        self.came = 0
        self.waiting: dict[int, dict[int, Prediction | Outcome]] = {}

    def add(self, row: Mapping[str, Any]) -> Iterator[tuple[Chunk, list[Prediction | Outcome]]]:
        """Take a batch, as `Predictor.work` gives it, and yield the chunks that are complete with it."""
        found: dict[int, Prediction | Outcome] = {
            i: Prediction(ranked, tuple(flags))
            for i, (ranked, flags) in zip(row["images"], row["predictions"], strict=True)
        }
        found |= {int(i): Outcome(bad={self._path(int(i)): why}) for i, why in row["bad"].items()}
        found |= {int(i): Outcome(unread={self._path(int(i)): why}) for i, why in row["unread"].items()}
        self.came = len(found)
        for i, one in found.items():
            c = self._chunk(i)
            waiting = self.waiting.setdefault(c, {})
            waiting[i] = one
            if len(waiting) == len(self.chunks[c].entries):
                yield self.chunks[c], [one for _, one in sorted(self.waiting.pop(c).items())]

    def _chunk(self, image: int) -> int:
        return int(np.searchsorted(self.starts, image, side="right")) - 1

    def _path(self, image: int) -> str:
        c = self._chunk(image)
        return self.chunks[c].entries[image - int(self.starts[c])].key


# ---------------------------------------------------------------- the end


def finish(store: Store, summary: dict[str, Any], total: Outcome) -> dict[str, Any]:
    """Write bad_images.csv, and then summary.json, which says that all is there; what is there already stays.

    Returns:
        the summary that is there then: of a start that found nothing to do, that of the one before.
    """
    found = store.read_version(SUMMARY)
    if found is not None and not summary["images_per_second"]:
        return json.loads(found[0])
    text = io.StringIO()
    csv.writer(text).writerows([("path", "reason"), *sorted(total.without_prediction.items())])
    store.write(BAD, text.getvalue().encode(errors="surrogateescape"))
    store.write(SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode())
    return summary


def _first(bad: Mapping[str, str], store: Store) -> list[str]:
    lines = [f"{path}: {why}" for path, why in sorted(bad.items())[:SHOWN]]
    return [*lines, f"all are listed in {store.uri}/{BAD}"] if len(bad) > SHOWN else lines


def summarise(
    total: Outcome, listing: Listing, names: Sequence[Name], seen: int, options: Options
) -> dict[str, Any]:
    """Counts and shares for summary.json.

    Args:
        total: what came of all images.
        listing: the files.
        names: of all classes, seen ones first.
        seen: how many those are.
        options: what was asked.

    Returns:
        images, predicted, bad, others (files that are no images); domains (images by predicted domain), seen, unseen,
        share_unseen (of the predicted ones); flags (images and share by name); classes (those that occur).
    """
    predicted = sum(total.classes.values())
    unseen = sum(n for j, n in total.classes.items() if j >= seen)
    domains = {str(domain): 0 for domain, _ in names[:seen]}
    for j, n in total.classes.items():
        if j < seen:
            domains[str(names[j][0])] += n
    return {
        "images": listing.images,
        "predicted": predicted,
        "bad": listing.images - predicted,
        "others": listing.others,
        "domains": domains,
        "seen": predicted - unseen,
        "unseen": unseen,
        "share_unseen": _share(unseen, predicted),
        "flags": {
            name: {"images": total.flags[name], "share": _share(total.flags[name], predicted)}
            for name in options.flags
        },
        "classes": [
            {"domain": names[j][0], "class": names[j][1], "images": n}
            for j, n in sorted(total.classes.items())
        ],
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def show(result: Predicted, console: Console) -> None:
    """Print a table of images by predicted domain, and where everything lies."""
    s = result.summary
    table = Table("predicted", "images", "share")
    table.columns[1].justify = table.columns[2].justify = "right"
    rows = [*s["domains"].items(), *([("unseen classes", s["unseen"])] if s["of"]["classes"] else [])]
    for name, number in rows:
        table.add_row(name, str(number), f"{100 * number / s['predicted']:.1f} %")
    console.rich.print(table)
    for name, flag in s["flags"].items():
        console.say(f"{name}: {flag['images']} images ({100 * flag['share']:.1f} %)")
    if s["bad"]:
        console.say(f"bad: {s['bad']} of {s['images']} images, listed in {result.folder}/{BAD}")
    rate = f", {s['images_per_second']:g} images/s after the start" if s["images_per_second"] else ""
    took = (
        f" in {s['seconds']:g} s ({s['start_seconds']:g} s to start){rate}" if result.new else ", nothing new"
    )
    console.say(f"{s['predicted']} images{took}")
    console.say(f"predictions:\n  {result.parts}")
