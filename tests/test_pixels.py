"""Pixels through an encoder: normalised, in padded batches, the same on every device."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from lada_ray.pixels import PixelPipeline

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pipeline(seen: list[torch.Tensor], device: str = "cpu", precision: str = "fp32") -> PixelPipeline:
    weights = torch.randn(3 * 16, 5, generator=torch.Generator().manual_seed(0)).to(device)

    def encode(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.flatten(1) @ weights

    return PixelPipeline(encode, MEAN, STD, 4, torch.device(device), precision)


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (number, 4, 4, 3)).astype(np.uint8)


@pytest.mark.parametrize("number", [1, 4, 11])
def test_batches_are_of_one_size_and_normalised(number: int) -> None:
    seen: list[torch.Tensor] = []
    images = pixels(number)
    features = pipeline(seen)(images)
    assert [tuple(x.shape) for x in seen] == [(4, 3, 4, 4)] * -(-number // 4)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    expected = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    found = torch.cat(seen)[:number].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (features.shape, features.dtype) == ((number, 5), np.float32)


def test_an_image_gives_the_same_bits_whatever_is_encoded_with_it() -> None:
    images = pixels(11)
    images.flags.writeable = False  # as Ray Data hands them out
    whole = pipeline([])(images)
    for i in (0, 5, 10):
        np.testing.assert_array_equal(pipeline([])(images[i : i + 1])[0], pipeline([])(images[i : i + 1])[0])
    np.testing.assert_array_equal(pipeline([])(images[4:]), whole[4:])


def test_half_precision_is_autocast() -> None:
    exact, rough = pipeline([])(pixels(4)), pipeline([], precision="bf16")(pixels(4))
    assert 0 < np.abs(exact - rough).max() < 0.3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("number", [1, 4, 11, 400])
def test_a_gpu_gives_the_same_features(number: int) -> None:
    images = pixels(number)
    np.testing.assert_allclose(pipeline([], "cuda")(images), pipeline([])(images), rtol=1e-4, atol=1e-4)


def test_it_needs_neither_ray_nor_the_rest() -> None:
    """So that the benchmark runs on machines that have only torch and open_clip."""
    absent = ["ray", "mlflow", "pydantic", "sklearn", "pandas", "pyarrow", "obstore", "rich", "jinja2"]
    code = (
        f"import sys; [sys.modules.__setitem__(name, None) for name in {absent}]; "
        "import benchmarks.__main__, benchmarks.gpu; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
