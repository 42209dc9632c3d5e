"""Predicting among 10 000 classes of 16 memory vectors: time beside the encoder's, and peak memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.made_up import class_features
from benchmarks.result import Bar, Result
from benchmarks.timing import fresh, interleaved, peak_bytes
from lada_ray.head import Head, Prediction, make_head
from lada_ray.pack import TaskPack

MODEL, WIDTH, BATCH = "ViT-B-16", 512, 64
CLASSES, VECTORS, PACKS = 10_000, 16, 100


def measure(repeats: int, quick: bool) -> Result:
    """Time of the head as a share of ViT-B/16's on the same 64 images; memory in a process of its own."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(MODEL).eval()
    pixels = torch.randn(BATCH, 3, 224, 224)
    classes = 1000 if quick else CLASSES
    head = make(classes)
    features = class_features(BATCH, 1, WIDTH, seed=9)[:, 0]

    def encode() -> None:
        with torch.inference_mode():
            model.encode_image(pixels)

    seconds = interleaved({"head": lambda: head.predict_scored(features), "encoder": encode}, repeats)
    share = 100 * seconds["head"] / seconds["encoder"]
    found = fresh("predict_head:peak", classes=classes)
    added = (found["peak_bytes"] - found["value"]) / 1e9
    bars = (
        Bar("share of the encoder's time, %", share, "at most", 5),
        Bar("peak memory beyond interpreter and torch, GB", added, "at most", 1),
    )
    figures = {f"{name}, s per batch": value for name, value in seconds.items()}
    figures |= {
        "before, GB (interpreter, torch)": found["value"] / 1e9,
        "in all, GB": found["peak_bytes"] / 1e9,
    }
    return Result("predict_head", f"{classes} classes x {VECTORS} vectors, batch {BATCH}", bars, figures)


def make(classes: int) -> Head:
    """The head of a model of 100 packs, with so many classes in all."""
    packs = [_pack(p, classes // PACKS) for p in range(PACKS)]
    return make_head(packs, Prediction(100.0, 1.0, 1.0, "gated"), WIDTH)


def _pack(position: int, classes: int) -> TaskPack:
    memory = class_features(classes, VECTORS, WIDTH, seed=position)
    memory /= 9
    tensors: dict[str, Any] = {
        "text": memory[:, 0].copy(),
        "memory": memory,
        "mask": np.ones((classes, VECTORS), np.uint8),
    }
    return TaskPack({"labels": [(f"domain {position}", f"class {j}") for j in range(classes)]}, tensors)


def peak(classes: int) -> int:
    """Predict once, in a fresh process; returns what it held before it made the head, in bytes."""
    torch.randn(64, 64) @ torch.randn(64, 64)
    before = peak_bytes()
    make(classes).predict_scored(class_features(BATCH, 1, WIDTH, seed=9)[:, 0])
    return before
