"""The extraction pipeline, against a bare PyTorch DataLoader loop and against the encoder alone."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.result import Bar, Result
from lada_ray.cluster import settle_resources
from lada_ray.config import EncoderConfig, ResourceConfig
from lada_ray.encoder import Encoder, EncoderSpec, load_encoder, resolve_encoder
from lada_ray.features.bank import FeatureBank
from lada_ray.features.extract import Gap, Pool, extract, render_image
from lada_ray.store import open_store
from lada_ray.views import TEST_VIEW

CORES = 2
WORKERS = 2
# Images of the shorter of two passes: more than the pipeline decodes ahead while its encoders start.
IMAGES = {"light": 8192, "heavy": 1024}
QUICK_IMAGES = 1024
IN_MEMORY = 512


def measure(repeats: int, quick: bool) -> Result:
    """Images per second with a light and a heavy encoder, both ways in turn."""
    import ray

    bars: list[Bar] = []
    figures: dict[str, float] = {}
    ray.init("local", num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level=40)
    try:
        with tempfile.TemporaryDirectory(prefix="lada-bench-") as folder:
            for name, spec in _encoders(Path(folder), quick).items():
                images = QUICK_IMAGES if quick else IMAGES[name]
                found = compare(spec, images, 1 if quick else min(3, repeats), Path(folder) / name)
                figures |= {f"{name}: {key}": value for key, value in found.items()}
                ratio = found["pipeline, images/s"] / found["DataLoader, images/s"]
                bars.append(Bar(f"{name} encoder, rate over the DataLoader's", ratio, "at least", 0.95))
    finally:
        ray.shutdown()
    return Result("extract", f"images through the pipeline on {CORES} cores", tuple(bars), figures)


def _encoders(folder: Path, quick: bool) -> dict[str, EncoderSpec]:
    light = resolve_encoder(EncoderConfig(model="demo-clip", pretrained="demo"), "fp32")
    if quick:
        return {"light": light}
    weights = folder / "vit-b-32.pt"
    save_random_weights("ViT-B-32", weights)
    config = EncoderConfig(model="ViT-B-32", pretrained=str(weights), quick_gelu=False)
    return {"light": light, "heavy": resolve_encoder(config, "fp32")}


def save_random_weights(model: str, path: Path) -> None:
    """Write the weights of an untrained open_clip model."""
    import open_clip
    import torch

    torch.manual_seed(0)
    torch.save(open_clip.create_model(model).state_dict(), path)


def compare(spec: EncoderSpec, images: int, repeats: int, folder: Path) -> dict[str, float]:
    """Both loops in turn on the same files, and the encoder on pixels in memory.

    A loop's rate is that of the second half of a pass: what twice as many images take longer than the first half alone,
    both without the start of encoders, which takes longer while those of a pass just before end. So start-up does not
    count, nor what is decoded meanwhile.
    """
    import torch

    torch.set_num_threads(CORES)
    gaps = draw_images(folder / "images", 2 * images, spec.preprocess.size)
    encoder = load_encoder(spec, "cpu")
    loops: dict[str, Callable[[Sequence[Gap]], tuple[float, float]]] = {
        "pipeline": lambda some: run_pipeline(some, spec, encoder, folder),
        "DataLoader": lambda some: run_loader(some, spec, encoder),
    }
    rates: dict[str, list[float]] = {name: [] for name in [*loops, "encoder alone"]}
    whole: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            (once, start), (twice, later_start) = loop(gaps[:images]), loop(gaps)
            whole[name].append(once)
            rates[name].append(images / ((twice - later_start) - (once - start)))
        rates["encoder alone"].append(run_encoder(encoder, min(images, 4 * IN_MEMORY)))
    found = {f"{name}, images/s": median(some) for name, some in rates.items()}
    return {**found, **{f"{name}, {images} images with start-up, s": median(s) for name, s in whole.items()}}


def draw_images(folder: Path, number: int, size: int) -> list[Gap]:
    """JPEG files of about four times the encoder's pixels."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    gaps = []
    for i in range(number):
        coarse = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        path = folder / f"{i}.jpg"
        Image.fromarray(coarse).resize((2 * size, 2 * size), Image.Resampling.BICUBIC).save(path, quality=90)
        gaps.append(Gap(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), (TEST_VIEW,)))
    return gaps


def run_pipeline(
    gaps: Sequence[Gap], spec: EncoderSpec, encoder: Encoder, folder: Path
) -> tuple[float, float]:
    """The product's: Ray Data, as many encoder actors as it would settle on, features into a new bank.

    Returns:
        Seconds, and those of them until the first encoder began, less what was decoded by then.
    """
    info, pool = encoder.info(), Pool.of(settle_resources(ResourceConfig()))
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        bank = FeatureBank(open_store(empty), info.feature_key, info.width)
        started = time.perf_counter()
        done = extract(gaps, spec, bank, pool, "bench", lambda done, total: None)
        return time.perf_counter() - started, done.start_s


class Files:
    """A PyTorch data set of the deterministic views of images."""

    def __init__(self, gaps: Sequence[Gap], spec: EncoderSpec) -> None:
        self.gaps, self.preprocess = gaps, spec.preprocess

    def __len__(self) -> int:
        return len(self.gaps)

    def __getitem__(self, index: int) -> Any:
        gap = self.gaps[index]
        return render_image(gap.uri, gap.views, self.preprocess, gap.sha256).pixels[0]


def run_loader(gaps: Sequence[Gap], spec: EncoderSpec, encoder: Encoder) -> tuple[float, float]:
    """A DataLoader with two workers, and the same encoder in this process; features are kept in memory.

    Returns:
        Seconds, and 0: its workers are there at once.
    """
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(Files(gaps, spec), batch_size=64, num_workers=WORKERS)  # type: ignore[arg-type]
    started = time.perf_counter()
    kept = [encoder.encode_pixels(pixels.numpy()) for pixels in loader]
    seconds = time.perf_counter() - started
    assert sum(map(len, kept)) == len(gaps)
    return seconds, 0.0


def run_encoder(encoder: Encoder, number: int) -> float:
    """The limit: pixels that are in memory already; images per second."""
    size = encoder.spec.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 255, (IN_MEMORY, size, size, 3)).astype(np.uint8)
    encoder.encode_pixels(pixels[:64])
    started = time.perf_counter()
    for _ in range(number // IN_MEMORY):
        encoder.encode_pixels(pixels)
    return number / (time.perf_counter() - started)
