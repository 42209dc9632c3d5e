"""What a finished (or half-finished) stream leaves for people: matrix, metrics, bad images, report."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from lada_ray.domains.base import read_bytes
from lada_ray.evaluate import Row
from lada_ray.features.fill import Images
from lada_ray.metrics import stream_metrics
from lada_ray.pack import TaskPack
from lada_ray.report import BadImage, ClassAccuracy, Example, PackInfo, ReportData, report_html, thumbnail
from lada_ray.store import Store


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
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["domain", "path", "reason"])
    table.writerows((bad.domain, bad.path, bad.reason) for bad in bad_images(images))
    files = {
        "accuracy_matrix.csv": accuracy.to_csv().encode(),
        "metrics.json": json.dumps(metrics, indent=1, ensure_ascii=False).encode(),
        "bad_images.csv": text.getvalue().encode(errors="surrogateescape"),
    }
    old = {key: store.read_version(key) for key in files}
    if store.exists("report.html") and all(found and found[0] == files[key] for key, found in old.items()):
        return False
    # The report is made after these; without it the next start makes it again.
    store.delete("report.html")
    for key, data in files.items():
        store.write(key, data)
    return True


def bad_images(images: Images) -> list[BadImage]:
    """All images that were wanted and cannot be used."""
    return [BadImage(s.domain.name, bad.uri, bad.reason) for s in images.selections for bad in s.bad]


def write_report(
    store: Store,
    accuracy: pd.DataFrame,
    rows: tuple[Row, Row],
    packs: Sequence[TaskPack],
    images: Images,
    examples: Sequence[Mapping[str, Any]],
    story: Story,
) -> None:
    """Write report.html into a run's folder.

    Args:
        store: the run's folder.
        accuracy: the matrix.
        rows: the zero-shot row and the newest row.
        packs: the model's packs.
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
        packs=[_pack_info(store, pack) for pack in packs],
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


def _pack_info(store: Store, pack: TaskPack) -> PackInfo:
    record = json.loads(store.read(f"tasks/{pack.digest}.json"))
    return PackInfo(pack.domain, pack.digest, pack.parent, record["finished"], pack.bytes)
