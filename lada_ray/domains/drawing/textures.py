"""Surfaces that fill the picture: functions of the position, seen at any scale and angle, in any colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from lada_ray.domains.drawing.base import drawn
from lada_ray.domains.drawing.canvas import LARGE, finish, hsv

Field = np.ndarray
Texture = Callable[[Field, Field, np.random.Generator], Field]
"""(u [H, W], v [H, W] in cells, generator) -> brightness [H, W] in [0, 1]."""


def _wave(phase: Field) -> Field:
    return 0.5 + 0.5 * np.sin(2 * np.pi * phase)


def _triangle(phase: Field) -> Field:
    return np.abs(2 * (phase % 1.0) - 1)


def _soft_noise(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Add up a few random waves: smooth, without a repeating pattern."""
    total = np.zeros_like(u)
    for frequency in (0.5, 1.0, 1.7, 2.9):
        a, b = frequency * rng.normal(0, 0.7, 2)
        total += np.sin(2 * np.pi * (a * u + b * v + rng.uniform())) / (1 + frequency)
    return total


def striped(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Straight parallel bands."""
    return (_wave(u) > rng.uniform(0.3, 0.7)).astype(float)


def dotted(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Discs on a grid."""
    return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < rng.uniform(0.18, 0.38)).astype(float)


def checkered(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Squares as on a chessboard."""
    return (np.floor(u) + np.floor(v)) % 2


def brick(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Rows of bricks, each shifted by half a brick."""
    row = np.floor(1.6 * v)
    across = (u * 0.8 + 0.5 * (row % 2)) % 1
    return ((across > 0.1) & (1.6 * v % 1 > 0.18)) * (0.8 + 0.2 * np.sin(7 * row + 3 * np.floor(u * 0.8)))


def zigzag(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Bands that turn sharply."""
    return (_wave(v + rng.uniform(0.6, 1.1) * _triangle(0.7 * u)) > 0.5).astype(float)


def wavy(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Bands that turn softly."""
    return _wave(v + rng.uniform(0.25, 0.5) * np.sin(2 * np.pi * 0.5 * u))


def honeycomb(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Hexagonal cells with dark walls: near the middle between the two nearest centres is a wall."""
    first = np.hypot((u % 1) - 0.5, (v % 1.732) - 0.866)
    u, v = u + 0.5, v + 0.866
    second = np.hypot((u % 1) - 0.5, (v % 1.732) - 0.866)
    return np.clip(1.15 - 2 * np.minimum(first, second) + 0.4 * (np.minimum(first, second) < 0.42), 0, 1)


def woven(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Threads that pass over and under each other."""
    over = (np.floor(u) + np.floor(v)) % 2
    return np.where(over == 1, 0.35 + 0.65 * np.sin(np.pi * (u % 1)), 0.75 * np.sin(np.pi * (v % 1)))


def marbled(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Veins: bands that soft noise bends."""
    return np.abs(np.sin(np.pi * (0.4 * u + 1.1 * _soft_noise(u / 2, v / 2, rng)))) ** 0.6


def scaly(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Overlapping round scales, row by row."""
    row = np.floor(2 * v)
    across = (u + 0.5 * (row % 2)) % 1 - 0.5
    return np.clip(1.25 - 1.6 * np.hypot(across, 0.9 * (2 * v % 1) * 0.55 + 0.05), 0, 1)


def spotted(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Irregular patches, like a cow's."""
    return (_soft_noise(0.7 * u, 0.7 * v, rng) > rng.uniform(0.0, 0.3)).astype(float)


def wooden(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Growth rings cut lengthwise."""
    rings = np.hypot(0.25 * u + rng.uniform(-1, 1), v) + 0.12 * _soft_noise(u / 3, v, rng)
    return (1.8 * rings) % 1.0


def gridded(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Thin lines in two directions."""
    return ((u % 1 < 0.15) | (v % 1 < 0.15)).astype(float)


def ringed(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Circles around one centre."""
    return _wave(np.hypot(u - rng.uniform(-2, 2), v - rng.uniform(-2, 2)))


def radiant(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Rays from one centre."""
    angle = np.arctan2(v - rng.uniform(-1, 1), u - rng.uniform(-1, 1))
    return (_wave(rng.integers(5, 12) * angle / (2 * np.pi)) > 0.5).astype(float)


def grainy(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Sand."""
    return rng.uniform(0, 1, u.shape)


def plaid(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Crossing translucent bands."""
    return 0.5 * (u % 1 < 0.4) + 0.5 * (v % 1 < 0.4)


def starry(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Sparkles on a grid."""
    x, y = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)
    return (np.sqrt(x) + np.sqrt(y) < rng.uniform(0.6, 0.72)).astype(float)


TEXTURES: dict[str, Texture] = {
    "striped texture": striped,
    "dotted texture": dotted,
    "checkered texture": checkered,
    "brick texture": brick,
    "zigzag texture": zigzag,
    "wavy texture": wavy,
    "honeycomb texture": honeycomb,
    "woven texture": woven,
    "marbled texture": marbled,
    "scaly texture": scaly,
    "spotted texture": spotted,
    "wooden texture": wooden,
    "gridded texture": gridded,
    "ringed texture": ringed,
    "radiant texture": radiant,
    "grainy texture": grainy,
    "plaid texture": plaid,
    "starry texture": starry,
}
CLASS_NAMES = tuple(TEXTURES)[:12]
OTHERS = tuple(TEXTURES)[12:]


def _cells(rng: np.random.Generator) -> tuple[Field, Field]:
    """Return the position of every pixel, in cells of a random size, angle and origin, slightly bent."""
    y, x = np.mgrid[-1 : 1 : LARGE * 1j, -1 : 1 : LARGE * 1j]
    angle, cells = rng.normal(0, 0.3), rng.uniform(1.6, 3.2)
    bend = rng.uniform(0, 0.08) * np.sin(rng.uniform(1, 3) * (x + y) + rng.uniform(0, 6))
    u = cells * (np.cos(angle) * x - np.sin(angle) * y + bend) + rng.uniform(0, 9)
    v = cells * (np.sin(angle) * x + np.cos(angle) * y + bend) + rng.uniform(0, 9)
    return u, v


def _paint(class_name: str, rng: np.random.Generator) -> Image.Image:
    u, v = _cells(rng)
    level = TEXTURES[class_name](u, v, rng)[..., None]
    hue = rng.uniform()
    dark = np.array(hsv(hue, rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.5)))
    light = np.array(hsv(hue + rng.normal(0, 0.15), rng.uniform(0.0, 0.6), rng.uniform(0.65, 1.0)))
    if rng.uniform() < 0.5:
        dark, light = light, dark
    shade = 1 - rng.uniform(0, 0.5) * np.linspace(0, 1, LARGE)[:, None, None]
    picture = np.clip((dark + (light - dark) * level) * shade, 0, 255).astype(np.uint8)
    return finish(Image.fromarray(picture), rng, blur=1.0, noise=28)


TEXTURES_DRAWING = drawn("textures", CLASS_NAMES, _paint, OTHERS)
