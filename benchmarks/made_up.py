"""Made-up classes: raw features around a centre per class, and class names, the same at every call."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
SYLLABLES = ("ka", "lo", "mi", "ru", "te", "sa", "no", "vi", "pe", "du", "ga", "zo")


def class_names(number: int) -> list[str]:
    """Distinct names of one or two words."""
    rng = np.random.default_rng(0)
    names: dict[str, None] = {}
    while len(names) < number:
        words = ["".join(rng.choice(SYLLABLES, size=rng.integers(2, 4))) for _ in range(rng.integers(1, 3))]
        names[" ".join(words)] = None
    return list(names)


def class_features(classes: int, images: int, width: int = 512, seed: int = 0, kinds: int = 4) -> Floats:
    """Raw features [classes, images, width], of about CLIP's length: each class consists of a few kinds."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, np.float32) / np.float32(width**0.5)  # noqa: E731
    centres = 7 * draw(1, 1, width) + 4 * draw(classes, 1, width)
    own = 3 * draw(classes, kinds, width)
    which = rng.integers(kinds, size=(classes, images))
    return centres + np.take_along_axis(own, which[..., None], 1) + 4 * draw(classes, images, width)
