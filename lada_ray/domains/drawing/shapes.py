"""Coloured shapes among grey distractors: the class is a colour and a shape together."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lada_ray.domains.drawing.base import drawn
from lada_ray.domains.drawing.canvas import (
    HUES,
    Canvas,
    Frame,
    Point,
    arc,
    backdrop,
    dull_colour,
    named_colour,
    regular,
)

CROSS: list[Point] = [
    *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
    *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
]
HEART: list[Point] = [
    *((0, 0.95), (-0.95, -0.05)),
    *arc((-0.47, -0.35), 0.5, 160, 340),
    *arc((0.47, -0.35), 0.5, 200, 380),
    (0.95, -0.05),
]
MOON: list[Point] = [*arc((0, 0), 1.0, 60, 300), *reversed(arc((0.45, 0), 0.87, 85, 275))]
SHAPES: dict[str, list[Point]] = {
    "triangle": regular(3),
    "square": regular(4, turn=-45),
    "circle": arc((0, 0), 0.95),
    "pentagon": regular(5),
    "hexagon": regular(6),
    "star": regular(5, inner=0.42),
    "cross": CROSS,
    "heart": HEART,
    "crescent": MOON,
    "diamond": [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)],
    "ellipse": arc((0, 0), 1.0, squash=0.55),
    "bar": [(-1, -0.25), (1, -0.25), (1, 0.25), (-1, 0.25)],
}

CLASS_NAMES = (
    *("red triangle", "green triangle", "blue square", "orange square", "yellow circle", "purple circle"),
    *("red star", "blue star", "green heart", "pink heart", "purple cross", "orange hexagon"),
)
OTHERS = tuple(
    name for shape in SHAPES for colour in HUES if (name := f"{colour} {shape}") not in CLASS_NAMES
)


def _distractors(canvas: Canvas, rng: np.random.Generator) -> None:
    """Scatter small grey shapes, so that an outline alone says little."""
    for _ in range(rng.integers(0, 5)):
        corners = np.array(SHAPES[str(rng.choice(list(SHAPES)))]) * rng.uniform(0.1, 0.35)
        canvas.polygon([(x, y) for x, y in corners + rng.uniform(-1.5, 1.5, 2)], dull_colour(rng))


def _paint(class_name: str, rng: np.random.Generator) -> Image.Image:
    colour, shape = class_name.split()
    frame = Frame.jittered(rng, (0.35, 0.85), 30, 0.2)
    canvas = Canvas(backdrop(rng, dull_colour(rng), dull_colour(rng)), frame)
    _distractors(canvas, rng)
    canvas.polygon(SHAPES[shape], named_colour(colour, rng))
    return canvas.finish(rng, blur=1.0, noise=25)


SHAPES_DRAWING = drawn("shapes", CLASS_NAMES, _paint, OTHERS)
