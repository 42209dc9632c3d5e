"""A whole stream against the published procedure: the same data, encoder and accuracy; encodings of both."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.result import Bar, Result
from benchmarks.timing import fresh
from lada_ray.cluster import join_while_importing
from lada_ray.config import StreamConfig
from lada_ray.console import IMPORTS, START_ENCODERS, START_RAY, START_WORKERS, Console

CORES = 2
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ORDER = ("caltech101", "dtd", "grocery", "mnist", "pacs_sketch", "rsscn7_satellite")
WITHOUT_VIEWS = ("mnist", "rsscn7_satellite")
# What a long-lived cluster has done before: processes that start, and load what they need.
START_UP = (IMPORTS, START_RAY, "encoder", START_ENCODERS, START_WORKERS, "start training workers")


def measure(repeats: int, quick: bool) -> Result:
    """The six real domains where they are, else the demo's; both ways in turn, with an empty and a filled bank."""
    found: dict[str, list[Any]] = {name: [] for name in ("empty", "filled", "published", "database")}
    for _ in range(1 if quick else min(3, repeats)):
        with tempfile.TemporaryDirectory(prefix="lada-bench-") as folder:
            given = {"storage": folder, "quick": quick}
            for name in ("empty", "filled"):
                found[name].append(fresh("stream:run_product", name=name, **given)["value"])
            found["published"].append(fresh("stream:run_published", **given)["value"])
            found["database"].append(fresh("stream:create_database", folder=folder)["value"])
    return _result(found, "six real domains" if _has_shared() else "the demo's six domains")


def _net(run: Mapping[str, Any]) -> float:
    return run["seconds"] - sum(run["start_up"].values())


def _result(found: Mapping[str, list[Any]], what: str) -> Result:
    published = found["published"][0]
    seconds = median(p["seconds"] for p in found["published"])
    with_start_up = median(p["seconds"] + p["start_up"] for p in found["published"])
    net = {name: median(map(_net, found[name])) for name in ("empty", "filled")}
    whole = {name: median(run["seconds"] for run in found[name]) for name in net}
    theirs = _means(np.array(published["accuracy"]))
    ours = {name: found["empty"][0]["metrics"][name] for name in theirs}
    bars = (
        Bar("times faster, bank empty, start-up excluded", seconds / net["empty"], "at least", 3),
        Bar("times faster, bank filled, start-up excluded", seconds / net["filled"], "at least", 10),
        Bar("times faster, bank filled, start-up included", with_start_up / whole["filled"], "at least", 4),
        Bar("Average off by", abs(ours["average"] - theirs["average"]), "at most", 0.6),
        Bar("Last off by", abs(ours["last"] - theirs["last"]), "at most", 0.6),
    )
    figures: dict[str, Any] = {
        "times faster, bank empty, start-up included": with_start_up / whole["empty"],
        "published, s": seconds,
        "published, its start-up, s": with_start_up - seconds,
    }
    for name in net:
        figures[f"{name} bank, s"] = net[name]
        figures[f"{name} bank with start-up, s"] = whole[name]
        for stage in START_UP:
            value = median(run["start_up"][stage] for run in found[name])
            figures[f"start-up, {name} bank: {stage}, s"] = value
    figures |= {f"{name}, published / ours": f"{theirs[name]:.2f} / {ours[name]:.2f}" for name in theirs}
    figures["creating an MLflow database (beside the run of an empty bank, and counted there), s"] = median(
        found["database"]
    )
    encoded = [found[name][0]["metrics"]["images_encoded"] for name in net]
    figures["images encoded, published / empty bank / filled bank"] = (
        f"{published['encoded']} / {encoded[0]} / {encoded[1]}"
    )
    return Result("stream", f"{what}, against the published procedure", bars, figures)


def _means(accuracy: np.ndarray) -> dict[str, float]:
    import pandas as pd  # not above, like all that is heavy: what a fresh process imports is timed

    from lada_ray.metrics import stream_metrics

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


def run_product(storage: str, quick: bool, name: str) -> dict[str, Any]:
    """Run the stream as its job does, in a process of its own: seconds since that started, what start-up took."""
    console = Console.of_process()
    console.quiet = True
    join_while_importing(console, "lada_ray.plan", "lada_ray.stream", "lada_ray.tracking.ahead")
    import ray

    from lada_ray.stream import run_stream

    config = stream_config(Path(storage), quick).model_copy(update={"name": name})
    result = run_stream(config, console=console)
    seconds = console.wall_seconds
    ray.shutdown()
    return {
        "seconds": seconds,
        "start_up": {stage: console.seconds.get(stage, 0.0) for stage in START_UP},
        "metrics": {k: result.metrics[k] for k in ("transfer", "average", "last", "images_encoded")},
    }


def run_published(storage: str, quick: bool) -> dict[str, Any]:
    """The published procedure, in a process of its own; listing is not timed.

    Its start-up: the process itself, imports of what it needs, and loading the encoder.
    """
    console = Console.of_process()
    console.quiet = True
    with console.stage(IMPORTS):
        import open_clip  # noqa: F401
        import sklearn.mixture  # noqa: F401
        import torch

    import ray

    from benchmarks.published import Published
    from lada_ray.encoder import load_encoder
    from lada_ray.features.fill import choose_images
    from lada_ray.prepare import check_input, prepare

    config, untimed = stream_config(Path(storage), quick), Console(quiet=True)
    domains, spec = check_input(config, untimed)
    stream = prepare(config, domains, spec, untimed)
    images = choose_images(domains, stream.index, stream.choice, "bench", lambda what, done, total: None)
    ray.shutdown()
    torch.set_num_threads(CORES)
    with console.stage("encoder"):
        encoder = load_encoder(replace(stream.spec, precision="fp32"), "cpu")
    published = Published(stream, images, encoder)
    time.sleep(1)  # Ray's processes end
    outcome = published.run()
    return {
        "accuracy": outcome.accuracy.tolist(),
        "seconds": outcome.seconds,
        "encoded": outcome.encoded,
        "start_up": sum(console.seconds.values()),
    }


def create_database(folder: str) -> float:
    """Seconds that MLflow takes to make its database."""
    import mlflow

    started = time.perf_counter()
    mlflow.MlflowClient(f"sqlite:///{folder}/made.db").search_experiments()
    return time.perf_counter() - started
