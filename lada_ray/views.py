"""The views of an image that are encoded, as uint8 pixels.

A view is named by a string: "test" is the deterministic one; "crop_flip/3" the fourth of an augmentation
policy. Its randomness comes from (SHA-256 of the image, name) alone, never from a run's seed: all runs share
their views.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL import __version__ as PILLOW

TEST_VIEW = "test"
CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
MAX_PIXELS = 100_000_000
# Resizing the shortest side multiplies the longest: an elongated image would fill the memory.
MAX_ASPECT = 500

Pixels = npt.NDArray[np.uint8]


class BadImage(Exception):
    """These bytes are not a usable image; the message is the reason shown to the user."""


@dataclass(frozen=True)
class Preprocess:
    """How an encoder wants its pixels: open_clip's `preprocess_cfg`, without the augmentation."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"

    @property
    def resample(self) -> Image.Resampling:
        """PIL's name of the interpolation."""
        return Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR


def training_views(augment: str, views: int) -> list[str]:
    """Names of the views that training draws from: the policy's first `views`, or the deterministic one.

    Policy "none" has no randomness (Resize and CenterCrop only), so its views are all the deterministic one.
    """
    if augment == "none" or views == 0:
        return [TEST_VIEW]
    return [f"{augment}/{i}" for i in range(views)]


def decode(data: bytes) -> Image.Image:
    """The image in these bytes, in RGB.

    Raises:
        BadImage: if they are empty, not an image, truncated, larger than `MAX_PIXELS`, more elongated than
            `MAX_ASPECT`, or of pixels without a known range.
        MemoryError: if this machine has no room for it now.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        _check_size(*image.size)
        return _to_rgb(image)
    except BadImage:
        raise
    except MemoryError:
        raise  # it says something about this machine now, not about these bytes
    except Image.DecompressionBombError as error:
        raise BadImage(f"too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise BadImage("not an image that Pillow can read") from error
    # Decoders raise whatever their format's parser stumbles over: any failure costs this image, not the run.
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {error}") from error


def judge() -> str:
    """Whose verdict `decode`'s is: another Pillow, or other limits, may find the same bytes usable."""
    return f"Pillow {PILLOW}, {MAX_PIXELS} pixels, 1 : {MAX_ASPECT}"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise BadImage(f"too large: {width} x {height} pixels, at most {limit} million are read")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f"too elongated: {width} x {height} pixels, at most 1 : {MAX_ASPECT} is read")


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow clips these modes to 8 bits: a 16-bit photograph would turn white, a floating-point one black.
    if image.mode.startswith("I;16"):
        image.load()
        high_bytes = np.asarray(image).astype(np.uint16) >> 8
        image = Image.fromarray(high_bytes.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadImage(f"its pixels ({image.mode}, 32 bits) have no known range: save it with 8 or 16 bits")
    return image.convert("RGB")


def render(image: Image.Image, sha256: str, view: str, preprocess: Preprocess) -> Pixels:
    """One view of an RGB image as uint8 pixels, [size, size, 3].

    Args:
        image: decoded image.
        sha256: hex digest of the image's bytes, the source of the view's randomness.
        view: name of the view.
        preprocess: target size, interpolation and resize mode.
    """
    if view == TEST_VIEW:
        return np.asarray(_test_view(image, preprocess))
    policy, _, index = view.partition("/")
    if policy != "crop_flip" or not index.isdigit():
        raise ValueError(f"unknown view {view!r}; known are '{TEST_VIEW}' and 'crop_flip/<index>'")
    seed = hashlib.sha256(f"{sha256}/{view}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "big")))
    return np.asarray(_crop_flip(image, rng, preprocess))


def _test_view(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """open_clip's evaluation transform on PIL: resize, then centre crop (or squash, or pad)."""
    size = preprocess.size
    if preprocess.resize_mode == "squash":
        return image.resize((size, size), preprocess.resample)
    width, height = image.size
    side = min(width, height) if preprocess.resize_mode == "shortest" else max(width, height)
    # torchvision's Resize and CenterCrop, rounding included.
    scaled = (_scaled(width, side, size, preprocess), _scaled(height, side, size, preprocess))
    if scaled != image.size:
        image = image.resize(scaled, preprocess.resample)
    left, top = (_offset(extent, size) for extent in image.size)
    return image.crop((left, top, left + size, top + size))


def _scaled(extent: int, side: int, size: int, preprocess: Preprocess) -> int:
    if preprocess.resize_mode == "longest":
        return max(1, round(extent / (side / size)))
    return int(size * extent / side)


def _offset(extent: int, size: int) -> int:
    """Where the centred crop begins: torchvision rounds to even, open_clip's padding ("longest") down."""
    return round((extent - size) / 2.0) if extent >= size else -((size - extent) // 2)


def _crop_flip(image: Image.Image, rng: np.random.Generator, preprocess: Preprocess) -> Image.Image:
    """RandomResizedCrop with torchvision's default scale and ratio, then a flip half of the time."""
    left, top, width, height = _random_box(*image.size, rng)
    view = image.crop((left, top, left + width, top + height))
    view = view.resize((preprocess.size, preprocess.size), preprocess.resample)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """As torchvision's RandomResizedCrop.get_params: (left, top, width, height)."""
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), w, h
    w, h = width, height
    if width / height < CROP_RATIO[0]:
        h = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(height * CROP_RATIO[1])
    return (width - w) // 2, (height - h) // 2, w, h
