"""Real handwritten digits: the 1 797 scans (8 x 8) that scikit-learn bundles, enlarged."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from PIL import Image

from lada_ray.domains.drawing.base import Drawing
from lada_ray.domains.drawing.canvas import SIZE

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_SCANS = 80
"""Scans of each digit that are kept for testing; the others (at least 94) are for training."""


@functools.cache
def _scans() -> dict[str, tuple[np.ndarray, ...]]:
    """Return {class name: scans [8, 8] with values 0..16}, in an order of our own.

    The file goes writer by writer: taken in its order, training and testing would see different hands.
    """
    from sklearn.datasets import load_digits  # slow to import, and only this drawing needs it

    data = load_digits()
    order = sorted(range(len(data.images)), key=lambda i: hashlib.sha256(f"digits/{i}".encode()).digest())
    return {
        name: tuple(data.images[i] for i in order if data.target[i] == digit)
        for digit, name in enumerate(CLASS_NAMES)
    }


def _image(class_name: str, split: str, index: int) -> Image.Image:
    """Return a scan as a picture: the training scans are those after the first TEST_SCANS.

    Raises:
        IndexError: there are not that many scans of this digit.
        ValueError: the split is neither "train" nor "test" (nothing is pretrained on real scans).
    """
    if split not in ("train", "test"):
        raise ValueError(f"real digits have no split {split!r}, only train and test")
    scans = _scans()[class_name]
    scan = (scans[:TEST_SCANS] if split == "test" else scans[TEST_SCANS:])[index]
    small = Image.fromarray(np.rint(scan * 255 / 16).astype(np.uint8))
    picture = Image.new("RGB", (SIZE, SIZE))
    picture.paste(small.resize((SIZE - 8, SIZE - 8), Image.Resampling.BICUBIC), (4, 4))
    return picture


CLASS_NAMES = tuple(f"handwritten digit {number}" for number in NUMBERS)
DIGITS = Drawing("digits", CLASS_NAMES, _image, most={"train": 94, "test": TEST_SCANS})
