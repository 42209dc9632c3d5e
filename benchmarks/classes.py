"""k-means and mixtures of many classes: batched, against one scikit-learn fit after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import published
from benchmarks.made_up import Floats, class_features
from benchmarks.result import Bar, Result
from lada_ray.method.memory import init_memories
from lada_ray.method.mixture import fit_mixtures

VECTORS, COMPONENTS = 16, 4
HELD_OUT = 16
FLOOR = 1e-4
# Both take their turn on so many classes at a time.
CHUNK = 50
# Of 10 000 classes scikit-learn fits so many, and its time is multiplied.
MOST_SEQUENTIAL = 1000

Fit = tuple[Any, Any, Any]


def measure(repeats: int, quick: bool) -> Result:
    """Times at 100, 1 000 and 10 000 classes of 16 and 64 images each; each class is a repeat of its own."""
    sizes = (100,) if quick else (100, 1000, 10_000)
    bars: list[Bar] = []
    figures: dict[str, float] = {}
    for images in (16, 64):
        for classes in sizes:
            found = compare(classes, images)
            name = f"{classes} classes x {images} images"
            figures |= {f"{name}: {key}": value for key, value in found.items()}
            if classes == 1000:
                bars.append(Bar(f"{name}, times faster", found["ratio"], "at least", 3))
                bars.append(
                    Bar(f"{name}, held-out log-likelihood lost, %", found["loss_percent"], "at most", 0.1)
                )
    return Result("classes", "k-means and mixtures, against sequential scikit-learn", tuple(bars), figures)


def compare(classes: int, images: int, width: int = 512) -> dict[str, float]:
    """Fit the same classes both ways, in turn, some at a time.

    Returns:
        Seconds of both for all classes, ratio, and the held-out log-likelihood per image: of both, and what ours
        is worse by in %.
    """
    seconds = {"batched": 0.0, "scikit-learn": 0.0}
    sequential, likelihoods = 0, []
    for start in range(0, classes, CHUNK):
        data = class_features(CHUNK, images + HELD_OUT, width, seed=start)
        raw, held_out = data[:, :images], data[:, images:]
        unit = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
        ours, taken = timed(partial(fit_batched, raw, unit))
        seconds["batched"] += taken
        if sequential < MOST_SEQUENTIAL:
            theirs, taken = timed(partial(fit_sequential, raw, unit))
            seconds["scikit-learn"] += taken
            sequential += CHUNK
            likelihoods.append((held_out_likelihood(ours, held_out), held_out_likelihood(theirs, held_out)))
    seconds["scikit-learn"] *= classes / sequential
    counted = "" if sequential == classes else f" (of {sequential} classes, multiplied)"
    mine, other = np.mean(likelihoods, axis=0)
    return {
        "batched, s": seconds["batched"],
        f"scikit-learn, s{counted}": seconds["scikit-learn"],
        "ratio": seconds["scikit-learn"] / seconds["batched"],
        "log-likelihood, batched": float(mine),
        "log-likelihood, scikit-learn": float(other),
        "loss_percent": float(100 * (other - mine) / abs(other)),
    }


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the seconds it took."""
    started = time.perf_counter()
    value = function()
    return value, time.perf_counter() - started


def fit_batched(raw: Floats, unit: Floats) -> Sequence[Fit]:
    """As the product does it."""
    init_memories(list(unit), VECTORS)
    return fit_mixtures(list(raw), COMPONENTS)


def fit_sequential(raw: Floats, unit: Floats) -> Sequence[Fit]:
    """One scikit-learn fit after another."""
    for rows in unit:
        published.fit_memory(rows, VECTORS)
    return [published.fit_mixture(rows, COMPONENTS) for rows in raw]


def held_out_likelihood(fits: Sequence[Fit], held_out: Floats) -> float:
    """Mean log-likelihood of each class's held-out images under its mixture, variances floored at 1e-4."""
    return float(np.mean([_likelihood(fit, rows) for fit, rows in zip(fits, held_out, strict=True)]))


def _likelihood(fit: Fit, rows: Floats) -> npt.NDArray[np.float64]:
    means, variances, weights = (np.asarray(a, np.float64) for a in fit)
    variances = np.maximum(variances, FLOOR)
    squares = ((rows[:, None].astype(np.float64) - means) ** 2).sum(-1)
    joint = np.log(weights) - 0.5 * (rows.shape[1] * np.log(2 * np.pi * variances) + squares / variances)
    return np.logaddexp.reduce(joint, axis=1)
