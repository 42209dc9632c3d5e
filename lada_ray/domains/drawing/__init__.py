"""The pictures of the demo: six kinds of drawings, one file each, made of Pillow and NumPy alone."""

from __future__ import annotations

from lada_ray.domains.drawing.base import Drawing
from lada_ray.domains.drawing.canvas import SIZE
from lada_ray.domains.drawing.digits import DIGITS
from lada_ray.domains.drawing.doodles import DOODLES
from lada_ray.domains.drawing.glyphs import GLYPHS
from lada_ray.domains.drawing.shapes import SHAPES_DRAWING
from lada_ray.domains.drawing.signs import SIGNS_DRAWING
from lada_ray.domains.drawing.textures import TEXTURES_DRAWING

DRAWINGS: dict[str, Drawing] = {
    drawing.name: drawing
    for drawing in (SHAPES_DRAWING, TEXTURES_DRAWING, GLYPHS, SIGNS_DRAWING, DOODLES, DIGITS)
}
"""Every drawing by name. Adding one is adding a file here and a name in this tuple."""

__all__ = ["DRAWINGS", "SIZE", "Drawing"]
