"""A training step with ViT-B/16's text tower, after 100, 1 000 and 10 000 seen classes."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.made_up import class_features, class_names
from benchmarks.result import Bar, Result
from benchmarks.timing import fresh, interleaved
from lada_ray.method.learner import Seen, TaskData, TaskLearner
from lada_ray.method.settings import LadaSettings
from lada_ray.method.tuner import CausalTextTower

MODEL, WIDTH, TAU = "ViT-B-16", 512, 100.0
CURRENT = 100
SIZES = (100, 1000, 10_000)


def measure(repeats: int, quick: bool) -> Result:
    """Time of a step by number of seen classes, in turn; peak memory of each in a process of its own."""
    sizes = SIZES[:2] if quick else SIZES
    tower, tokens = text_tower(CURRENT)
    learners = {size: make_learner(size, tower, tokens) for size in sizes}
    first = {size: _seconds(learner.step) for size, learner in learners.items()}
    seconds = interleaved({str(size): learner.step for size, learner in learners.items()}, repeats)
    del learners
    figures = {f"step at {size} seen classes, s": value for size, value in seconds.items()}
    # Once per task: which rows are replayed is decided by what all components would change.
    figures |= {f"first step at {size} seen classes, s": value for size, value in first.items()}
    bars = []
    for size in sizes[1:]:
        ratio = seconds[str(size)] / seconds[str(sizes[0])]
        figures[f"step at {size} seen classes over 100"] = ratio
        if size == 10_000:
            bars.append(Bar("10 000 seen classes, times the step of 100", ratio, "at most", 3))
    for size in sizes:
        peak = fresh("step:steps", seen=size)["peak_bytes"] / 1e9
        figures[f"peak memory at {size} seen classes, GB"] = peak
        if size == 10_000:
            bars.append(Bar("peak memory, GB", peak, "at most", 4))
    return Result("step", f"a step on {CURRENT} current classes", tuple(bars), figures)


def text_tower(classes: int) -> tuple[CausalTextTower, np.ndarray]:
    """ViT-B/16's text tower with random weights, and the tokens of prompts [classes, 77]."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(MODEL)
    del model.visual
    prompts = [f"a photo of a {name}." for name in class_names(classes)]
    return CausalTextTower(model), open_clip.get_tokenizer(MODEL)(prompts).numpy()


def make_learner(seen: int, tower: CausalTextTower, tokens: np.ndarray) -> TaskLearner:
    """A learner of 100 classes after `seen` others, with the default settings."""
    views = class_features(CURRENT, 16, WIDTH).reshape(-1, 1, WIDTH)
    memory = class_features(CURRENT, 16, WIDTH, seed=1)
    memory /= 9
    text = class_features(CURRENT, 1, WIDTH, seed=2)[:, 0]
    labels = np.repeat(np.arange(CURRENT), 16)
    task = TaskData(1, views, labels, memory, np.ones(memory.shape[:2], np.bool_), text, tokens)
    return TaskLearner(task, made_up_seen(seen), tower, TAU, LadaSettings(), 0)


def made_up_seen(classes: int) -> Seen:
    """A state of so many classes, with 16 memory vectors and 4 components each."""
    memory = class_features(classes, 16, WIDTH, seed=3)
    memory /= 9
    means = class_features(classes, 4, WIDTH, seed=4).reshape(-1, WIDTH)
    return Seen(
        text=memory[:, 0].copy(),
        memory=memory,
        mask=np.ones(memory.shape[:2], np.bool_),
        means=means,
        variances=np.full(len(means), 0.05, np.float32),
        weights=np.full(len(means), 0.25, np.float32),
        labels=np.repeat(np.arange(classes), 4),
    )


def steps(seen: int) -> None:
    """Make two steps in a fresh process."""
    tower, tokens = text_tower(CURRENT)
    learner = make_learner(seen, tower, tokens)
    learner.step()
    learner.step()


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
