"""IDX files: what is believed of them, and the PNG bytes that come out."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lada_ray.domains.idx import check_idx, png, read_idx, read_image
from lada_ray.store import open_store
from tests.xtail import digits, idx, write

IMAGES, LABELS = digits("train", 2)
NAME = "train-images-idx3-ubyte"


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (300, 400)])
def test_png_holds_the_pixels(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = Image.open(io.BytesIO(png(pixels)))
    assert (np.asarray(found) == pixels).all()


def test_png_bytes_are_the_same_everywhere() -> None:
    pixels = np.arange(28 * 28, dtype=np.uint64).reshape(28, 28).astype(np.uint8)
    digest = hashlib.sha256(png(pixels)).hexdigest()
    assert digest == "ca77f8f0a4e21520f3c676566d0b34afe9cdc2ad5131a0c577eece2f17030d6e"


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for images in (IMAGES, IMAGES[::-1].copy()):
        store.write(NAME, idx(images))
        assert read_image(store, NAME, 0) == png(images[0])
    with pytest.raises(OSError, match=f"{NAME}: has no image 20, only 20"):
        read_image(store, NAME, 20)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\0\0", "ends within its header"),
        (idx(LABELS), r"is no IDX file of images \(it starts with 0x00000801, not 0x00000803\)"),
        (b"<html>not found</html>", "is no IDX file of images"),
        (idx(IMAGES)[:-1], "its header promises 15696"),
        (idx(IMAGES) + b"\0", "has 15697 bytes; its header promises 15696"),
        (struct.pack(">4I", 0x803, 2**31, 2**31, 2**31), "at most 1073741824 are read"),
    ],
)
def test_damaged(data: bytes, problem: str, tmp_path: Path) -> None:
    store = open_store(write(tmp_path, {NAME: data}))
    with pytest.raises(OSError, match=problem):
        check_idx(store, NAME, 3)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(idx(IMAGES) + bytes(50_000_000))
    store = open_store(write(tmp_path, {f"{NAME}.gz": bomb}))
    for read in (check_idx, read_idx):
        with pytest.raises(OSError, match="holds more bytes of images; its header promises 15680"):
            read(store, f"{NAME}.gz", 3)


def test_no_gzip_file(tmp_path: Path) -> None:
    store = open_store(write(tmp_path, {f"{NAME}.gz": idx(IMAGES)}))
    with pytest.raises(OSError, match="is cut off or no gzip file"):
        check_idx(store, f"{NAME}.gz", 3)
