"""Fill the bank's gaps: Ray Data streams images through CPU tasks to a pool of encoder actors.

    read, decode, augment (CPU tasks, uint8 pixels)  ->  encode, write a part (actors)  ->  a line per part

Features never pass through the driver. An actor writes a part for every batch, so a kill costs what is in flight.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lada_ray import errors
from lada_ray.cluster import Resources, grouped
from lada_ray.encoder import EncoderSpec, device_for, load_encoder
from lada_ray.errors import LadaError
from lada_ray.features.bank import FeatureBank
from lada_ray.features.parts import Part
from lada_ray.features.reading import read_image, why_unread
from lada_ray.views import BadImage, Pixels, Preprocess, decode, render

if TYPE_CHECKING:
    import pandas as pd

# A reader waits for storage much of the time. Not what an encoder reserves, such as half a core: Ray Data would fuse
# the reader into the actor, and an actor's call would be of as many images as it is to be of views.
READ_CPUS = 0.43
# Views per encoder call at most, and so per part of the bank; merged into larger parts at the end. A read task makes as
# many: a task costs Ray as much as ten small images, and rests of several are not put together.
MOST_VIEWS = 512
# Of large images a core encodes few a second. A call is what a kill costs, and what one encoder may have left to do
# when another one is done: on a CPU it is to take a second, or a few. So many pixels, but at least this many views.
CPU_PIXELS, CPU_VIEWS = 2**21, 64
# The manifest, which grows with its parts, is rewritten at most this often.
ENTER_EVERY_S = 1.0
NOT_FINITE = "the encoder gives NaN or infinite features"

Batch = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Pool:
    """The encoder actors' resources."""

    encoders: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, resources: Resources) -> Pool:
        """The encoders' part of settled resources."""
        return cls(resources.encoders, resources.cpus_per_encoder, resources.gpus_per_encoder)


@dataclass
class Extraction:
    """What a pass over the gaps did."""

    added: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    """Reason by SHA-256 of images that could not be decoded: these bytes never can be."""
    unread: dict[str, str] = field(default_factory=dict)
    """Reason by URI of files that could not be read (any more), or that this encoder makes nothing of: it says
    nothing about equal bytes elsewhere, nor about other encoders."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Busy seconds per stage, over all workers: read, decode (of a core), encode."""
    start_s: float = 0.0
    """Wall seconds until the first encoder had its first images: workers and actors start, and load the encoder.
    Without those that all cores would have taken for what was read and decoded by then."""


@dataclass(frozen=True)
class Gap:
    """One image with the views of it that are missing."""

    uri: str
    sha256: str
    views: tuple[str, ...]


class RenderViews:
    """Reads and decodes images, and renders the missing views of each as uint8 pixels."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, batch: Batch) -> Batch:
        """Map rows (uri, sha256, views) to a row per view, with pixels or why there are none."""
        images = zip(batch["uri"], batch["sha256"], batch["views"], strict=True)
        rows = [self._rows(str(uri), str(sha), str(views).split()) for uri, sha, views in images]
        whole = {name: np.concatenate([some[name] for some in rows]) for name in rows[0]}
        return {**whole, "rendered": np.full(len(whole["view"]), time.time())}

    def _rows(self, uri: str, sha: str, views: list[str]) -> Batch:
        image = render_image(uri, views, self.preprocess, sha)
        views = views[: len(image.pixels)]
        n = len(views)
        return {
            "uri": np.array([uri] * n),
            "sha256": np.array([sha] * n),
            "view": np.array(views),
            "pixels": image.pixels,
            "reason": np.array([image.reason] * n),
            "unread": np.array([image.unread] * n),
            "read_s": np.full(n, image.read_s / n),
            "decode_s": np.full(n, image.decode_s / n),
        }


@dataclass(frozen=True)
class Rendered:
    """The views of one image."""

    pixels: Pixels
    """[views, size, size, 3]; of an image that cannot be used, one view, black."""
    reason: str = ""
    """Why these bytes can never be used; "" if they can."""
    unread: str = ""
    """Why there are no pixels now, which says nothing about the bytes; "" if there are."""
    read_s: float = 0.0
    decode_s: float = 0.0
    """Of a core: beside other work it takes longer."""


def render_image(uri: str, views: Sequence[str], preprocess: Preprocess, sha: str = "") -> Rendered:
    """Read and decode one image, and render views of it as uint8 pixels.

    Args:
        uri: where its bytes are.
        views: names.
        preprocess: of the encoder.
        sha: SHA-256 that the bytes must have, and the source of a view's randomness; "" for the deterministic view of
            whatever they are.

    Returns:
        Pixels, or why there are none: nothing about an image raises.
    """
    reason = unread = ""
    pixels = np.zeros((1, preprocess.size, preprocess.size, 3), np.uint8)
    started = time.perf_counter()
    try:
        try:
            data = read_image(uri)
            if sha:
                _check_unchanged(data, sha)
        finally:
            read_s, began = time.perf_counter() - started, time.thread_time()
        pixels = _render(data, sha, views, preprocess)
    except BadImage as error:
        reason = str(error)
    except _NotRendered as error:
        unread = str(error)
    except (OSError, ValueError, LadaError) as error:
        unread = why_unread(error)
    return Rendered(pixels, reason, unread, read_s, time.thread_time() - began)


def _render(data: bytes, sha: str, views: Sequence[str], preprocess: Preprocess) -> Pixels:
    try:
        image = decode(data)
        return np.stack([render(image, sha, view, preprocess) for view in views])
    except BadImage:
        raise
    # Pillow and NumPy raise whatever an odd image makes them stumble over, or the lack of memory: it costs the
    # image in this run, and says nothing about its bytes for other encoders and machines.
    except Exception as error:
        raise _NotRendered(f"cannot be rendered: {type(error).__name__}: {error}") from error


class _NotRendered(Exception):
    """An image that could be decoded, and yet there are no pixels of it."""


def _check_unchanged(data: bytes, sha: str) -> None:
    if hashlib.sha256(data).hexdigest() != sha:
        # Its features would be kept, for all runs, under the hash of what the file held before.
        raise OSError("the file changed while the run was reading it; start again")


class EncoderActor:
    """An actor that holds the encoder; what it does with a batch of pixels is a subclass's `work`.

    Args:
        spec: the encoder.
        feature_key: what this node makes of it has to be the encoder of this key.
        threads: of torch.
        device: "cuda" if the actor was given GPUs.
    """

    def __init__(self, spec: EncoderSpec, feature_key: str, threads: int, device: str = "cpu") -> None:
        import torch

        # Ray sets OMP_NUM_THREADS, torch would take all cores: neither is what was asked for.
        torch.set_num_threads(max(1, min(threads, os.cpu_count() or threads)))
        self.refused: LadaError | None = None
        try:
            self.encoder = load_encoder(spec, device)
            self.encoder.check(feature_key)
        except LadaError as error:
            # Of an error in an actor's constructor Ray keeps the traceback's text alone: it is told with a batch.
            self.refused = error

    def __call__(self, batch: Batch) -> Batch:
        """Work on rows of pixels, and return one row that says what came of it, or what is wrong."""
        try:
            if self.refused is not None:
                raise self.refused
            row = self.work(batch)
        except LadaError as error:
            row = {"error": _stated_error(error)}
        return {"row": np.array([json.dumps(row)])}

    def work(self, batch: Batch) -> dict[str, Any]:
        """What comes of a batch, as plain values."""
        raise NotImplementedError

    def encode(self, batch: Batch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], list[int]]:
        """Encode the rows that have pixels.

        Args:
            batch: columns pixels, reason and unread, as `render_image` gives them.

        Returns:
            Which rows have features, [n]; their raw features, [n, d]; and rows whose features are not finite.
        """
        good = np.flatnonzero((batch["reason"] == "") & (batch["unread"] == ""))
        pixels = batch["pixels"]
        features = self.encoder.encode_pixels(pixels if len(good) == len(pixels) else pixels[good])
        finite = np.isfinite(features).all(axis=1)
        return good[finite], features[finite], good[~finite].tolist()


class EncodeViews(EncoderActor):
    """An actor that holds the encoder and writes what it encodes to the bank.

    Args:
        spec: the encoder; what this node makes of it has to be the one whose features the bank holds.
        bank: where features go.
        run: id of the run that adds.
        threads: of torch.
        device: "cuda" if the actor was given GPUs.
    """

    def __init__(
        self, spec: EncoderSpec, bank: FeatureBank, run: str, threads: int, device: str = "cpu"
    ) -> None:
        super().__init__(spec, bank.feature_key, threads, device)
        self.bank, self.run = bank, run

    def work(self, batch: Batch) -> dict[str, Any]:
        """Encode rows of pixels, write them as one part, and say so."""
        began, started = time.time(), time.perf_counter()
        bad, unread = stated(batch, "sha256", "reason"), stated(batch, "uri", "unread")
        good, features, not_finite = self.encode(batch)
        unread |= {str(batch["uri"][i]): NOT_FINITE for i in not_finite}
        part = None
        if len(good):
            shas, views = (batch[name][good].tolist() for name in ("sha256", "view"))
            part = asdict(self.bank.write(shas, views, features, self.run))
        seconds = {
            "read": float(batch["read_s"].sum()),
            "decode": float(batch["decode_s"].sum()),
            "encode": time.perf_counter() - started,
        }
        images = len(batch["view"])
        return {
            "part": part,
            "bad": bad,
            "unread": unread,
            "seconds": seconds,
            "images": images,
            "began": began,
            "rendered": float(batch["rendered"].max()),
        }


def _stated_error(error: LadaError) -> dict[str, Any]:
    reduced: Any = error.__reduce__()
    return {"kind": type(error).__name__, "arguments": reduced[1]}


def raise_stated(row: dict[str, Any]) -> None:
    """Raise the error of ours that a row from an actor states, as itself."""
    if "error" in row:
        kind: type[LadaError] = getattr(errors, row["error"]["kind"], LadaError)
        raise kind(*row["error"]["arguments"])


def stated(batch: Batch, key: str, reason: str) -> dict[str, str]:
    """The reasons that a batch states, by another of its columns."""
    return {str(batch[key][i]): str(batch[reason][i]) for i in np.flatnonzero(batch[reason] != "")}


def extract(
    gaps: Sequence[Gap],
    spec: EncoderSpec,
    bank: FeatureBank,
    pool: Pool,
    run: str,
    progress: Callable[[int, int], None],
) -> Extraction:
    """Encode what is missing, in one pipeline with one pool of encoders.

    Args:
        gaps: images with their missing views.
        spec: the encoder.
        bank: where features go.
        pool: number and resources of the encoder actors.
        run: id of the run that adds.
        progress: called with (views done, views to do).

    Returns:
        What was added, what could not be decoded, and how long each stage was busy.

    Raises:
        IntegrityError: a node's encoder is not the one whose features the bank holds.
        LadaError: the encoder cannot be loaded on a node, or the bank cannot be written.
    """
    import ray

    total = sum(len(gap.views) for gap in gaps)
    result = Extraction()
    if not gaps:
        return result
    done, started, first = 0, time.time(), math.inf
    rendered: list[tuple[float, float]] = []
    with _Entering(bank) as entering:
        for row in _pipeline(gaps, spec, bank, pool, run):
            raise_stated(row)
            if row["part"]:
                part = Part(**row["part"])
                entering.add(part)
                result.added += part.rows
            result.bad |= row["bad"]
            result.unread |= row["unread"]
            for stage, seconds in row["seconds"].items():
                result.seconds[stage] = result.seconds.get(stage, 0.0) + seconds
            done, first = done + row["images"], min(first, row["began"])
            rendered.append((row["rendered"], row["seconds"]["read"] + row["seconds"]["decode"]))
            progress(done, total)
    if done:
        # What was being decoded then counts whole.
        ahead = sum(seconds for when, seconds in rendered if when - seconds <= first)
        cores = ray.cluster_resources().get("CPU", 1.0)
        # Clocks of other nodes may differ a little.
        result.start_s = max(0.0, first - started - ahead / cores)
    bank.table.merge()
    return result


class _Entering:
    """Enters parts in the bank's manifest as they come: now and then, and at the end whatever ends it."""

    def __init__(self, bank: FeatureBank) -> None:
        self.bank = bank
        self.waiting: list[Part] = []
        self.entered = -math.inf

    def add(self, part: Part) -> None:
        """Enter the part, soon."""
        self.waiting.append(part)
        if time.monotonic() - self.entered >= ENTER_EVERY_S:
            self._enter()

    def _enter(self) -> None:
        self.bank.table.enter(self.waiting)
        self.waiting = []
        self.entered = time.monotonic()

    def __enter__(self) -> _Entering:
        return self

    def __exit__(self, *_: object) -> None:
        self._enter()


def _pipeline(
    gaps: Sequence[Gap], spec: EncoderSpec, bank: FeatureBank, pool: Pool, run: str
) -> Iterator[dict[str, Any]]:
    read = RenderViews(spec.preprocess).__call__
    views = encode_views(device_for(pool.gpus), spec.preprocess.size)
    return stream_rows(_read_tasks(gaps, views), read, EncodeViews, (spec, bank, run), pool, views)


def encode_views(device: str, size: int) -> int:
    """Views per encoder call, of images of size x size pixels; a multiple of the encoder's batch."""
    if device != "cpu":
        return MOST_VIEWS
    return min(MOST_VIEWS, max(1, CPU_PIXELS // size**2 // CPU_VIEWS) * CPU_VIEWS)


def _read_tasks(gaps: Sequence[Gap], views: int) -> list[pd.DataFrame]:
    """What each read task reads: images with so many views at most, or a single image with more."""
    import pandas as pd

    # By URI, so that parts of one file are read together.
    ordered = sorted(gaps, key=lambda gap: gap.uri)
    table = pd.DataFrame(
        [(g.uri, g.sha256, " ".join(g.views)) for g in ordered], columns=["uri", "sha256", "views"]
    )
    return [table[start:stop] for start, stop in grouped([len(g.views) for g in ordered], views)]


def stream_rows(
    tasks: Sequence[pd.DataFrame],
    read: Any,
    actor: type[EncoderActor],
    arguments: Sequence[Any],
    pool: Pool,
    encode_rows: int,
) -> Iterator[dict[str, Any]]:
    """Stream images through CPU tasks to a pool of encoder actors.

    Args:
        tasks: a table for each call of `read`, an image a row, in order of reading.
        read: function that makes rows of pixels of the rows of a table.
        actor: what the pool consists of.
        arguments: of its constructor; threads and device follow.
        pool: resources of the actors, and their number; no more are started than there are read tasks.
        encode_rows: rows of pixels that an actor gets at once.

    Yields:
        What the actors make of each batch, in the order in which they are done; `raise_stated` tells errors.
    """
    import ray

    quiet_ray_data()
    # Half of the cores are reserved for reading, which seldom needs them all: an encoder takes what is left of them.
    threads = max(1, int(2 * pool.cpus) if pool.gpus == 0 else (os.cpu_count() or 2) // 2)
    rows = (
        ray.data.from_pandas(list(tasks))
        .map_batches(read, batch_size=None, num_cpus=READ_CPUS)
        .map_batches(
            actor,
            fn_constructor_args=(*arguments, threads, device_for(pool.gpus)),
            batch_size=encode_rows,
            compute=ray.data.ActorPoolStrategy(size=min(pool.encoders, len(tasks))),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
    )
    for done in rows.iter_batches(batch_size=None, prefetch_batches=0):
        yield from map(json.loads, done["row"])


def quiet_ray_data() -> None:
    """Ray Data's progress bars and statistics off: the job shows its own progress."""
    import logging

    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
