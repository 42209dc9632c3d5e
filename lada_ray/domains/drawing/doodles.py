"""Shaky pencil sketches: a few strokes per thing, drawn twice by an unsteady hand on used paper."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lada_ray.domains.drawing.base import drawn
from lada_ray.domains.drawing.canvas import Canvas, Frame, Point, arc, backdrop, hsv, regular

Stroke = list[Point]


def _closed(*points: Point) -> Stroke:
    return [*points, points[0]]


def _box(left: float, top: float, right: float, bottom: float) -> Stroke:
    return _closed((left, top), (right, top), (right, bottom), (left, bottom))


THINGS: dict[str, list[Stroke]] = {
    "house": [
        _box(-0.7, -0.1, 0.7, 0.9),
        [(-0.9, -0.1), (0, -0.9), (0.9, -0.1)],
        _box(-0.15, 0.35, 0.2, 0.9),
    ],
    "fish": [
        arc((-0.15, 0), 0.7, squash=0.6),
        _closed((0.5, 0), (0.95, -0.4), (0.95, 0.4)),
        arc((-0.5, -0.1), 0.07),
    ],
    "flower": [
        *(arc((0.38 * np.cos(a), -0.4 + 0.38 * np.sin(a)), 0.22) for a in np.linspace(0, 5, 5)),
        arc((0, -0.4), 0.17),
        [(0, 0), (0.05, 0.95)],
        [(0.03, 0.6), (0.4, 0.35), (0.03, 0.75)],
    ],
    "sailing boat": [
        _closed((-0.9, 0.4), (0.9, 0.4), (0.55, 0.85), (-0.55, 0.85)),
        [(0, 0.4), (0, -0.95)],
        _closed((0.08, -0.85), (0.75, 0.25), (0.08, 0.25)),
    ],
    "cat": [
        arc((0, 0.1), 0.7),
        [(-0.6, -0.25), (-0.6, -0.9), (-0.15, -0.58)],
        [(0.6, -0.25), (0.6, -0.9), (0.15, -0.58)],
        arc((-0.25, 0), 0.08),
        arc((0.25, 0), 0.08),
        [(-0.9, 0.15), (-0.2, 0.3)],
        [(0.9, 0.15), (0.2, 0.3)],
    ],
    "umbrella": [
        arc((0, 0), 0.9, 180, 360),
        [*arc((-0.6, 0), 0.3, 180, 360), *arc((0, 0), 0.3, 180, 360), *arc((0.6, 0), 0.3, 180, 360)],
        [(0, -0.9), (0, 0.75), *arc((0.15, 0.75), 0.15, 180, 0)],
    ],
    "cup": [
        [(-0.6, -0.6), (-0.5, 0.7), (0.35, 0.7), (0.45, -0.6)],
        arc((-0.08, -0.6), 0.53, squash=0.25),
        arc((0.5, 0), 0.35, -80, 80),
    ],
    "ladder": [
        [(-0.35, -0.95), (-0.45, 0.95)],
        [(0.35, -0.95), (0.45, 0.95)],
        *([(-0.4, y), (0.4, y)] for y in (-0.7, -0.35, 0.0, 0.35, 0.7)),
    ],
    "snowman": [
        arc((0, 0.5), 0.45),
        arc((0, -0.15), 0.33),
        arc((0, -0.65), 0.24),
        [(-0.3, -0.15), (-0.8, -0.4)],
    ],
    "clock": [
        arc((0, 0), 0.9),
        [(0, 0), (0, -0.65)],
        [(0, 0), (0.4, 0.2)],
        *([(0.8 * x, 0.8 * y), (0.9 * x, 0.9 * y)] for x, y in regular(12)),
    ],
    "envelope": [_box(-0.95, -0.6, 0.95, 0.6), [(-0.95, -0.6), (0, 0.15), (0.95, -0.6)]],
    "key": [arc((-0.55, 0), 0.35), [(-0.2, 0), (0.95, 0)], [(0.7, 0), (0.7, 0.3)], [(0.92, 0), (0.92, 0.35)]],
    "tree": [[(-0.15, 0.95), (-0.12, 0.2)], [(0.15, 0.95), (0.12, 0.2)], arc((0, -0.3), 0.6)],
    "sun": [arc((0, 0), 0.45), *([(0.6 * x, 0.6 * y), (0.95 * x, 0.95 * y)] for x, y in regular(9))],
    "car": [
        _closed(
            (-0.95, 0.4),
            (-0.95, 0),
            (-0.5, -0.05),
            (-0.3, -0.5),
            (0.4, -0.5),
            (0.6, 0),
            (0.95, 0.05),
            (0.95, 0.4),
        ),
        arc((-0.5, 0.45), 0.22),
        arc((0.5, 0.45), 0.22),
    ],
    "face": [arc((0, 0), 0.9), arc((-0.3, -0.25), 0.1), arc((0.3, -0.25), 0.1), arc((0, 0.1), 0.5, 20, 160)],
    "mushroom": [
        arc((0, -0.1), 0.85, 180, 360),
        [(-0.85, -0.1), (0.85, -0.1)],
        [(-0.25, -0.1), (-0.3, 0.8), (0.3, 0.8), (0.25, -0.1)],
    ],
    "balloon": [arc((0, -0.35), 0.55, squash=1.1), [(0, 0.25), (0.15, 0.5), (-0.1, 0.7), (0.05, 0.95)]],
    "kite": [
        _closed((0, -0.9), (0.55, -0.2), (0, 0.5), (-0.55, -0.2)),
        [(0, -0.9), (0, 0.5), (0.3, 0.95)],
        [(-0.55, -0.2), (0.55, -0.2)],
    ],
    "flag": [[(-0.6, 0.95), (-0.6, -0.9)], _closed((-0.6, -0.9), (0.75, -0.7), (0.65, 0), (-0.6, -0.1))],
    "lamp": [
        _closed((-0.3, -0.8), (0.3, -0.8), (0.65, 0), (-0.65, 0)),
        [(0, 0), (0, 0.8)],
        [(-0.4, 0.85), (0.4, 0.85)],
    ],
    "glasses": [
        arc((-0.5, 0), 0.35),
        arc((0.5, 0), 0.35),
        arc((0, 0), 0.15, 180, 360),
        [(-0.85, 0), (-0.95, -0.4)],
        [(0.85, 0), (0.95, -0.4)],
    ],
    "fork": [
        [(0, 0.95), (0, -0.2)],
        [(-0.3, -0.9), (-0.3, -0.35), (0, -0.2), (0.3, -0.35), (0.3, -0.9)],
        [(0, -0.9), (0, -0.2)],
    ],
    "table": [
        _closed((-0.9, -0.3), (0.9, -0.3), (0.9, -0.1), (-0.9, -0.1)),
        [(-0.75, -0.1), (-0.75, 0.8)],
        [(0.75, -0.1), (0.75, 0.8)],
    ],
    "bottle": [
        [
            (-0.15, -0.95),
            (-0.15, -0.45),
            (-0.4, -0.1),
            (-0.4, 0.95),
            (0.4, 0.95),
            (0.4, -0.1),
            (0.15, -0.45),
            (0.15, -0.95),
            (-0.15, -0.95),
        ]
    ],
    "candle": [_box(-0.25, -0.2, 0.25, 0.95), [(0, -0.2), (0, -0.4)], arc((0, -0.62), 0.2, squash=1.4)],
}
CLASS_NAMES = tuple(THINGS)[:12]
OTHERS = tuple(THINGS)[12:]


def _dense(stroke: Stroke) -> np.ndarray:
    """Return 24 to 40 points along the stroke, at even distances, so that every part of it can shake."""
    points = np.array(stroke, dtype=float)
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    places = np.linspace(0, lengths[-1], 36)
    return np.stack([np.interp(places, lengths, points[:, axis]) for axis in (0, 1)], axis=1)


def _shaken(stroke: Stroke, tremble: float, rng: np.random.Generator) -> Stroke:
    """Displace a stroke as a hand does: as a whole, and slowly along the way."""
    points = _dense(stroke)
    drift = np.cumsum(rng.normal(0, tremble / 4, points.shape), axis=0)
    drift += np.linspace(0, 1, len(points))[:, None] * -drift[-1]  # a hand aims at the stroke's end
    moved = points + drift + rng.normal(0, tremble, 2)
    return [(float(x), float(y)) for x, y in moved]


def _scribbles(canvas: Canvas, ink: tuple[int, int, int], rng: np.random.Generator) -> None:
    """Leave stray strokes that belong to nothing."""
    for _ in range(rng.integers(0, 4)):
        start, way = rng.uniform(-1.5, 1.5, 2), rng.normal(0, 0.4, 2)
        canvas.line(_shaken([tuple(start), tuple(start + way)], 0.08, rng), ink, 0.04)


def _paint(class_name: str, rng: np.random.Generator) -> Image.Image:
    paper, stain = (hsv(0.12, rng.uniform(0.0, 0.2), rng.uniform(0.75, 1.0)) for _ in range(2))
    ink = hsv(rng.uniform(), rng.uniform(0.0, 0.5), rng.uniform(0.1, 0.45))
    canvas = Canvas(backdrop(rng, paper, stain), Frame.jittered(rng, (0.6, 0.95), 14, 0.15))
    _scribbles(canvas, ink, rng)
    width, tremble = rng.uniform(0.05, 0.12), rng.uniform(0.02, 0.07)
    for stroke in THINGS[class_name]:
        for _ in range(rng.integers(1, 3)):
            canvas.line(_shaken(stroke, tremble, rng), ink, width)
    return canvas.finish(rng, blur=0.8, noise=22)


DOODLES = drawn("doodles", CLASS_NAMES, _paint, OTHERS)
