"""What is logged of rows, tasks and configurations: metrics, params, and names that MLflow accepts."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lada_ray.tracking.folder import LoggedRow, TaskResult

if TYPE_CHECKING:
    from mlflow.entities import Metric


def metric_name(*parts: str) -> str:
    """Make a metric's name that MLflow accepts.

    Args:
        parts: such as "accuracy" and a domain's name.

    Returns:
        the parts joined by slashes; characters other than letters, digits and `_-.: ` become `_`.
    """
    cleaned = [re.sub(r"[^\w\-.: ]", "_", part) for part in parts]
    return "/".join("_" * len(part) if part in (".", "..") else part for part in cleaned)[:250]


def milliseconds(moment: str | float | None) -> int:
    """Read an ISO time or unix seconds; the present when there is none."""
    if not moment:
        return round(time.time() * 1000)
    seconds = datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else moment
    return round(seconds * 1000)


def points(values: Mapping[str, Any], timestamp: int, step: int) -> list[Metric]:
    """Make MLflow's metrics of the numbers among the values (timestamp in ms)."""
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), timestamp, step)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def zero_shot_points(row: LoggedRow) -> list[Metric]:
    """Metrics of the parent before learning: step 0 of its curves."""
    return points(_row_values(row), milliseconds(row.written), step=0)


def curve_points(row: LoggedRow, position: int, learnt: Sequence[str]) -> list[Metric]:
    """Metrics of the parent after a task. The row's own time makes logging it twice the same as once."""
    known = learnt[: position + 1]
    seen = [value for domain, value in row.accuracy.items() if domain in known]
    unseen = [value for domain, value in row.accuracy.items() if domain not in known]
    values = _row_values(row) | {"seen_accuracy": _mean(seen), "unseen_accuracy": _mean(unseen)}
    return points(values, milliseconds(row.written), step=position + 1)


def task_points(task: TaskResult) -> list[Metric]:
    """Accuracy row, losses, timings and counts of a task, stamped with recorded times: twice is as once."""
    started = milliseconds(task.record.get("started"))
    finished = milliseconds(task.record.get("finished"))
    times, counts = task.record.get("timings", {}), task.record.get("counts", {})
    values = {metric_name("time", stage): seconds for stage, seconds in times.items()}
    values |= {metric_name("count", name): count for name, count in counts.items()}
    metrics = points(values, finished, step=0)
    losses = task.record.get("loss", [])
    for epoch, loss in enumerate(losses, start=1):
        moment = started + (finished - started) * epoch // len(losses)
        metrics += points({"loss": loss}, moment, step=epoch)
    if task.row:
        metrics += points(_row_values(task.row), milliseconds(task.row.written), step=len(task.row.row.total))
    return metrics


def task_params(task: TaskResult) -> dict[str, Any]:
    """What a task was learnt with."""
    return {"domain": task.domain, "position": task.position + 1, **task.record.get("params", {})}


def flat_params(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration into MLflow params.

    Args:
        config: nested mappings, as `config.yaml` holds them.
        prefix: put before each name.

    Returns:
        "method.beta" -> 1.0 and so on; domains by name; without storage, resources and tracking, which say
        nothing about what was learnt, and may hold passwords.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in ("storage", "resources", "tracking"):
            continue
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{key}.")
        elif key == "domains" and not prefix:
            flat[key] = ", ".join(str(one.get("name", one)) for one in value)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _row_values(row: LoggedRow) -> dict[str, float]:
    accuracies = {metric_name("accuracy", domain): value for domain, value in row.accuracy.items()}
    return accuracies | {"mean_accuracy": _mean(list(row.accuracy.values()))}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
