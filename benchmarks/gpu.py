"""Encoding on a GPU: share of its peak, and images per second through the product's loop. Needs torch and open_clip.

python -m benchmarks gpu

Neither Ray nor MLflow, nor anything else of the project's dependencies, is imported.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.result import Result
from lada_ray.pixels import PixelPipeline

MODEL, SIZE = "ViT-B-16", 224
# Images that the encoder gets at once, and of one call of an encoder actor; a test says if the product has others.
BATCH, CALL = 256, 512
BATCHES = 40
# Floating point operations of ViT-B/16's image tower per image: 12 blocks on 197 tokens of width 768.
FLOP_PER_IMAGE = 35.1e9
# Dense bf16 peaks in Tflop/s, by words of the GPU's name.
PEAKS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def measure(repeats: int, quick: bool) -> Result:
    """Images per second of the bare encoder on resident tensors, and of calls as an encoder actor makes them."""
    if not torch.cuda.is_available():
        return Result("gpu", "no GPU here: nothing measured", ())
    import open_clip

    torch.manual_seed(0)
    model: Any = open_clip.create_model(MODEL).eval().requires_grad_(False).cuda()
    batches = 4 if quick else BATCHES
    pixels = np.random.default_rng(0).integers(0, 255, (batches * BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    pipeline = PixelPipeline(model.encode_image, mean, std, BATCH, torch.device("cuda"), "bf16")
    resident = torch.randn(BATCH, 3, SIZE, SIZE, device="cuda").contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            for _ in range(batches):
                model.encode_image(resident)
        torch.cuda.synchronize()

    def calls() -> None:
        for start in range(0, len(pixels), CALL):
            pipeline(pixels[start : start + CALL])

    rates = _rates({"bare encoder": bare, "pipeline": calls}, batches * BATCH, repeats)
    return _result(rates)


def _rates(functions: dict[str, Callable[[], Any]], images: int, repeats: int) -> dict[str, float]:
    """Images per second of each, the median of repeats in turn."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if repeat:
                found[name].append(images / (time.perf_counter() - started))
    return {name: float(np.median(values)) for name, values in found.items()}


def peak_of(name: str) -> int | None:
    """A GPU's dense bf16 peak in Tflop/s; an A10G is no A10."""
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def _result(rates: dict[str, float]) -> Result:
    name = torch.cuda.get_device_name()
    peak = peak_of(name)
    figures: dict[str, Any] = {f"{what}, images/s": rate for what, rate in rates.items()}
    figures["pipeline over bare encoder"] = rates["pipeline"] / rates["bare encoder"]
    for what, rate in rates.items():
        reached = rate * FLOP_PER_IMAGE / 1e12
        figures[f"{what}, Tflop/s"] = reached
        figures[f"{what}, share of peak, %"] = 100 * reached / peak if peak else "peak of this GPU not known"
    return Result("gpu", f"{MODEL} in bf16, batches of {BATCH}", (), figures)
