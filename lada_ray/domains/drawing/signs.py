"""Road-sign-like pictograms in front of sky, leaves or walls, in any light."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from lada_ray.domains.drawing.base import drawn
from lada_ray.domains.drawing.canvas import (
    FONTS,
    Canvas,
    Colour,
    Frame,
    Point,
    arc,
    backdrop,
    dull_colour,
    glyph_mask,
    hsv,
    regular,
)

RED, BLUE, YELLOW = (200, 25, 35), (25, 75, 180), (245, 195, 25)
WHITE, BLACK, GREEN = (240, 240, 240), (25, 25, 25), (20, 130, 70)
SQUARE: list[Point] = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
UP, DOWN = regular(3), regular(3, turn=90)

Sign = Callable[[Canvas, np.random.Generator], None]


def _bordered(
    canvas: Canvas, points: list[Point], border: Colour, inside: Colour, share: float = 0.7
) -> None:
    """Fill a polygon, and a smaller one within it."""
    canvas.polygon(points, border)
    canvas.polygon([(share * x, share * y) for x, y in points], inside)


def _print(canvas: Canvas, text: str, size: float, fill: Colour, rng: np.random.Generator) -> None:
    """Print bold text in the middle of the sign."""
    smaller = Frame(canvas.frame.matrix * size, canvas.frame.offset)
    canvas.paste(glyph_mask(text, FONTS[int(rng.choice([1, 5, 9]))], smaller), fill)


def _arrow(canvas: Canvas, tail: Point, tip: Point, fill: Colour) -> None:
    """Draw a thick arrow from tail to tip."""
    along = np.subtract(tip, tail) / np.hypot(*np.subtract(tip, tail))
    aside, neck = np.array([-along[1], along[0]]), np.array(tip) - 0.45 * along
    canvas.line([tail, tuple(neck)], fill, 0.22)
    canvas.polygon([tip, tuple(neck + 0.4 * aside), tuple(neck - 0.4 * aside)], fill)


def stop(canvas: Canvas, rng: np.random.Generator) -> None:
    """Red octagon with white lettering, which is a bar at this size."""
    _bordered(canvas, regular(8, turn=22.5), WHITE, RED, 0.92)
    for x in (-0.55, -0.2, 0.15, 0.5):
        canvas.line([(x, -0.2), (x, 0.2)], WHITE, 0.16)


def give_way(canvas: Canvas, rng: np.random.Generator) -> None:
    """White triangle on its tip, with a red border."""
    _bordered(canvas, DOWN, RED, WHITE, 0.6)


def no_entry(canvas: Canvas, rng: np.random.Generator) -> None:
    """Red disc with a white bar."""
    canvas.disc((0, 0), 0.95, RED)
    canvas.polygon([(-0.65, -0.18), (0.65, -0.18), (0.65, 0.18), (-0.65, 0.18)], WHITE)


def priority_road(canvas: Canvas, rng: np.random.Generator) -> None:
    """Yellow diamond with a white border."""
    _bordered(canvas, regular(4), WHITE, YELLOW)


def one_way(canvas: Canvas, rng: np.random.Generator) -> None:
    """Wide blue board with a white arrow."""
    canvas.polygon([(-1, -0.45), (1, -0.45), (1, 0.45), (-1, 0.45)], BLUE)
    _arrow(canvas, (-0.75, 0), (0.8, 0), WHITE)


def keep_right(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blue disc with an arrow that points down to the right."""
    canvas.disc((0, 0), 0.95, BLUE)
    _arrow(canvas, (-0.5, -0.5), (0.6, 0.6), WHITE)


def pedestrian_crossing(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blue board, white triangle, a walker on stripes."""
    canvas.polygon(SQUARE, BLUE)
    canvas.polygon([(0, -0.75), (0.75, 0.65), (-0.75, 0.65)], WHITE)
    canvas.disc((0, -0.3), 0.12, BLACK)
    canvas.line([(0, -0.2), (0, 0.15), (-0.2, 0.5)], BLACK, 0.13)
    canvas.line([(0, 0.15), (0.22, 0.5)], BLACK, 0.13)


def dead_end(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blue board, a white road that ends at a red bar."""
    canvas.polygon(SQUARE, BLUE)
    canvas.line([(0, 0.7), (0, -0.3)], WHITE, 0.3)
    canvas.line([(-0.45, -0.4), (0.45, -0.4)], RED, 0.3)


def parking(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blue board with a white P."""
    canvas.polygon(SQUARE, BLUE)
    _print(canvas, "P", 0.8, WHITE, rng)


def speed_limit(canvas: Canvas, rng: np.random.Generator) -> None:
    """White disc with a red ring around a number."""
    canvas.disc((0, 0), 0.98, RED)
    canvas.disc((0, 0), 0.72, WHITE)
    _print(canvas, str(rng.choice(["30", "50", "60", "70", "80"])), 0.42, BLACK, rng)


def no_parking(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blue disc with a red ring and a red slash."""
    canvas.disc((0, 0), 0.98, RED)
    canvas.disc((0, 0), 0.74, BLUE)
    canvas.line([(-0.55, -0.55), (0.55, 0.55)], RED, 0.22)


def danger(canvas: Canvas, rng: np.random.Generator) -> None:
    """White triangle with a red border and an exclamation mark."""
    _bordered(canvas, UP, RED, WHITE, 0.64)
    canvas.line([(0, -0.35), (0, 0.08)], BLACK, 0.16)
    canvas.disc((0, 0.28), 0.09, BLACK)


def roundabout(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blue disc with three arrows in a circle."""
    canvas.disc((0, 0), 0.95, BLUE)
    for start in (0, 120, 240):
        points = arc((0, 0), 0.5, start, start + 75)
        canvas.line(points, WHITE, 0.15)
        canvas.disc(points[-1], 0.17, WHITE)


def railway_crossing(canvas: Canvas, rng: np.random.Generator) -> None:
    """White boards crossed like an X, with red ends."""
    for side in (-1, 1):
        canvas.line([(-0.9 * side, -0.75), (0.9 * side, 0.75)], RED, 0.32)
        canvas.line([(-0.5 * side, -0.42), (0.5 * side, 0.42)], WHITE, 0.28)


def road_works(canvas: Canvas, rng: np.random.Generator) -> None:
    """Triangle with a red border, a digger's figure and a heap."""
    _bordered(canvas, UP, RED, WHITE, 0.64)
    canvas.disc((-0.1, -0.2), 0.1, BLACK)
    canvas.line([(-0.1, -0.1), (-0.25, 0.25)], BLACK, 0.12)
    canvas.polygon([(0.0, 0.32), (0.35, 0.32), (0.18, 0.05)], BLACK)


def no_overtaking(canvas: Canvas, rng: np.random.Generator) -> None:
    """White disc with a red ring and two cars side by side."""
    canvas.disc((0, 0), 0.98, RED)
    canvas.disc((0, 0), 0.74, WHITE)
    for x, colour in ((-0.3, RED), (0.3, BLACK)):
        canvas.polygon([(x - 0.2, -0.15), (x + 0.2, -0.15), (x + 0.25, 0.25), (x - 0.25, 0.25)], colour)


def hospital(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blue board with a white H."""
    canvas.polygon(SQUARE, BLUE)
    _print(canvas, "H", 0.75, WHITE, rng)


def emergency_exit(canvas: Canvas, rng: np.random.Generator) -> None:
    """Green board with a white arrow to a door."""
    canvas.polygon(SQUARE, GREEN)
    canvas.polygon([(0.3, -0.6), (0.65, -0.6), (0.65, 0.6), (0.3, 0.6)], WHITE)
    _arrow(canvas, (-0.65, 0), (0.2, 0), WHITE)


def straight_ahead(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blue disc with an arrow that points up."""
    canvas.disc((0, 0), 0.95, BLUE)
    _arrow(canvas, (0, 0.65), (0, -0.7), WHITE)


SIGNS: dict[str, Sign] = {
    "stop sign": stop,
    "give way sign": give_way,
    "no entry sign": no_entry,
    "priority road sign": priority_road,
    "one way sign": one_way,
    "keep right sign": keep_right,
    "pedestrian crossing sign": pedestrian_crossing,
    "dead end sign": dead_end,
    "speed limit sign": speed_limit,
    "no parking sign": no_parking,
    "danger sign": danger,
    "railway crossing sign": railway_crossing,
    "parking sign": parking,
    "roundabout sign": roundabout,
    "road works sign": road_works,
    "no overtaking sign": no_overtaking,
    "hospital sign": hospital,
    "emergency exit sign": emergency_exit,
    "straight ahead sign": straight_ahead,
}
CLASS_NAMES = tuple(SIGNS)[:12]
OTHERS = tuple(SIGNS)[12:]


def _scenery(rng: np.random.Generator) -> Image.Image:
    """Return a background of sky, leaves or a wall."""
    hue, saturation = [(0.58, 0.4), (0.3, 0.5), (0.08, 0.3)][int(rng.integers(3))]
    near, far = (
        hsv(hue + rng.normal(0, 0.03), saturation * rng.uniform(0.5, 1), rng.uniform(0.3, 1)) for _ in "nf"
    )
    return backdrop(rng, near, far)


def _paint(class_name: str, rng: np.random.Generator) -> Image.Image:
    canvas = Canvas(_scenery(rng), Frame.jittered(rng, (0.45, 0.9), 12, 0.15))
    canvas.line([(0, 0), (0, 4)], dull_colour(rng, 0.3, 0.6), 0.16)  # the post
    SIGNS[class_name](canvas, rng)
    light = rng.uniform(0.45, 1.1)
    canvas.image = canvas.image.point(lambda level: min(255, round(level * light)))
    return canvas.finish(rng, blur=1.0, noise=22)


SIGNS_DRAWING = drawn("signs", CLASS_NAMES, _paint, OTHERS)
