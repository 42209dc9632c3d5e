"""The demo's domains: pictures that this project draws itself, saved as image files like anyone's."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator

from lada_ray.domains.base import Domain, DomainSpec, Sample, did_you_mean
from lada_ray.domains.drawing import DRAWINGS, Drawing
from lada_ray.domains.folder import folder_domain
from lada_ray.errors import InputError
from lada_ray.store import Store, join, open_store

VERSION = 1
"""Raise it when a drawing changes: folders that an older version drew are drawn again."""

FOLDER = "demo-images"


class DemoSpec(DomainSpec):
    """A domain that is drawn once, into <storage>/demo-images/<drawing>/, and then read like a folder."""

    kind: Literal["demo"] = "demo"
    """demo"""
    drawing: str
    """Which pictures: shapes, textures, glyphs, signs, doodles or digits."""
    train_per_class: int = Field(default=16, ge=1)
    """Training images of each class."""
    test_per_class: int = Field(default=20, ge=1)
    """Test images of each class."""

    @field_validator("drawing")
    @classmethod
    def _is_known(cls, drawing: str) -> str:
        if drawing not in DRAWINGS:
            raise ValueError(f"is one of {', '.join(DRAWINGS)}{did_you_mean(drawing, DRAWINGS)}")
        return drawing

    @property
    def wanted(self) -> dict[str, int]:
        """Images per class of each split."""
        return {"train": self.train_per_class, "test": self.test_per_class}

    def load(self, storage: str) -> Domain:
        """Draw what is missing, then list the folder; see `DomainSpec.load`."""
        if problems := _shortages(self):
            raise InputError(problems, "The domains cannot be used")
        root = join(storage, FOLDER, self.drawing)
        draw_missing(DRAWINGS[self.drawing], open_store(root), self.wanted)
        domain = folder_domain(self, root)
        # Another configuration may have had more of them drawn: each takes the first ones.
        return dataclasses.replace(
            domain,
            train=_first(domain.train, self.train_per_class),
            test=_first(domain.test, self.test_per_class),
        )


def draw_missing(drawing: Drawing, store: Store, wanted: dict[str, int]) -> int:
    """Draw the images that a folder lacks, and mark it as complete at the end.

    A process that is killed meanwhile leaves no mark, so the next one looks at what is there and draws the
    rest. Two processes at once write the same bytes.

    Args:
        drawing: what to draw.
        store: the folder's.
        wanted: images per class of each split.

    Returns:
        The number of images drawn.
    """
    marked = _mark(store)
    if all(marked.get(split, 0) >= count for split, count in wanted.items()):
        return 0
    there = {entry.key for entry in store.list()} if marked or not store.exists(MARK) else set()
    missing = ((key, _png(drawing, *of)) for key, of in _images(drawing, wanted) if key not in there)
    # Drawn here, one after another, and written by threads, because each write waits for a disk or a network.
    with ThreadPoolExecutor(8) as pool:
        drawn = len(list(pool.map(lambda image: store.write(*image), missing)))
    counts = {split: max(count, marked.get(split, 0)) for split, count in wanted.items()}
    store.write(MARK, json.dumps({"version": VERSION, **counts}).encode())
    return drawn


MARK = ".drawn.json"
"""Hidden, so that no listing takes it for a part of the domain."""


def _mark(store: Store) -> dict[str, int]:
    """Return how many images per class of each split are there: none when another version drew them."""
    found = store.read_version(MARK)
    if found is None:
        return {}
    mark: dict[str, int] = json.loads(found[0])
    return mark if mark.pop("version") == VERSION else {}


def _images(drawing: Drawing, wanted: dict[str, int]) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """Yield the key of each image, and what it shows: (class name, split, index)."""
    for split, count in wanted.items():
        for name in drawing.class_names:
            for index in range(count):
                yield f"{split}/{name.replace(' ', '_')}/{index:04}.png", (name, split, index)


def _png(drawing: Drawing, class_name: str, split: str, index: int) -> bytes:
    buffer = io.BytesIO()
    drawing.image(class_name, split, index).save(buffer, "PNG")
    return buffer.getvalue()


def _first(samples: tuple[Sample, ...], count: int) -> tuple[Sample, ...]:
    """Keep the samples whose number lies below `count`."""
    return tuple(sample for sample in samples if int(PurePosixPath(sample.path).stem) < count)


def _shortages(spec: DemoSpec) -> list[str]:
    """One line for each split that has not as many different images as the specification asks for."""
    most = DRAWINGS[spec.drawing].most
    return [
        f"{spec.name}: {split}_per_class is {count}; {spec.drawing} has {most[split]} {split} images of each"
        for split, count in spec.wanted.items()
        if count > most.get(split, count)
    ]
