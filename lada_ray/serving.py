"""Answers requests with a model: images as bytes in, rows out. Needs neither Ray nor MLflow, nor what training needs.

A request comes from anybody. So an image is its bytes, never a path or URI that this machine would open; formats whose
readers start other programs (EPS) or that no camera writes are not read; bytes, pixels, images and names are limited;
and a bad image costs its row, not the request.
"""

from __future__ import annotations

import base64
import binascii
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from lada_ray.errors import InputError
from lada_ray.head import Floats, Head
from lada_ray.model import LadaModel
from lada_ray.views import TEST_VIEW, BadImage, Pixels, decode, render

COLUMNS = ("image", "rank", "domain", "class", "score", "error")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
# Images whose features exist at once: one batch of the encoder on a CPU. Pixels are decoded one image at a time.
CHUNK = 64
# Lists of extra classes whose text features are kept.
REMEMBERED = 16

Answer = tuple[int, int, str | None, str | None, float | None, str | None]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    image_bytes: int = 20_000_000
    """Of an image as it is sent, before base64."""
    pixels: int = 50_000_000
    """Width times height; decoded, they take three bytes each."""
    images: int = 1024
    extra_classes: int = 1000
    name_length: int = 200
    top_k: int = 100


class Service:
    """A model that answers requests, one at a time, from any thread. Its encoder is loaded at once.

    Args:
        model: what predicts.
        limits: of a request.

    Raises:
        IntegrityError: the encoder's weights are not those that the packs were learnt with.
    """

    def __init__(self, model: LadaModel, limits: Limits | None = None) -> None:
        self.model, self.limits = model, limits or Limits()
        self._encoder = model.encoder
        model.warn_uncalibrated()
        self._text = lru_cache(REMEMBERED)(self._encode_names)
        self._lock = threading.Lock()

    def predict(
        self, images: Sequence[object], extra_classes: Sequence[str] = (), top_k: int = 1
    ) -> pd.DataFrame:
        """Classify images.

        Args:
            images: each the bytes of an image file, or those in base64.
            extra_classes: names of classes that were not learnt, to be recognised zero-shot.
            top_k: how many classes per image, best first; fewer where its side of the gate has fewer.

        Returns:
            In order, `top_k` rows per image: `image` (its position, from 0), `rank` (from 1), `domain` (None for an
            extra class), `class` and `score` as `LadaModel.predict` gives them, `error` None. For an image that cannot
            be used one row: rank 1, and `error` says why; `domain`, `class` and `score` are None.

        Raises:
            InputError: beyond the limits, or no class to choose from.
        """
        names = tuple(str(name).strip() for name in extra_classes)
        self._check(len(images), names, top_k)
        rows: list[Answer] = []
        # One request at a time: the memory that decoding takes does not grow with the number of clients.
        with self._lock:
            unseen = self._text(names) if names else None
            labels = [*self.model.class_names, *((None, name) for name in names)]
            for start in range(0, len(images), CHUNK):
                rows += self._answers(start, images[start : start + CHUNK], labels, unseen, top_k)
        # As objects, or pandas makes NaN of None, which JSON has no word for.
        frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
        return frame.astype({"image": np.int64, "rank": np.int64})

    def _check(self, images: int, names: Sequence[str], top_k: int) -> None:
        limits = self.limits
        problems = []
        if images > limits.images:
            problems.append(f"{images} images: send at most {limits.images} in a request")
        if len(names) > limits.extra_classes:
            problems.append(f"extra_classes: {len(names)} names, at most {limits.extra_classes} are taken")
        if any(not 0 < len(name) <= limits.name_length for name in names):
            problems.append(f"extra_classes: a name is empty, or longer than {limits.name_length} characters")
        if not 0 < top_k <= limits.top_k:
            problems.append(f"top_k: {top_k} is not in 1..{limits.top_k}")
        if not names and not self.model.class_names:
            problems.append("nothing is learnt yet: give extra_classes")
        if problems:
            raise InputError(problems, "Nothing predicted")

    def _answers(
        self,
        start: int,
        images: Sequence[object],
        labels: Sequence[tuple[str | None, str]],
        unseen: Floats | None,
        top_k: int,
    ) -> Iterator[Answer]:
        """The rows of a chunk of images, the first of which is number `start` of its request."""
        read = [self._pixels(image) for image in images]
        pixels = [one for one in read if not isinstance(one, str)]
        features = self._encoder.encode_pixels(np.stack(pixels)) if pixels else np.zeros((0, 0), np.float32)
        ranked = iter(ranking(self.model.head, features, unseen, top_k) if pixels else ())
        for number, one in enumerate(read, start):
            if isinstance(one, str):
                yield number, 1, None, None, None, one
                continue
            for rank, (j, score) in enumerate(next(ranked), 1):
                yield number, rank, *labels[j], score, None

    def _pixels(self, image: object) -> Pixels | str:
        """What the encoder gets of an image, or why it cannot be used."""
        try:
            return render(self._decoded(image), "", TEST_VIEW, self.model.spec.preprocess)
        # Whatever a decoder stumbles over costs this image alone.
        except Exception as error:
            return str(error) or type(error).__name__

    def _decoded(self, image: object) -> Image.Image:
        data = self._bytes(image)
        try:
            header = Image.open(io.BytesIO(data), formats=_readable())
        except Image.DecompressionBombError as error:
            raise BadImage(f"too large: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise BadImage(f"not an image of these formats: {', '.join(_readable())}") from error
        width, height = header.size
        if width * height > self.limits.pixels:
            limit = self.limits.pixels / 1e6
            raise BadImage(f"too large: {width} x {height} pixels, at most {limit:g} million are taken")
        return decode(data)

    def _bytes(self, image: object) -> bytes:
        limit = self.limits.image_bytes
        size = len(image) if isinstance(image, (bytes, bytearray, memoryview, str)) else 0
        if size > (limit * 3 // 2 if isinstance(image, str) else limit):
            raise BadImage(f"too large: {size} bytes, at most {limit} are taken")
        if isinstance(image, str):
            return _from_base64(image)
        if isinstance(image, (bytes, bytearray, memoryview)):
            return bytes(image)
        raise BadImage(f"not the bytes of an image, nor base64 of them, but {type(image).__name__}")

    def _encode_names(self, names: tuple[str, ...]) -> Floats:
        return self.model.encode_classes(names)


def ranking(
    head: Head, features: Floats, unseen_text: Floats | None, top_k: int
) -> list[list[tuple[int, float]]]:
    """The best classes of each image on the chosen side of the gate, as (index, score), best first.

    Args:
        head: what predicts.
        features: raw image features, [N, d].
        unseen_text: of U classes not learnt, [U, d].
        top_k: how many at most.

    Returns:
        N lists; the index counts `head.labels`, then the unseen classes, and the first is that of `predict_scored`.
    """
    chosen, logits = head.decide(features, unseen_text)
    order = _order(logits, chosen, len(head.labels), head.fusion == "gated")[:, :top_k]
    scores = np.take_along_axis(head.scores(logits, chosen), order, axis=1)
    return [
        [(int(j), float(one)) for j, one in zip(*row, strict=True) if j >= 0]
        for row in zip(order, scores, strict=True)
    ]


def _order(logits: Floats, chosen: npt.NDArray[np.int64], seen: int, gated: bool) -> npt.NDArray[np.int64]:
    """Classes by falling logit, the chosen one first; -1 instead of those on the other side of the gate, [N, C + U]."""
    key = logits.astype(np.float64)
    if gated:
        is_seen = np.arange(logits.shape[1]) < seen
        key[is_seen[None, :] != (chosen < seen)[:, None]] = -np.inf
    key[np.arange(len(chosen)), chosen] = np.inf
    order = np.argsort(-key, axis=1, kind="stable")
    order[np.isneginf(np.take_along_axis(key, order, axis=1))] = -1
    return order


@lru_cache(maxsize=1)
def _readable() -> tuple[str, ...]:
    """Those of the formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(
            "a text that is not base64: send the image's bytes in base64; paths and URIs are not opened"
        ) from error
