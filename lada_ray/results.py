"""What a stream leaves for people: matrix, metrics, bad images, report."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from lada_ray.config import StreamConfig, mlflow_uri
from lada_ray.console import Console
from lada_ray.domains.base import read_bytes
from lada_ray.evaluate import Row
from lada_ray.features.fill import Images
from lada_ray.metrics import stream_metrics
from lada_ray.report import (
    BadImage,
    ClassAccuracy,
    Example,
    PackInfo,
    ReportData,
    print_table,
    report_html,
    thumbnail,
)
from lada_ray.store import Store, is_remote, join


@dataclass(frozen=True)
class StreamResult:
    """What `run_stream` returns.

    Attributes:
        accuracy: rows = learnt so far, columns = domains, in %.
        metrics: transfer, average, last, forgetting, backward_transfer, zero_shot (in %), zero_shot_per_domain, and
            images_encoded.
        model_path: the folder for `LadaModel.load`.
        folder: the run's folder.
        digests: of the task packs, in order.
    """

    accuracy: pd.DataFrame
    metrics: dict[str, Any]
    model_path: str
    folder: str
    digests: tuple[str, ...] = ()


@dataclass
class Story:
    """What the report tells besides the numbers."""

    subtitle: str = ""
    timings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    wall_seconds: float = 0.0
    counts: Mapping[str, int | float | str] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    config: str = ""


def accuracy_table(rows: Sequence[Row]) -> pd.DataFrame:
    """The accuracy matrix: rows = learnt so far, columns = domains, in %."""
    table = pd.DataFrame([row.accuracy() for row in rows], index=[row.learnt for row in rows])
    table.index.name = "learnt"
    return table


def metrics_of(accuracy: pd.DataFrame, zero_shot: Row, images_encoded: int) -> dict[str, Any]:
    """The content of metrics.json, in %; None where a metric is undefined (one domain alone)."""
    per_domain = zero_shot.accuracy()
    means = {name: _finite(value) for name, value in stream_metrics(accuracy).means().items()}
    return {
        **means,
        "zero_shot": sum(per_domain.values()) / len(per_domain),
        "zero_shot_per_domain": per_domain,
        "images_encoded": images_encoded,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write_results(store: Store, accuracy: pd.DataFrame, metrics: Mapping[str, Any], images: Images) -> bool:
    """Write accuracy_matrix.csv, metrics.json and bad_images.csv into a run's folder.

    Returns:
        False if all of them, and a report, were there already and say the same.
    """
    bad = [(image.domain, image.path, image.reason) for image in bad_images(images)]
    files = {
        "accuracy_matrix.csv": accuracy.to_csv().encode(),
        "metrics.json": json.dumps(metrics, indent=1, ensure_ascii=False).encode(),
        "bad_images.csv": _csv(["domain", "path", "reason"], bad),
    }
    old = {key: store.read_version(key) for key in files}
    if store.exists("report.html") and all(found and found[0] == files[key] for key, found in old.items()):
        return False
    # The report is made after these; without it the next start makes it again.
    store.delete("report.html")
    for key, data in files.items():
        store.write(key, data)
    return True


def write_overlaps(store: Store, pairs: Sequence[tuple[str, str, str]]) -> None:
    """Write overlaps.csv, if there are any: (domain, training image, test image with the same content)."""
    if pairs:
        store.write("overlaps.csv", _csv(["domain", "train", "test"], pairs))


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode(errors="surrogateescape")


def bad_images(images: Images) -> list[BadImage]:
    """All images that were wanted and cannot be used."""
    return [BadImage(s.domain.name, bad.uri, bad.reason) for s in images.selections for bad in s.bad]


def write_report(
    store: Store,
    accuracy: pd.DataFrame,
    rows: tuple[Row, Row],
    packs: Sequence[str],
    images: Images,
    examples: Sequence[Mapping[str, Any]],
    story: Story,
) -> None:
    """Write report.html into a run's folder.

    Args:
        store: the run's folder.
        accuracy: the matrix.
        rows: the zero-shot row and the newest row.
        packs: digests of the model's packs.
        images: all images of the run.
        examples: from `evaluate.predict_examples`.
        story: the rest.
    """
    before, now = rows
    data = ReportData(
        name=store.uri.rpartition("/")[2],
        accuracy=accuracy,
        zero_shot=before.accuracy(),
        subtitle=story.subtitle,
        folder=store.uri,
        finished=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        classes={
            s.domain.name: _classes(s.domain.name, s.domain.class_names, before, now)
            for s in images.selections
        },
        timings=story.timings,
        wall_seconds=story.wall_seconds,
        counts=story.counts,
        examples=[_example(images, example) for example in examples],
        bad_images=bad_images(images),
        packs=[_pack_info(store, digest) for digest in packs],
        config=story.config,
        commands=story.commands,
        notes=story.notes,
    )
    store.write("report.html", report_html(data).encode())


def _classes(domain: str, names: Sequence[str], before: Row, now: Row) -> list[ClassAccuracy]:
    counts = zip(names, now.correct[domain], now.total[domain], before.correct[domain], strict=True)
    return [ClassAccuracy(name, right, total, zero_shot) for name, right, total, zero_shot in counts]


def _example(images: Images, example: Mapping[str, Any]) -> Example:
    selection = next(s for s in images.selections if s.domain.name == example["domain"])
    sample = selection.test[example["row"]]
    return Example(
        image=thumbnail(read_bytes(sample.uri)),
        path=sample.path,
        true=tuple(example["truth"]),
        predicted=tuple(example["predicted"]),
        zero_shot=tuple(example["zero_shot"]),
    )


def _pack_info(store: Store, digest: str) -> PackInfo:
    record = json.loads(store.read(f"tasks/{digest}.json"))
    return PackInfo(
        record["domain"], digest, record["parent"], record["finished"], record["counts"]["pack_bytes"]
    )


def tell_story(
    config: StreamConfig,
    folder: str,
    images: Images,
    metrics: Mapping[str, Any],
    busy: Mapping[str, float],
    console: Console,
) -> Story:
    """What the report tells besides the numbers."""
    shots = "all images" if config.shots is None else f"{config.shots} shots"
    method, model = config.method.kind.upper(), config.encoder.model
    return Story(
        subtitle=f"{method}, {model}, {shots}, {config.views} views, seed {config.seed}",
        timings={"wall clock": dict(console.seconds), "busy workers": busy},
        wall_seconds=console.wall_seconds,
        counts={
            "domains": len(images.selections),
            "classes": sum(len(s.domain.class_names) for s in images.selections),
            "training images": sum(len(s.train) for s in images.selections),
            "test images": sum(len(s.test) for s in images.selections),
            "image views used": len(images.pairs()),
            "of them encoded by this run": metrics["images_encoded"],
            "bad images": len(images.bad),
        },
        commands=next_steps(config, folder),
        notes=list(console.notes),
        config=config.without_password().to_yaml(),
    )


def next_steps(config: StreamConfig, folder: str) -> list[tuple[str, str]]:
    """What to do with a finished run: (what it does, the exact command)."""
    python = shlex.quote(_near(sys.executable))
    job = _near(sys.argv[0]) if sys.argv[0].endswith("run_stream.py") else "jobs/run_stream.py"
    code = f'import lada_ray; print(lada_ray.load({json.dumps(join(folder, "model"))}).predict("IMAGE"))'
    uri = config.without_password().tracking.uri or mlflow_uri(None, config.storage, os.environ)
    look = (
        f"{python} -m mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite:") else uri
    )
    steps = [("ask the model", f"{python} -c {shlex.quote(code)}"), ("look at the tracked run", look)]
    if not is_remote(folder):
        change, name = (
            (["--method.beta", "2"], "beta-2")
            if config.method.trains
            else (["--method.kind", "lada"], "lada")
        )
        again = [job, "--config", join(folder, "config.yaml"), *change, "--name", f"{config.name}-{name}"]
        steps.append(("run it another way", f"{python} {shlex.join(again)}"))
    return steps


def _near(path: str) -> str:
    """The path as one would type it here."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def show(config: StreamConfig, result: StreamResult, console: Console) -> None:
    """Print a finished run: the table, where everything lies, and what to do next."""
    print_table(result.accuracy, result.metrics["zero_shot_per_domain"], console.rich)
    lines = [("report", join(result.folder, "report.html")), ("model", result.model_path)]
    for what, where in [*lines, *next_steps(config, result.folder)]:
        console.say(f"{what}:\n  {where}")
    encoded = result.metrics["images_encoded"]
    console.say(f"{console.wall_seconds:.0f} s; the run has encoded {encoded} image views")
