"""k-means and Gaussian mixtures of every class, over Ray CPU tasks.

They depend on the images of the class alone: not on the run's seed, nor on earlier tasks. So they are kept beside the
bank under a hash of those images, and every run, sweep and restart shares them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from itertools import groupby
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lada_ray.cluster import result
from lada_ray.features.bank import FeatureBank
from lada_ray.method.memory import init_memories, stack_memory
from lada_ray.method.mixture import Mixture, fit_mixtures
from lada_ray.store import Store
from lada_ray.views import TEST_VIEW

# Images fitted by one Ray task, in whole classes: a fraction of a second of work where the classes are small.
CHUNK_IMAGES = 4096
# Raised when a fit changes by more than rounding: what was kept before is then made anew.
ALGORITHM = 2
Kind = Literal["memory", "mixture"]
STAGES: dict[Kind, str] = {"memory": "k-means", "mixture": "mixtures"}


@dataclass(frozen=True)
class ClassImages:
    """The training images of a domain by content: one sorted tuple of SHA-256 per class."""

    classes: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, shas: Sequence[str], labels: npt.NDArray[np.int64]) -> ClassImages:
        """Group n content hashes by their label, [n]."""
        groups: list[list[str]] = [[] for _ in range(int(labels.max()) + 1)]
        for sha, label in zip(shas, labels, strict=True):
            groups[label].append(sha)
        return cls(tuple(tuple(sorted(group)) for group in groups))

    def chunks(self) -> list[tuple[int, int]]:
        """What one Ray task fits: (first class, class after the last), of at least one class."""
        chunks, start, images = [], 0, 0
        for j, group in enumerate(self.classes):
            if images and images + len(group) > CHUNK_IMAGES:
                chunks.append((start, j))
                start, images = j, 0
            images += len(group)
        return [*chunks, (start, len(self.classes))]

    def key(self, kind: Kind, number: int) -> str:
        """Names the result of fitting `number` memory vectors or components to each of these classes."""
        said = json.dumps([kind, number, ALGORITHM, version("scikit-learn"), self.classes])
        return f"classes/{kind}-{number}-{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors"


@dataclass(frozen=True)
class MemoryInit:
    """Initial memory vectors [c, L, d] and the mask [c, L] of those that exist."""

    memory: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Mixtures:
    """All components of c classes: means [M, d], variances [M], weights [M], and the class of each [M]."""

    means: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassFits:
    """What `fit_classes` took."""

    seconds: dict[str, float]
    """Busy seconds of "k-means" and "mixtures", over all tasks."""
    start_s: float
    """Wall seconds until the first worker was there."""


@dataclass(frozen=True)
class Loaded:
    """Raw features of every class, each [n_j, d], and when their worker was there and began to read them."""

    features: list[npt.NDArray[np.float32]]
    began: float


@dataclass(frozen=True)
class Chunk:
    """What a Ray task fitted, in how many seconds, and when its features began to be read."""

    fits: list[Any]
    seconds: float
    began: float


@dataclass
class Missing:
    """One file to make: all classes of one domain, one kind."""

    images: ClassImages
    kind: Kind
    number: int


def read_memory(bank: FeatureBank, images: ClassImages, vectors: int) -> MemoryInit:
    """The memory initialisation that `fit_classes` left."""
    return MemoryInit(**_load(bank.store, images.key("memory", vectors)))


def read_mixtures(bank: FeatureBank, images: ClassImages, components: int) -> Mixtures:
    """The mixtures that `fit_classes` left."""
    return Mixtures(**_load(bank.store, images.key("mixture", components)))


def fit_classes(
    bank: FeatureBank,
    domains: Sequence[ClassImages],
    vectors: int,
    components: int,
    progress: Callable[[int, int], None],
) -> ClassFits:
    """Fit what is not there yet, for all classes of these domains.

    Args:
        bank: holds the deterministic features; the results go beside them.
        domains: training images by class.
        vectors: λ1.
        components: λ2.
        progress: called with (classes done, classes to do).

    Returns:
        What it took.
    """
    asked = time.time()
    missing = _missing(bank, domains, vectors, components)
    if not missing:
        return ClassFits({}, 0.0)
    large = [m for m in missing if len(m.images.chunks()) > 1]
    small = [m for m in missing if len(m.images.chunks()) == 1]
    seconds, began = _collect(_start_small(bank, small) | _start_large(bank, large), progress)
    # Clocks of other nodes may differ a little.
    return ClassFits(seconds, max(0.0, began - asked))


def fit_classes_here(
    bank: FeatureBank, domains: Sequence[ClassImages], vectors: int, components: int
) -> None:
    """The same in this process, which is one of many that do not wait for each other; arguments as of `fit_classes`."""
    _fit_files(bank, _missing(bank, domains, vectors, components))


def _missing(
    bank: FeatureBank, domains: Sequence[ClassImages], vectors: int, components: int
) -> list[Missing]:
    numbers: dict[Kind, int] = {"memory": vectors, "mixture": components}
    wanted = [Missing(d, kind, number) for d in domains for kind, number in numbers.items()]
    return [m for m in wanted if not bank.store.exists(m.images.key(m.kind, m.number))]


def _start_small(bank: FeatureBank, missing: Sequence[Missing]) -> dict[Any, int]:
    """Tasks that make several files each, of `CHUNK_IMAGES` images in all, and the classes of each task.

    Half a dozen small domains are less work than a second worker's start.
    """
    import ray

    fit, groups, images = ray.remote(_fit_files), list[list[Missing]](), CHUNK_IMAGES
    for m in missing:
        size = sum(map(len, m.images.classes))
        if images + size > CHUNK_IMAGES:
            groups.append([])
            images = 0
        groups[-1].append(m)
        images += size
    return {fit.remote(bank, group): sum(len(m.images.classes) for m in group) for group in groups}


def _start_large(bank: FeatureBank, missing: Sequence[Missing]) -> dict[Any, int]:
    """Tasks that make a file each, out of what others make of its chunks, and the classes of each file."""
    import ray

    load, fit, gather = ray.remote(_features), ray.remote(_fit_chunk), ray.remote(_gather)
    features = {images: load.remote(bank, images) for images in dict.fromkeys(m.images for m in missing)}
    pending: dict[Any, int] = {}
    for m in missing:
        chunks = [fit.remote(features[m.images], m.kind, m.number, *chunk) for chunk in m.images.chunks()]
        pending[gather.remote(bank.store, m, *chunks)] = len(m.images.classes)
    return pending


def _collect(pending: dict[Any, int], progress: Callable[[int, int], None]) -> tuple[dict[str, float], float]:
    """Busy seconds by stage, and when the first worker was there."""
    import ray

    seconds: dict[str, float] = {}
    first = math.inf
    done, total = 0, sum(pending.values())
    while pending:
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        done += pending.pop(ready)
        busy, began = result(ready)
        for kind, more in busy.items():
            seconds[STAGES[kind]] = seconds.get(STAGES[kind], 0.0) + more
        first = min(first, began)
        progress(done, total)
    return seconds, first


def _fit_files(bank: FeatureBank, missing: Sequence[Missing]) -> tuple[dict[Kind, float], float]:
    """Make these files in this process: busy seconds by kind, and when it began."""
    began, seconds = time.time(), dict[Kind, float]()
    for images, files in groupby(missing, lambda m: m.images):
        loaded = _features(bank, images)
        for m in files:
            busy, _ = _gather(bank.store, m, _fit_chunk(loaded, m.kind, m.number, 0, len(images.classes)))
            seconds[m.kind] = seconds.get(m.kind, 0.0) + busy[m.kind]
    return seconds, began


def _features(bank: FeatureBank, images: ClassImages) -> Loaded:
    """Raw deterministic features of every class."""
    began = time.time()
    flat = bank.fetch([sha for group in images.classes for sha in group], [TEST_VIEW])[:, 0]
    return Loaded(np.split(flat, np.cumsum([len(group) for group in images.classes])[:-1]), began)


def _fit_chunk(loaded: Loaded, kind: Kind, number: int, start: int, stop: int) -> Chunk:
    """Fit the classes from `start` to before `stop`."""
    started = time.perf_counter()
    part = loaded.features[start:stop]
    if kind == "memory":
        unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in part]
        fits: list[Any] = init_memories(unit, number)
    else:
        fits = fit_mixtures(part, number)
    return Chunk(fits, time.perf_counter() - started, loaded.began)


def _gather(store: Store, missing: Missing, *chunks: Chunk) -> tuple[dict[Kind, float], float]:
    fits = [fit for chunk in chunks for fit in chunk.fits]
    arrays = MemoryInit(*stack_memory(fits)) if missing.kind == "memory" else stack_mixtures(fits)
    _save(store, missing.images.key(missing.kind, missing.number), arrays)
    return {missing.kind: sum(chunk.seconds for chunk in chunks)}, min(chunk.began for chunk in chunks)


def remove_fits(bank: FeatureBank, kept: Sequence[ClassImages]) -> int:
    """Remove every k-means and mixture that is not known to come from these images alone; they can be made again.

    A file does not tell its images; other runs, and folds of a sweep, may have fitted the same ones.

    Returns:
        How many files.
    """
    removed = 0
    for entry in list(bank.store.list("classes")):
        kind, _, rest = entry.key.removeprefix("classes/").partition("-")
        number = rest.partition("-")[0]
        known = (
            {images.key(kind, int(number)) for images in kept} if kind in STAGES and number.isdigit() else ()
        )
        if entry.key not in known:
            bank.store.delete(entry.key)
            removed += 1
    return removed


def stack_mixtures(mixtures: Sequence[Mixture]) -> Mixtures:
    """Concatenate the mixtures of classes 0, 1, ..."""
    labels = np.concatenate([np.full(len(m.weights), j, np.int64) for j, m in enumerate(mixtures)])
    means, variances, weights = (np.concatenate(arrays) for arrays in zip(*mixtures, strict=True))
    return Mixtures(means, variances, weights, labels)


def _save(store: Store, key: str, arrays: MemoryInit | Mixtures) -> None:
    from safetensors.numpy import save

    store.create(key, save({f.name: getattr(arrays, f.name) for f in fields(arrays)}))


def _load(store: Store, key: str) -> dict[str, Any]:
    from safetensors.numpy import load

    return dict(load(store.read(key)))
