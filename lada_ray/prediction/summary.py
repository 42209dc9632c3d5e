"""Counts and shares of a batch of predictions: summary.json, and the table at the end."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.table import Table

from lada_ray.console import Console
from lada_ray.prediction.asked import Asked
from lada_ray.prediction.drift import Drift
from lada_ray.prediction.folder import BAD
from lada_ray.prediction.parts import Outcome


def summarise(asked: Asked, total: Outcome) -> dict[str, Any]:
    """Counts and shares for summary.json.

    Returns:
        images, predicted, bad, others (files that are no images); domains: of each, how many images were predicted as
        its classes, and how many of them are outliers; seen, unseen, share_unseen (of the predicted ones); unknown
        (null unless asked for); drift (`Drift`; null if the model is not calibrated); classes (those that occur).
    """
    predicted = sum(total.classes.values())
    unseen = sum(n for j, n in total.classes.items() if j >= asked.seen)
    return {
        "images": asked.listing.images,
        "predicted": predicted,
        "bad": asked.listing.images - predicted,
        "others": asked.listing.others,
        "domains": _domains(asked, total),
        "seen": predicted - unseen,
        "unseen": unseen,
        "share_unseen": _share(unseen, predicted),
        "unknown": None if asked.options.unknown is None else total.unknown,
        "drift": Drift.of(total.residuals, total.outliers.total()).to_json() if asked.drift else None,
        "classes": [
            {"domain": asked.names[j][0], "class": asked.names[j][1], "images": n}
            for j, n in sorted(total.classes.items())
        ],
    }


def _domains(asked: Asked, total: Outcome) -> dict[str, dict[str, Any]]:
    """Images and outliers by predicted domain."""
    images, outliers = Counter[str](), Counter[str]()
    for j, (domain, _) in enumerate(asked.names[: asked.seen]):
        images[str(domain)] += total.classes[j]
        outliers[str(domain)] += total.outliers[j]
    return {
        name: {"images": n, "outliers": outliers[name], "share_outliers": _share(outliers[name], n)}
        if asked.drift
        else {"images": n}
        for name, n in images.items()
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def show(folder: str, summary: dict[str, Any], new: bool, console: Console) -> None:
    """Print a table of images by predicted domain, what they say together, and where everything lies.

    Args:
        folder: that was written to.
        summary: content of its summary.json.
        new: whether this start has looked at any image.
        console: prints.
    """
    console.rich.print(_table(summary))
    if summary["unknown"] is not None:
        share = 100 * summary["unknown"] / summary["predicted"]
        console.say(f"unknown: {summary['unknown']} images ({share:.1f} %) score below what was asked")
    if summary["drift"] is not None:
        for line in Drift.from_json(summary["drift"]).words:
            console.say(line)
    if summary["bad"]:
        console.say(f"bad: {summary['bad']} of {summary['images']} images, listed in {folder}/{BAD}")
    console.say(f"{summary['predicted']} images{_pace(summary) if new else ', nothing new'}")


def _table(summary: dict[str, Any]) -> Table:
    drift = summary["drift"] is not None
    table = Table("predicted", "images", "share", *(["outliers"] if drift else []))
    for column in table.columns[1:]:
        column.justify = "right"
    rows = list(summary["domains"].items())
    if summary["of"]["classes"]:
        rows.append(
            ("unseen classes", {"images": summary["unseen"], "share_outliers": _unseen_outliers(summary)})
        )
    for name, counts in rows:
        cells = [counts["images"] / summary["predicted"], *([counts["share_outliers"]] if drift else [])]
        table.add_row(name, str(counts["images"]), *(_percent(cell) for cell in cells))
    return table


def _unseen_outliers(summary: dict[str, Any]) -> float | None:
    """The share of outliers among images of unseen classes: those that no domain has."""
    if summary["drift"] is None:
        return None
    elsewhere = sum(counts["outliers"] for counts in summary["domains"].values())
    return _share(summary["drift"]["outliers"] - elsewhere, summary["unseen"])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _pace(summary: dict[str, Any]) -> str:
    """How long it took, and how fast it was."""
    rate = (
        f", {summary['images_per_second']:g} images/s after the start" if summary["images_per_second"] else ""
    )
    return f" in {summary['seconds']:g} s ({summary['start_seconds']:g} s to start){rate}"
