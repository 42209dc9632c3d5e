"""A whole stream against the published procedure: the same data, encoder and accuracy; encodings of both."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.published import Outcome, Published
from benchmarks.result import Bar, Result
from lada_ray.config import StreamConfig
from lada_ray.console import START_WORKERS, Console
from lada_ray.metrics import stream_metrics

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ORDER = ("caltech101", "dtd", "grocery", "mnist", "pacs_sketch", "rsscn7_satellite")
WITHOUT_VIEWS = ("mnist", "rsscn7_satellite")
# What a long-lived cluster has done before: processes that start, and load what they need.
START_UP = (
    "imports", "start Ray", "encoder", "start encoders", START_WORKERS, "start training workers"
)  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """A run of the product: its wall seconds, start-up by stage, and what it came to."""

    seconds: float
    start_up: Mapping[str, float]
    metrics: Mapping[str, Any]

    @property
    def net(self) -> float:
        """Seconds without start-up."""
        return self.seconds - sum(self.start_up.values())


def measure(repeats: int, quick: bool) -> Result:
    """The six real domains where they are, else the demo's; both ways in turn, with an empty and a filled bank."""
    found: dict[str, list[Any]] = {"empty": [], "filled": [], "published": []}
    for _ in range(1 if quick else min(3, repeats)):
        with tempfile.TemporaryDirectory(prefix="lada-bench-") as folder:
            config = stream_config(Path(folder), quick)
            found["empty"].append(run_product(config, "empty"))
            found["filled"].append(run_product(config, "filled"))
            found["published"].append(run_published(config))
    return _result(found, "six real domains" if _has_shared() else "the demo's six domains")


def _result(found: Mapping[str, list[Any]], what: str) -> Result:
    published: Outcome = found["published"][0]
    seconds = median(p.seconds for p in found["published"])
    empty, filled = (median(t.net for t in found[name]) for name in ("empty", "filled"))
    whole = median(t.seconds for t in found["filled"])
    theirs = _means(published.accuracy)
    ours = {name: found["empty"][0].metrics[name] for name in theirs}
    bars = (
        Bar("times faster, bank empty, start-up excluded", seconds / empty, "at least", 3),
        Bar("times faster, bank filled, start-up excluded", seconds / filled, "at least", 10),
        Bar("times faster, bank filled, start-up included", seconds / whole, "at least", 4),
        Bar("Average off by", abs(ours["average"] - theirs["average"]), "at most", 0.6),
        Bar("Last off by", abs(ours["last"] - theirs["last"]), "at most", 0.6),
    )
    figures: dict[str, Any] = {"published, s": seconds, "empty bank, s": empty, "filled bank, s": filled}
    figures["times faster, bank empty, start-up included"] = seconds / median(
        t.seconds for t in found["empty"]
    )
    for name in ("empty", "filled"):
        for stage in START_UP:
            value = median(t.start_up[stage] for t in found[name])
            figures[f"start-up, {name} bank: {stage}, s"] = value
    figures |= {f"{name}, published / ours": f"{theirs[name]:.2f} / {ours[name]:.2f}" for name in theirs}
    encoded = [found[name][0].metrics["images_encoded"] for name in ("empty", "filled")]
    figures["images encoded, published / empty bank / filled bank"] = (
        f"{published.encoded} / {encoded[0]} / {encoded[1]}"
    )
    return Result("stream", f"{what}, against the published procedure", bars, figures)


def _means(accuracy: np.ndarray) -> dict[str, float]:
    names = [f"{i}" for i in range(accuracy.shape[1])]
    means = stream_metrics(pd.DataFrame(accuracy, names, names)).means()
    return {name: means[name] for name in ("transfer", "average", "last")}


def _has_shared() -> bool:
    return (SHARED / "domains").is_dir()


def stream_config(storage: Path, quick: bool) -> StreamConfig:
    """The stream, as its published figures have it; quick: few epochs and views."""
    few = {"views": 2, "method.epochs": 2} if quick else {}
    if not _has_shared():
        return StreamConfig.from_yaml("demo", {"storage": str(storage), **few})
    encoder = SHARED / "encoder" / "lab-clip-64"
    domains = [
        {"name": name, "kind": "folder", "root": str(SHARED / "domains" / name),
         "augment": "none" if name in WITHOUT_VIEWS else "crop_flip"}
        for name in ORDER
    ]  # fmt: skip
    values: dict[str, Any] = {
        "name": "stream",
        "storage": str(storage),
        "encoder": {
            "model": "lab-clip-64", "architecture": f"{encoder}.json", "pretrained": f"{encoder}.safetensors"
        },
        "domains": domains,
    }  # fmt: skip
    if quick:
        values |= {"views": 2, "method": {"epochs": 2}}
    return StreamConfig(**values)


def run_product(config: StreamConfig, name: str) -> Timed:
    """Run the stream as its job does, with a Ray of its own."""
    import ray

    from lada_ray.stream import run_stream

    console = Console(quiet=True)
    result = run_stream(config.model_copy(update={"name": name}), console=console)
    seconds = console.wall_seconds
    ray.shutdown()
    start_up = {stage: console.seconds.get(stage, 0.0) for stage in START_UP}
    return Timed(seconds, start_up, result.metrics)


def run_published(config: StreamConfig) -> Outcome:
    """The published procedure, in this process; listing and loading are not timed."""
    import ray
    import torch

    from lada_ray.encoder import load_encoder
    from lada_ray.features.fill import choose_images
    from lada_ray.prepare import check_input, prepare

    console = Console(quiet=True)
    domains, spec = check_input(config, console)
    stream = prepare(config, domains, spec, console)
    images = choose_images(domains, stream.index, stream.choice, "bench", lambda what, done, total: None)
    ray.shutdown()
    torch.set_num_threads(2)
    published = Published(stream, images, load_encoder(replace(stream.spec, precision="fp32"), "cpu"))
    time.sleep(1)  # Ray's processes end
    return published.run()
