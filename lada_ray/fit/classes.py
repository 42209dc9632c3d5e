"""k-means and Gaussian mixtures of every class, over Ray CPU tasks.

They depend on the images of the class alone: not on the run's seed, nor on earlier tasks. So they are kept beside the
bank under a hash of those images, and every run, sweep and restart shares them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lada_ray.cluster import grouped, result
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

    @property
    def size(self) -> int:
        """Number of images."""
        return sum(map(len, self.classes))

    def chunks(self) -> list[tuple[int, int]]:
        """What one Ray task fits: (first class, class after the last), of at least one class."""
        return grouped([len(group) for group in self.classes], CHUNK_IMAGES)

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


@dataclass(frozen=True)
class Missing:
    """One file to make, of all classes of one domain."""

    kind: Kind
    number: int
    """Memory vectors or components per class."""
    key: str


Done = tuple[dict[Kind, float], float]
"""Busy seconds by kind, and when the worker was there."""


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
    small, large = ([i for i in missing if (len(i.chunks()) > 1) == many] for many in (False, True))
    pending: dict[Any, int] = {}
    # Half a dozen small domains are less work than the start of a second worker, which more tasks would bring.
    for start, stop in grouped([images.size for images in small], CHUNK_IMAGES):
        pending |= _start_together(bank, {images: missing[images] for images in small[start:stop]})
    for images in large:
        pending |= _start_in_chunks(bank, images, missing[images])
    seconds, began = _collect(pending, progress)
    # Clocks of other nodes may differ a little.
    return ClassFits(seconds, max(0.0, began - asked))


def fit_classes_here(
    bank: FeatureBank, domains: Sequence[ClassImages], vectors: int, components: int
) -> None:
    """The same in this process, which is one of many that do not wait for each other; arguments as of `fit_classes`."""
    for images, files in _missing(bank, domains, vectors, components).items():
        _fit_domains(bank, {images: files})


def _missing(
    bank: FeatureBank, domains: Sequence[ClassImages], vectors: int, components: int
) -> dict[ClassImages, list[Missing]]:
    """The files that are to be made, by domain."""
    numbers: dict[Kind, int] = {"memory": vectors, "mixture": components}
    wanted = {d: [Missing(kind, n, d.key(kind, n)) for kind, n in numbers.items()] for d in domains}
    absent = {d: [f for f in files if not bank.store.exists(f.key)] for d, files in wanted.items()}
    return {d: files for d, files in absent.items() if files}


def _start_together(bank: FeatureBank, missing: Mapping[ClassImages, Sequence[Missing]]) -> dict[Any, int]:
    """One task that makes all files of some domains, and the classes that it fits."""
    import ray

    classes = sum(len(images.classes) * len(files) for images, files in missing.items())
    return {ray.remote(_fit_domains).remote(bank, missing): classes}


def _start_in_chunks(bank: FeatureBank, images: ClassImages, missing: Sequence[Missing]) -> dict[Any, int]:
    """A task per file of a domain, made of what others fit of its classes, and the classes of each."""
    import ray

    load: Any = ray.remote(_features)
    fit, gather, features = ray.remote(_fit_chunk), ray.remote(_gather), load.remote(bank, images)
    pending: dict[Any, int] = {}
    for file in missing:
        chunks = [fit.remote(features, file, *chunk) for chunk in images.chunks()]
        pending[gather.remote(bank.store, file, *chunks)] = len(images.classes)
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


def _features(bank: FeatureBank, *domains: ClassImages) -> Loaded:
    """Raw deterministic features of every class of these domains, one after the other."""
    began = time.time()
    groups = [group for images in domains for group in images.classes]
    flat = bank.fetch([sha for group in groups for sha in group], [TEST_VIEW])[:, 0]
    return Loaded(np.split(flat, np.cumsum([len(group) for group in groups])[:-1]), began)


def _fit_domains(bank: FeatureBank, missing: Mapping[ClassImages, Sequence[Missing]]) -> Done:
    """Make these files in this process."""
    loaded, start = _features(bank, *missing), 0
    seconds: dict[Kind, float] = {}
    for images, files in missing.items():
        own = Loaded(loaded.features[start : start + len(images.classes)], loaded.began)
        start += len(images.classes)
        for file in files:
            busy, _ = _gather(bank.store, file, *(_fit_chunk(own, file, *chunk) for chunk in images.chunks()))
            seconds[file.kind] = seconds.get(file.kind, 0.0) + busy[file.kind]
    return seconds, loaded.began


def _fit_chunk(loaded: Loaded, file: Missing, start: int, stop: int) -> Chunk:
    """Fit the classes from `start` to before `stop`."""
    started = time.perf_counter()
    part = loaded.features[start:stop]
    if file.kind == "memory":
        unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in part]
        fits: list[Any] = init_memories(unit, file.number)
    else:
        fits = fit_mixtures(part, file.number)
    return Chunk(fits, time.perf_counter() - started, loaded.began)


def _gather(store: Store, file: Missing, *chunks: Chunk) -> Done:
    fits = [fit for chunk in chunks for fit in chunk.fits]
    _save(store, file.key, MemoryInit(*stack_memory(fits)) if file.kind == "memory" else stack_mixtures(fits))
    return {file.kind: sum(chunk.seconds for chunk in chunks)}, min(chunk.began for chunk in chunks)


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
