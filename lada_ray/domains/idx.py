"""IDX files, in which MNIST and its relatives come: arrays of bytes behind a header of big-endian numbers.

    magic (0x0000 08 <dimensions>)  size of each dimension  bytes ...

Nothing is believed unchecked: a file has to be exactly as long as its header says, and a gzipped one is never
unpacked further than that.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lada_ray.store import Store, join, open_store

MAX_BYTES = 2**30
"""Largest array that is read: the largest file of this family (EMNIST ByClass) has half of it."""
HOLDS = {1: "labels", 3: "images"}
"""What a file of so many dimensions holds."""
BLOCK = 0xFFFF

Bytes = npt.NDArray[np.uint8]


def check_idx(store: Store, key: str, dimensions: int) -> tuple[int, ...]:
    """Compare a file's header with its length; a plain file's content is not read.

    Args:
        store: where it lies.
        key: a name that ends in .gz says that it is gzipped.
        dimensions: 1 for labels, 3 for images.

    Returns:
        The size of each dimension: images, rows, columns.

    Raises:
        OSError: it is not there, is no such file, or is cut off.
    """
    where = join(store.uri, key)
    with _unpacked(store, key) as file:
        shape = _read_shape(file, where, dimensions)
    expected = 4 + 4 * dimensions + math.prod(shape)
    if key.endswith(".gz"):
        if _said_length(store, key) != expected:
            read_idx(
                store, key, dimensions
            )  # says what is wrong, if it is not just gzipped in several pieces
    elif (found := store.stat(key).size) != expected:
        raise OSError(f"{where}: has {found} bytes; its header promises {expected}. Fetch it again")
    return shape


def read_idx(store: Store, key: str, dimensions: int) -> Bytes:
    """Read a whole file as an array; arguments and errors as `check_idx`."""
    where = join(store.uri, key)
    with _unpacked(store, key) as file:
        shape = _read_shape(file, where, dimensions)
        size = math.prod(shape)
        data = file.read(size + 1)
    if len(data) != size:
        found = "more" if len(data) > size else str(len(data))
        raise OSError(f"{where}: holds {found} bytes of {HOLDS[dimensions]}; its header promises {size}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_image(store: Store, key: str, index: int) -> bytes:
    """Read one image as PNG, out of a file that is kept in this process while it does not change.

    Raises:
        OSError: see `check_idx`; or it has not as many images.
    """
    images = _images(store.uri, key, store.stat(key).version)
    if index >= len(images):
        raise OSError(f"{join(store.uri, key)}: has no image {index}, only {len(images)}")
    return png(images[index])


@lru_cache(maxsize=2)
def _images(uri: str, key: str, version: str) -> Bytes:
    return read_idx(open_store(uri), key, 3)


def png(pixels: Bytes) -> bytes:
    """Write grey pixels [height, width] as a PNG file without compression.

    The same pixels are the same bytes wherever they are written. With compression that would depend on the
    version of zlib, and images are found again by their bytes.
    """
    height, width = pixels.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _stored(data: bytes) -> bytes:
    """A zlib stream of stored blocks (RFC 1950, RFC 1951 3.2.4)."""
    blocks = [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)] or [b""]
    body = b"".join(
        struct.pack("<BHH", i == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for i, block in enumerate(blocks)
    )
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(data))


@contextmanager
def _unpacked(store: Store, key: str) -> Iterator[BinaryIO]:
    """Open a file for reading, through gzip where its name says so; damage becomes an OSError naming it."""
    where = join(store.uri, key)
    with store.open(key) as file:
        if not key.endswith(".gz"):
            yield file
            return
        try:
            yield gzip.GzipFile(fileobj=file)  # type: ignore[misc]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"{where}: is cut off or no gzip file ({error}). Fetch it again") from None


def _read_shape(file: BinaryIO, where: str, dimensions: int) -> tuple[int, ...]:
    head = file.read(4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions:
        raise OSError(f"{where}: ends within its header. Fetch it again")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", head)
    if magic != 0x800 + dimensions:
        raise OSError(
            f"{where}: is no IDX file of {HOLDS[dimensions]} "
            f"(it starts with {magic:#010x}, not {0x800 + dimensions:#010x})"
        )
    if math.prod(shape) > MAX_BYTES:
        raise OSError(f"{where}: promises {math.prod(shape)} bytes; at most {MAX_BYTES} are read")
    return tuple(shape)


def _said_length(store: Store, key: str) -> int:
    """The unpacked length that a gzip file states at its end (modulo 2^32), so that it need not be unpacked."""
    size = store.stat(key).size
    with store.open(key) as file:
        file.seek(max(0, size - 4))
        return int.from_bytes(file.read(4), "little")
