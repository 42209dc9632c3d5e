"""Pixels through an encoder on any device: what an encoder does with uint8 images; needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class PixelPipeline:
    """Encodes uint8 pixels in batches of one fixed, padded size.

    On a GPU bytes travel, not floats: from pinned memory, while the batch before is encoded; they are normalised
    there, in channels-last order, and features come back when all batches are on their way.

    Args:
        encode: [batch, 3, size, size] float32 -> features [batch, d].
        mean: of the red, green and blue values in [0, 1].
        std: likewise.
        batch: images encoded at once.
        device: where.
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        batch: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.encode, self.batch, self.device, self.precision = encode, batch, device, precision
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Raw features [n, d] of pixels [n, size, size, 3], n >= 1."""
        features = [self._encode(images) for images in self._batches(pixels)]
        return torch.cat(features)[: len(pixels)].cpu().numpy()

    def _batches(self, pixels: npt.NDArray[np.uint8]) -> Iterator[Tensor]:
        """Batches on the device; on a GPU the next one is on its way while one is encoded."""
        starts = range(0, len(pixels), self.batch)
        if self.device.type != "cuda":
            yield from (self._padded(pixels, start) for start in starts)
            return
        copying, ahead = torch.cuda.Stream(self.device), None
        for start in starts:
            with torch.cuda.stream(copying):
                moved = self._padded(pixels, start).pin_memory().to(self.device, non_blocking=True)
            if ahead is not None:
                yield ahead
            torch.cuda.current_stream(self.device).wait_stream(copying)
            moved.record_stream(torch.cuda.current_stream(self.device))
            ahead = moved
        if ahead is not None:
            yield ahead

    def _padded(self, pixels: npt.NDArray[np.uint8], start: int) -> Tensor:
        """[batch, size, size, 3] uint8."""
        part = pixels[start : start + self.batch]
        whole = np.zeros((self.batch, *pixels.shape[1:]), np.uint8)
        whole[: len(part)] = part
        return torch.from_numpy(whole)

    def _encode(self, images: Tensor) -> Tensor:
        # Images lie channels last, and stay so: only the strides are permuted.
        floats = (images.permute(0, 3, 1, 2).float() / 255.0 - self._mean) / self._std
        with (
            full_float32(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            return self.encode(floats).float()


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 without TF32's ten bits, which torch allows in convolutions (patch embeddings) on its own."""
    backends: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
