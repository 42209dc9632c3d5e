"""Miniatures of the ten X-TAIL datasets, each in exactly the layout that it has on disk."""

from __future__ import annotations

import colorsys
import gzip
import hashlib
import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, VAL, TEST = 5, 1, 2
"""Images of each class."""


def jpeg(text: str, kind: str = "JPEG") -> bytes:
    """A picture of 40 x 32 pixels that its text decides: all are different, and colour tells classes apart."""
    digest = hashlib.sha256(text.encode()).digest()
    rng = np.random.default_rng(list(digest))
    hue = hashlib.sha256(text.rpartition("/")[0].encode()).digest()[0] / 256
    pixels = np.array(colorsys.hsv_to_rgb(hue, 1, 1)) * 180 + rng.uniform(0, 70, (32, 40, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def paths(split: str, pattern: str, numbers: Sequence[int]) -> list[str]:
    return [pattern.format(split=split, n=n) for n in numbers]


# dataset folder, image folder, split file, and of each class: name in the split, pattern of its paths
COOP: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "caltech101": (
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        {"face": "Faces/image_{n:04}.jpg", "crocodile_head": "crocodile_head/image_{n:04}.jpg"},
    ),
    "dtd": (
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        {"banded": "banded/banded_{n:04}.jpg", "potholed": "potholed/potholed_{n:04}.jpg"},
    ),
    "eurosat": (
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        {"Annual Crop Land": "AnnualCrop/AnnualCrop_{n}.jpg", "Sea or Lake": "SeaLake/SeaLake_{n}.jpg"},
    ),
    "flowers": (
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        {"pink primrose": "image_{n:05}.jpg", "tiger lily": "image_1{n:04}.jpg"},
    ),
    "food101": (
        "food-101",
        "images",
        "split_zhou_Food101.json",
        {"apple_pie": "apple_pie/{n:07}.jpg", "waffles": "waffles/{n:07}.jpg"},
    ),
    "oxford_pets": (
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        {"abyssinian": "Abyssinian_{n}.jpg", "great_pyrenees": "great_pyrenees_{n}.jpg"},
    ),
    "stanford_cars": (
        "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
        {
            "2000 AM General Hummer SUV": "cars_{split}/{n:05}.jpg",
            "2012 Ram C/V Cargo Van Minivan": "cars_{split}/1{n:04}.jpg",
        },
    ),
    "sun397": (
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        {"abbey": "a/abbey/sun_{n:016}.jpg", "outdoor church": "c/church/outdoor/sun_{n:016}.jpg"},
    ),
}
VARIANTS = ("707-320", "Boeing 717", "F-16A/B")


def coop_files(name: str) -> dict[str, bytes]:
    """The files of one of CoOp's datasets, by path below its folder: images, split file and others."""
    _, folder, split_file, classes = COOP[name]
    split: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    files: dict[str, bytes] = {"README.txt": b"of the dataset"}
    ends = {"train": range(TRAIN), "val": range(TRAIN, TRAIN + VAL), "test": range(50, 50 + TEST)}
    for label, (class_name, pattern) in enumerate(classes.items()):
        for part, numbers in ends.items():
            for path in paths("test" if part == "test" else "train", pattern, numbers):
                split[part].append([path, label, class_name])
                files[f"{folder}/{path}".lstrip("/")] = jpeg(f"{name}/{class_name}/{path}")
    return {**files, split_file: json.dumps(split).encode()}


def aircraft_files() -> dict[str, bytes]:
    """FGVC-Aircraft: the folder data/ of its archive."""
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    files = {"families.txt": b"Boeing 707\n", "variants.txt": "".join(f"{v}\n" for v in VARIANTS).encode()}
    for c, variant in enumerate(VARIANTS):
        for n in range(TRAIN + VAL + TEST):
            part = "train" if n < TRAIN else "val" if n < TRAIN + VAL else "test"
            number = f"{c:03}{n:04}"
            lines[part].append(f"{number} {variant}")
            files[f"images/{number}.jpg"] = jpeg(f"aircraft/{variant}/{number}")
    return files | {
        f"images_variant_{part}.txt": "".join(f"{line}\n" for line in found).encode()
        for part, found in lines.items()
    }


def idx(array: np.ndarray) -> bytes:
    """An array as an IDX file."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def digits(split: str, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [10 * each, 28, 28] and labels: the digit decides where it is bright."""
    rng = np.random.default_rng(len(split))
    labels = np.tile(np.arange(10, dtype=np.uint8), each)
    images = rng.integers(0, 60, (len(labels), 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 6] += 150
    return images, labels


def mnist_files(gz: bool = True) -> dict[str, bytes]:
    """MNIST's four files, as they are fetched (gzipped) or unpacked."""
    files = {}
    for split, each in (("train", TRAIN), ("t10k", TEST)):
        images, labels = digits(split, each)
        files[f"{split}-images-idx3-ubyte"] = idx(images)
        files[f"{split}-labels-idx1-ubyte"] = idx(labels)
    return {f"{name}.gz": gzip.compress(data) for name, data in files.items()} if gz else files


def draw_xtail(data: Path) -> Path:
    """All ten datasets below one folder."""
    for name, (folder, *_) in COOP.items():
        write(data / folder, coop_files(name))
    write(data / "fgvc_aircraft", aircraft_files())
    write(data / "mnist", mnist_files())
    return data
