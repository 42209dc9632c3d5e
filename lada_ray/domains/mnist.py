"""MNIST and its relatives as IDX files, plain or gzipped; an image is a part of a file, read as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from lada_ray.domains.base import Domain, DomainSpec, Location, Sample
from lada_ray.domains.idx import check_idx, read_idx
from lada_ray.domains.listed import HEADING, Split, check_root, in_order, listed_domain, some, top_names
from lada_ray.domains.parts import IdxImage
from lada_ray.errors import InputError
from lada_ray.store import Store, join, open_store

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FILES: dict[Split, str] = {"train": "train", "test": "t10k"}
FOLDERS = ("", "raw", "MNIST/raw")
"""Below the root: as fetched, and as torchvision lays it out."""
LAYOUT = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, "
    "plain or .gz, there or in raw/ or MNIST/raw/"
)


class MnistSpec(DomainSpec):
    """MNIST's four IDX files, plain or gzipped, prompted as "a photo of a number" unless prompt says otherwise.

    Prompts are those of RAIL and LADA: 'a photo of a number: "0 - zero".'. For relatives such as Fashion-MNIST set
    prompt, and class_names by label: {"0": T-shirt, ...}.
    """

    path_fields: ClassVar[tuple[str, ...]] = ("root",)

    kind: Literal["mnist"] = "mnist"
    """mnist"""
    root: Location
    """Their folder, or s3:// or gs:// prefix; a relative one counts from data or the YAML's folder."""
    prompt: str | None = 'a photo of a number: "{}".'
    """Template for this domain's class names, {} standing for the name (null: encoder.prompt)."""

    def displayed(self, stored: str) -> str:
        """Name a digit as torchvision does ("0 - zero"), unless it is renamed; see `DomainSpec.displayed`."""
        if stored in self.class_names or stored not in map(str, range(10)):
            return super().displayed(stored)
        return f"{stored} - {DIGITS[int(stored)]}"

    def load(self, storage: str) -> Domain:
        """Read headers and labels; see `DomainSpec.load`."""
        store = open_store(self.root)
        check_root(self.name, store, LAYOUT)
        files = _find_files(self.name, store)
        problems: list[str] = []
        labels: dict[Split, list[int]] = {}
        for split, (images, label_file) in files.items():
            try:
                labels[split] = _read_labels(store, images, label_file)
            except OSError as error:
                problems.append(f"{self.name}: {error}")
        if problems:
            raise InputError(problems, HEADING)
        classes = in_order(str(label) for found in labels.values() for label in set(found))
        samples = {s: _samples(store, files[s][0], labels[s], classes) for s in files}
        return listed_domain(self, classes, samples, [])


def _find_files(name: str, store: Store) -> dict[Split, tuple[str, str]]:
    """The images and labels file of each split: all in one of the folders where they may be."""
    best: dict[str, str] = {}
    for folder in FOLDERS:
        found = {file: key for file in _wanted() if (key := _spelt(store, folder, file))}
        best = found if len(found) > len(best) else best
    missing = [file for file in _wanted() if file not in best]
    if missing:
        there = f" (there is {some(names)})" if (names := top_names(store)) else ""
        lacks = f"{name}: no {', '.join(missing)} in {store.uri}{there}"
        raise InputError([f"{lacks}; expected {LAYOUT}"], HEADING)
    return {
        split: (best[f"{file}-images-idx3-ubyte"], best[f"{file}-labels-idx1-ubyte"])
        for split, file in FILES.items()
    }


def _wanted() -> list[str]:
    return [f"{file}-{what}-ubyte" for file in FILES.values() for what in ("images-idx3", "labels-idx1")]


def _spelt(store: Store, folder: str, file: str) -> str | None:
    """The key under which a file is there: plain before gzipped; some copies have a dot for the second hyphen."""
    names = (file, file.replace("-idx", ".idx"))
    keys = [f"{folder}/{name}{end}".lstrip("/") for end in ("", ".gz") for name in names]
    return next((key for key in keys if store.exists(key)), None)


def _read_labels(store: Store, images: str, labels: str) -> list[int]:
    """The label of each image, after checking that both files belong together."""
    count, *_ = check_idx(store, images, 3)
    found: list[int] = read_idx(store, labels, 1).astype(np.int64).tolist()
    if len(found) != count:
        raise OSError(f"{join(store.uri, images)} has {count} images, {labels} {len(found)} labels")
    return found


def _samples(store: Store, images: str, labels: Sequence[int], classes: Sequence[str]) -> list[Sample]:
    """One sample per image. Its path is the same whether the file is gzipped, and wherever it lies below the root."""
    entry, index = store.stat(images), {int(name): i for i, name in enumerate(classes)}
    name = images.rpartition("/")[2].removesuffix(".gz").replace(".idx", "-idx")
    parts = [str(IdxImage(i)) for i in range(len(labels))]
    return [
        Sample(join(store.uri, images) + part, name + part, index[label], entry.size, entry.version)
        for part, label in zip(parts, labels, strict=True)
    ]
