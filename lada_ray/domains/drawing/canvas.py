"""What all drawings share: a seeded generator, a jittered frame, a canvas that is drawn large and reduced."""

from __future__ import annotations

import colorsys
import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 64
"""Side of a finished image, in pixels."""

LARGE = 2 * SIZE
"""Side of the canvas that is drawn on; reducing it gives smooth edges, which ImageDraw does not draw."""

Colour = tuple[int, int, int]
Point = tuple[float, float]

HUES = {"red": 0.0, "orange": 0.08, "yellow": 0.15, "green": 0.33, "blue": 0.61, "purple": 0.78, "pink": 0.91}
"""Named colours as positions on the colour circle [0, 1)."""


def generator(*key: object) -> np.random.Generator:
    """Return the random generator that belongs to `key`: the same on every machine, unlike any other's."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Turn hue, saturation and value (each in [0, 1], hue wraps around) into 8-bit red, green and blue."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def named_colour(name: str, rng: np.random.Generator) -> Colour:
    """Return a shade of the colour called `name` (a key of `HUES`)."""
    return hsv(HUES[name] + rng.normal(0, 0.012), rng.uniform(0.6, 1.0), rng.uniform(0.55, 1.0))


def dull_colour(rng: np.random.Generator, low: float = 0.15, high: float = 0.9) -> Colour:
    """Return a greyish colour whose brightness lies in [low, high]."""
    return hsv(rng.uniform(), rng.uniform(0.0, 0.3), rng.uniform(low, high))


def backdrop(rng: np.random.Generator, first: Colour, second: Colour) -> Image.Image:
    """Blend two colours in soft random blobs over a large canvas."""
    blobs = Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8))
    mask = blobs.resize((LARGE, LARGE), Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", mask.size, first), Image.new("RGB", mask.size, second), mask)


@dataclass(frozen=True)
class Frame:
    """Maps points of the unit square [-1, 1]² (y grows downwards) onto the large canvas.

    Attributes:
        matrix: [2, 2], turns, scales and shears.
        offset: [2], where the origin lies, in canvas pixels.
    """

    matrix: np.ndarray
    offset: np.ndarray

    @classmethod
    def jittered(
        cls, rng: np.random.Generator, scale: tuple[float, float], turn: float, shear: float = 0.15
    ) -> Frame:
        """Draw a frame at random, so that nearly all of its unit square lies on the canvas.

        Args:
            rng: the generator.
            scale: smallest and largest size, 1 being the whole canvas.
            turn: it is turned by up to so many degrees.
            shear: and sheared by up to this.
        """
        size = rng.uniform(*scale)
        angle = np.deg2rad(rng.uniform(-turn, turn))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        skew = np.array([[rng.uniform(0.85, 1.15), rng.uniform(-shear, shear)], [0.0, 1.0]])
        # A little may leave the canvas: real pictures are not centred either.
        room = max(0.0, 1.05 - size)
        centre = 1.0 + rng.uniform(-room, room, 2)
        return cls(LARGE / 2 * size * rotation @ skew, LARGE / 2 * centre)

    def pixels(self, points: Iterable[Point]) -> list[Point]:
        """Map unit points to canvas pixels."""
        mapped = np.asarray(list(points), dtype=float) @ self.matrix.T + self.offset
        return [(float(x), float(y)) for x, y in mapped]

    @property
    def unit(self) -> float:
        """Canvas pixels per unit length."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))


class Canvas:
    """A large image with drawing operations in unit coordinates.

    Args:
        image: the background, [LARGE, LARGE] RGB; it is drawn over.
        frame: where unit coordinates lie on it.
    """

    def __init__(self, image: Image.Image, frame: Frame) -> None:
        self.image = image
        self.frame = frame
        self._draw = ImageDraw.Draw(image)

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        """Fill the polygon with the corners `points`."""
        self._draw.polygon(self.frame.pixels(points), fill=fill)

    def line(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        """Draw a line of `width` units through `points`, with round ends."""
        pixels = self.frame.pixels(points)
        thick = max(1, round(width * self.frame.unit))
        self._draw.line(pixels, fill=fill, width=thick, joint="curve")
        for x, y in (pixels[0], pixels[-1]) if thick > 2 else ():
            self._draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=fill)

    def disc(self, centre: Point, radius: float, fill: Colour) -> None:
        """Fill a circle."""
        self.polygon(arc(centre, radius), fill)

    def paste(self, mask: Image.Image, fill: Colour) -> None:
        """Colour the pixels where `mask` ([LARGE, LARGE], 8 bit) is set."""
        self.image.paste(fill, (0, 0), mask)

    def finish(self, rng: np.random.Generator, blur: float = 0.8, noise: float = 18.0) -> Image.Image:
        """Reduce to the final size, then blur and add noise, each by a random amount up to the given one."""
        return finish(self.image, rng, blur, noise)


def finish(image: Image.Image, rng: np.random.Generator, blur: float, noise: float) -> Image.Image:
    """Reduce `image` to SIZE x SIZE; blur by up to `blur` pixels, add noise of up to `noise` grey levels."""
    small = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, blur)))
    grain = rng.normal(0.0, rng.uniform(0.2, 1.0) * noise, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8))


def arc(
    centre: Point, radius: float, start: float = 0.0, stop: float = 360.0, squash: float = 1.0
) -> list[Point]:
    """Return points on a circle, `start` to `stop` degrees (0 right, 90 down), the height times `squash`."""
    angles = np.deg2rad(np.linspace(start, stop, 33))
    return [
        (float(centre[0] + radius * np.cos(a)), float(centre[1] + squash * radius * np.sin(a)))
        for a in angles
    ]


def regular(corners: int, inner: float = 1.0, turn: float = -90.0) -> list[Point]:
    """Return a regular polygon; with `inner` below 1 a star, whose inner corners lie at that radius."""
    count = corners if inner == 1.0 else 2 * corners
    angles = np.deg2rad(turn + 360.0 / count * np.arange(count))
    radii = [1.0 if step % 2 == 0 else inner for step in range(count)]
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for a, r in zip(angles, radii, strict=True)]


FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
"""Fonts that matplotlib bundles and that have all Latin letters and digits at their usual places."""


@functools.cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Open one of `FONTS`."""
    import matplotlib  # only its data folder is of interest; imported here because it is slow to import

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def glyph_mask(text: str, name: str, frame: Frame) -> Image.Image:
    """Print `text` in a font, filling the frame's unit square, as an 8-bit mask of the large canvas."""
    flat = Image.new("L", (LARGE, LARGE))
    ImageDraw.Draw(flat).text((LARGE / 2, LARGE / 2), text, fill=255, font=font(name, LARGE), anchor="mm")
    # Image.transform wants the way back, from canvas pixels to pixels of the flat print.
    back = LARGE / 2 * np.linalg.inv(frame.matrix)
    shift = LARGE / 2 - back @ frame.offset
    coefficients = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
    return flat.transform(flat.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
