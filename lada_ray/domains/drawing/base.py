"""What a drawing is: class names and a pure function from (class, split, index) to an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from lada_ray.domains.drawing.canvas import generator

Paint = Callable[[str, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Drawing:
    """One kind of pictures.

    Attributes:
        name: what configurations call it.
        class_names: the classes of the demo domain, as displayed.
        image: (class name, split, index) -> 64 x 64 RGB image. Pure: the same arguments, the same image;
            another split ("train", "test", "pretrain"), other images.
        others: names that `image` draws too, but that are no classes of the domain (for pretraining).
        most: images per class of a split, where there are only so many.
    """

    name: str
    class_names: tuple[str, ...]
    image: Callable[[str, str, int], Image.Image]
    others: tuple[str, ...] = ()
    most: Mapping[str, int] = field(default_factory=dict)


def drawn(name: str, class_names: tuple[str, ...], paint: Paint, others: tuple[str, ...] = ()) -> Drawing:
    """Make a drawing whose images come from a random generator alone.

    Args:
        name: the drawing's name.
        class_names: its classes.
        paint: (class name, generator) -> 64 x 64 RGB image.
        others: further names that `paint` knows.
    """

    def image(class_name: str, split: str, index: int) -> Image.Image:
        return paint(class_name, generator(name, class_name, split, index))

    return Drawing(name, class_names, image, others)
