"""Views against open_clip's and torchvision's own transforms, and the bytes that are no image."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
import torchvision
from open_clip.transform import image_transform
from PIL import Image

from lada_ray import views
from lada_ray.views import BadImage, Preprocess, decode, render, training_views

SHA = hashlib.sha256(b"an image").hexdigest()
SIZES = [
    (224, 224),
    (37, 53),
    (53, 37),
    (301, 97),
    (96, 301),
    (65, 64),
    (64, 65),
    (640, 481),
    (33, 33),
    (7, 200),
]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth gradient with noise, so that every pixel of a wrong crop differs."""
    rng = np.random.default_rng([width, height])
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / width, 255 * y / height, 127 + 127 * np.sin(x / 5 + y / 7)]
    pixels = np.stack(channels, -1) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


def preprocess(size: int = 64, interpolation: str = "bicubic", resize_mode: str = "shortest") -> Preprocess:
    return Preprocess(size, (0.5,) * 3, (0.5,) * 3, interpolation, resize_mode)  # type: ignore[arg-type]


def open_clip_pixels(image: Image.Image, wanted: Preprocess) -> np.ndarray:
    """preprocess_val of open_clip, with a normalisation that leaves the pixels as they are."""
    transform = image_transform(
        wanted.size,
        is_train=False,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        interpolation=wanted.interpolation,
        resize_mode=wanted.resize_mode,
    )
    return (transform(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_test_view_is_open_clip_s_pixel_for_pixel(resize_mode: str, interpolation: str) -> None:
    for wanted in (preprocess(s, interpolation, resize_mode) for s in (64, 33)):
        for size in SIZES:
            view = render(picture(*size), SHA, "test", wanted)
            np.testing.assert_array_equal(view, open_clip_pixels(picture(*size), wanted), str((wanted, size)))
            assert view.dtype == np.uint8


@pytest.mark.parametrize("resize_mode", ["shortest", "longest"])
def test_sizes_and_offsets_round_like_open_clip_s(resize_mode: str) -> None:
    generator = random.Random(0)
    for _ in range(150):
        image = picture(generator.randint(20, 120), generator.randint(20, 120))
        wanted = preprocess(generator.randint(8, 40), "bilinear", resize_mode)
        np.testing.assert_array_equal(
            render(image, SHA, "test", wanted),
            open_clip_pixels(image, wanted),
            f"{image.size} to {wanted.size}",
        )


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_is_rgb_before_anything_else(mode: str) -> None:
    """As the published code and open_clip's training read images; a palette must not be interpolated."""
    image = picture(90, 70, mode)
    kind = {"CMYK": "TIFF"}.get(mode, "PNG")
    view = render(decode(encoded(image, kind)), SHA, "test", preprocess(48))
    np.testing.assert_array_equal(view, open_clip_pixels(image.convert("RGB"), preprocess(48)))


def test_16_bit_images_are_scaled_not_clipped() -> None:
    pixels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = np.asarray(decode(encoded(Image.fromarray(pixels), kind)))
        np.testing.assert_array_equal(decoded, np.repeat((pixels >> 8)[..., None], 3, axis=2))


def test_orientation_tags_are_ignored_as_open_clip_ignores_them() -> None:
    image, exif = picture(60, 40), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    sink = io.BytesIO()
    image.save(sink, "PNG", exif=exif)
    assert decode(sink.getvalue()).size == (60, 40)


def test_views_are_pure_functions_of_content_and_name() -> None:
    image, wanted = picture(120, 90), preprocess(48)
    first = render(image, SHA, "crop_flip/3", wanted)
    assert first.shape == (48, 48, 3)
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    np.testing.assert_array_equal(render(picture(120, 90), SHA, "crop_flip/3", wanted), first)
    others = [render(image, SHA, f"crop_flip/{i}", wanted) for i in range(8) if i != 3]
    others.append(render(image, hashlib.sha256(b"another").hexdigest(), "crop_flip/3", wanted))
    assert not any(np.array_equal(first, other) for other in others)


def test_a_view_is_pinned() -> None:
    """Another number means that every feature bank in the world is stale."""
    # A linear ramp tells where the crop was, whatever the resampling: columns and rows of the view's centre.
    y, x = np.mgrid[0:200, 0:200].astype(np.uint8)
    ramp = Image.fromarray(np.stack([x, y, 0 * x], -1))
    centres = [render(ramp, SHA, f"crop_flip/{i}", preprocess(33))[16, 16, :2].tolist() for i in range(4)]
    assert centres == [[112, 77], [100, 111], [95, 87], [81, 77]]


def boxes(width: int, height: int, count: int = 1500) -> np.ndarray:
    """Crops as they are drawn: (left, top, width, height), [count, 4]."""
    from lada_ray.views import _random_box

    rng = np.random.default_rng(0)
    return np.array([_random_box(width, height, rng) for _ in range(count)])


@pytest.mark.parametrize("size", [(224, 224), (300, 100), (60, 200)])
def test_crops_are_distributed_as_torchvision_s(size: tuple[int, int]) -> None:
    ours = boxes(*size).astype(float)
    image = torch.zeros(1, size[1], size[0])
    torch.manual_seed(0)
    get = torchvision.transforms.RandomResizedCrop.get_params
    theirs = np.array([get(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)], float)[:, [1, 0, 3, 2]]
    for values in (lambda b: b, lambda b: b[:, 2:3] * b[:, 3:4], lambda b: np.log(b[:, 2:3] / b[:, 3:4])):
        a, b = values(ours), values(theirs)
        spread = b.std(0) + 1e-9
        np.testing.assert_allclose((a.mean(0) - b.mean(0)) / spread, 0, atol=0.13)
        np.testing.assert_allclose(a.std(0) / spread, 1, atol=0.1)
    assert (ours[:, 0] + ours[:, 2]).max() <= size[0]
    assert (ours[:, 1] + ours[:, 3]).max() <= size[1]
    assert ours[:, 2:].min() >= 1


def test_half_of_the_views_are_flipped() -> None:
    x = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    ramp = Image.fromarray(np.stack([x] * 3, -1))
    views = [render(ramp, SHA, f"crop_flip/{i}", preprocess(16)) for i in range(400)]
    flipped = sum(int(view[8, 0, 0]) > int(view[8, -1, 0]) for view in views)
    assert flipped == pytest.approx(200, abs=35)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_tiny_and_thin_images_have_views(size: tuple[int, int]) -> None:
    for mode in ("shortest", "longest", "squash"):
        for view in ("test", "crop_flip/0", "crop_flip/1"):
            assert render(picture(*size), SHA, view, preprocess(16, resize_mode=mode)).shape == (16, 16, 3)


def test_names_of_training_views() -> None:
    assert training_views("crop_flip", 3) == ["crop_flip/0", "crop_flip/1", "crop_flip/2"]
    assert training_views("crop_flip", 0) == ["test"]
    assert training_views("none", 8) == ["test"]


@pytest.mark.parametrize("view", ["crop_flip", "crop_flip/", "crop_flip/x", "blur/1"])
def test_unknown_views_are_errors(view: str) -> None:
    with pytest.raises(ValueError, match="unknown view"):
        render(picture(8, 8), SHA, view, preprocess(8))


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image at all, but a text", "not an image that Pillow can read"),
    "truncated jpeg": (encoded(picture(200, 200), "JPEG")[:3000], "truncated"),
    "truncated png": (encoded(picture(200, 200))[:3000], "truncated|broken"),
    "png of a header alone": (encoded(picture(200, 200))[:40], "truncated|broken|not an image"),
    "large": (bomb(11_000, 10_000), "too large: 11000 x 10000 pixels, at most 100 million are read"),
    "bomb": (bomb(60_000, 60_000), "too large"),
    "elongated": (encoded(picture(2, 1200)), "too elongated: 2 x 1200 pixels, at most 1 : 500"),
    "floating point": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "no known range"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_say_why(name: str) -> None:
    data, reason = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(BadImage, match=reason):
            decode(data)


def test_any_cut_of_an_image_is_a_bad_image_or_an_image() -> None:
    """Whatever a parser raises, it costs this image, not the run."""
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        whole = encoded(picture(40, 30), kind)
        for cut in range(1, len(whole), max(1, len(whole) // 25)):
            with contextlib.suppress(BadImage):
                assert decode(whole[:cut]).mode == "RGB"


def test_log_ratio_is_uniform() -> None:
    crops = boxes(1000, 1000).astype(float)
    ratio = np.log(crops[:, 2] / crops[:, 3]) / math.log(4 / 3)
    assert np.abs(ratio).max() <= 1.02
    area = crops[:, 2] * crops[:, 3] / 1e6
    assert area.min() >= 0.079
    # Crops that do not fit are drawn again, which thins out the largest; below 3/4 all fit.
    low = area[area < 0.75]
    assert np.histogram(low, bins=4, range=(0.08, 0.75))[0].std() / (len(low) / 4) < 0.12


def test_a_lack_of_memory_is_no_verdict_on_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(views, "_to_rgb", full)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with pytest.raises(MemoryError):
        decode(buffer.getvalue())


def test_a_verdict_says_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "PILLOW", "13.0")
    monkeypatch.setattr(views, "MAX_PIXELS", 7)
    assert views.judge() == "Pillow 13.0, 7 pixels, 1 : 500"
