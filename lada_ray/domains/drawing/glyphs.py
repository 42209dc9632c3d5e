"""Capital letters in the fonts that matplotlib bundles, tilted, in any colours, over clutter."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lada_ray.domains.drawing.base import drawn
from lada_ray.domains.drawing.canvas import (
    FONTS,
    HUES,
    Canvas,
    Frame,
    backdrop,
    dull_colour,
    glyph_mask,
    named_colour,
)

CLASS_NAMES = tuple(f"letter {letter}" for letter in "BEGHKMPRSTXZ")
OTHERS = (
    *(f"letter {letter}" for letter in "ACDFIJLNOQUVWY"),
    *(f"number {digit}" for digit in "0123456789"),
)


def _paint(class_name: str, rng: np.random.Generator) -> Image.Image:
    """Print the last character of `class_name`."""
    dark, light = dull_colour(rng, 0.0, 0.35), dull_colour(rng, 0.65, 1.0)
    ink, paper = (dark, light) if rng.uniform() < 0.6 else (light, dark)
    if rng.uniform() < 0.4:
        ink = named_colour(str(rng.choice(list(HUES))), rng)
    canvas = Canvas(
        backdrop(rng, paper, dull_colour(rng, 0.4, 0.6)), Frame.jittered(rng, (0.65, 1.0), 16, 0.12)
    )
    for _ in range(rng.integers(0, 3)):
        canvas.line([tuple(rng.uniform(-1.6, 1.6, 2)) for _ in range(2)], dull_colour(rng), 0.06)
    canvas.paste(glyph_mask(class_name[-1], str(rng.choice(FONTS)), canvas.frame), ink)
    return canvas.finish(rng, blur=1.0, noise=20)


GLYPHS = drawn("glyphs", CLASS_NAMES, _paint, OTHERS)
