"""What a stream's results look like: the printed table, the picture, and `report.html`.

Nothing here reads storage or knows about Ray: the caller hands in plain data (`ReportData`) and gets text or
bytes. The page's layout is `report.html.jinja`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lada_ray.metrics import StreamMetrics, stream_metrics
from lada_ray.page import number, page_environment, shorten

ZERO_SHOT = "zero-shot"
METRIC_ROWS = {
    "transfer": "Transfer",
    "average": "Average",
    "last": "Last",
    "forgetting": "Forgetting",
    "backward_transfer": "BWT",
}
NUMBERS_UP_TO = 20  # domains; beyond that a cell is too small to print its accuracy in
CELL_WIDTH = len("100.0")
NAME_WIDTH = 30
PLAIN_WIDTH = 120  # columns assumed for a log file or a pipe
STAGE_COLOURS = (
    "#2f6fb2", "#e58a2b", "#3f9a6b", "#8e6bbf", "#c9504f",
    "#5fb3c8", "#b59a2d", "#d877a5", "#7a6a58", "#4a5a8c",
)  # fmt: skip
IDLE_STAGES = {"waiting": "#c9ced6", "other": "#dde1e7"}


@dataclass(frozen=True)
class ClassAccuracy:
    """Test images of one class that the last model, and zero-shot CLIP, get right.

    Attributes:
        name: the class as displayed.
        correct: images classified right by the last model.
        total: test images of the class.
        zero_shot: images classified right by zero-shot CLIP, when known.
    """

    name: str
    correct: int
    total: int
    zero_shot: int | None = None


@dataclass(frozen=True)
class Example:
    """One test image and what was predicted for it. Labels are (domain, class) as displayed.

    Attributes:
        image: a small picture, as encoded PNG, JPEG, GIF or WebP bytes (see `thumbnail`).
        path: where it comes from, for people.
        true: its label.
        predicted: the model's prediction.
        zero_shot: zero-shot CLIP's prediction, when known.
    """

    image: bytes
    path: str
    true: tuple[str, str]
    predicted: tuple[str, str]
    zero_shot: tuple[str, str] | None = None


@dataclass(frozen=True)
class BadImage:
    """An image that could not be used: its domain, its path and why."""

    domain: str
    path: str
    reason: str


@dataclass(frozen=True)
class PackInfo:
    """One task pack: domain, digest, parent's digest (None: it is the first), when made, size in bytes."""

    domain: str
    digest: str
    parent: str | None
    created: str
    size: int


@dataclass(frozen=True)
class ReportData:
    """Everything that `report.html` shows.

    Attributes:
        name: the run's name.
        accuracy: [J, K] in %, index = domains learnt so far, columns = domains.
        zero_shot: accuracy in % per domain among all classes, before learning.
        subtitle: one line on what was run, such as "LADA, ViT-B-16 (openai), 16 shots, seed 0".
        folder: where the run lies.
        finished: when, as it is to be shown.
        classes: per domain its classes, in any order (shown worst first).
        timings: seconds per stage, per phase, such as {"features": {"decode": 3.1}, "digits": {"fit": 8.0}}.
        wall_seconds: seconds from the start to the end of the run, when known.
        counts: figures to show, such as {"images encoded": 1200, "bank hits": 300}.
        examples: example predictions, in the order they are to be shown.
        bad_images: images left out.
        packs: the model's packs, in order.
        config: the resolved configuration as YAML.
        commands: what to do next: (what it does, the exact command).
        notes: warnings to show at the top, such as "MLflow could not be reached".
    """

    name: str
    accuracy: pd.DataFrame
    zero_shot: Mapping[str, float]
    subtitle: str = ""
    folder: str = ""
    finished: str = ""
    classes: Mapping[str, Sequence[ClassAccuracy]] = field(default_factory=dict)
    timings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    wall_seconds: float | None = None
    counts: Mapping[str, int | float | str] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    bad_images: Sequence[BadImage] = ()
    packs: Sequence[PackInfo] = ()
    config: str = ""
    commands: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


# The printed table


def print_table(
    accuracy: pd.DataFrame, zero_shot: Mapping[str, float] | None = None, console: Console | None = None
) -> None:
    """Print the accuracy matrix like the published table; plain text where the output is no terminal.

    Args:
        accuracy: [J, K] in %, index = learnt so far, columns = domains.
        zero_shot: % per domain before learning, shown as the first row.
        console: where to print; standard output by default.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=PLAIN_WIDTH)
    console.print(matrix_table(accuracy, zero_shot, console.width))


def matrix_table(
    accuracy: pd.DataFrame, zero_shot: Mapping[str, float] | None = None, width: int = PLAIN_WIDTH
) -> Table:
    """Build the table that `print_table` prints.

    Domains are columns when they fit into `width` (twelve do in 95 columns), with long names shortened;
    otherwise a row per domain shows its metrics, and the matrix itself is left to the CSV file.

    Args:
        accuracy: [J, K] in %, index = learnt so far, columns = domains.
        zero_shot: % per domain before learning.
        width: columns available.

    Returns:
        a rich table.
    """
    rows = [*([ZERO_SHOT] if zero_shot else []), *map(str, accuracy.index), *METRIC_ROWS.values()]
    first = min(max(map(len, rows)), 16)
    cell = (width - first - 1) // (accuracy.shape[1] + 1) - 1
    if cell < CELL_WIDTH:
        return _table_by_domain(accuracy, zero_shot, width)
    return _table_by_task(accuracy, zero_shot, first, min(cell, 14))


def column_names(names: Sequence[str], width: int) -> list[str]:
    """Headings of at most three lines of `width` characters, all different.

    Args:
        names: the domains' names.
        width: characters allowed in a line.

    Returns:
        a heading per name, broken at its separators where there are any: `oxford_pets` in 6 is two lines,
        `oxford` and `pets`. Those that would come out alike begin with their number.
    """
    headings = [_wrapped(name, width) for name in names]
    return [
        shorten(f"{number}:{name}", width) if headings.count(heading) > 1 else heading
        for number, (name, heading) in enumerate(zip(names, headings, strict=True), start=1)
    ]


def _wrapped(name: str, width: int, most: int = 3) -> str:
    parts = [part for part in re.split(r"[_\-. ]+", name) if part] if len(name) > width else [name]
    lines = [part[i : i + width] for part in parts for i in range(0, len(part), width)]
    if len(lines) <= most:
        return "\n".join(lines)
    kept = parts if len(parts) <= most else [*parts[: most - 1], parts[-1]]
    return "\n".join(shorten(part, width) for part in kept)


def _table_by_task(
    accuracy: pd.DataFrame, zero_shot: Mapping[str, float] | None, first: int, width: int
) -> Table:
    domains = [str(name) for name in accuracy.columns]
    table = new_table()
    table.add_column("learnt", no_wrap=True, style="bold")
    for heading in [*column_names(domains, width), "mean"]:
        table.add_column(heading, justify="right", vertical="bottom", min_width=CELL_WIDTH)
    if zero_shot:
        table.add_row(ZERO_SHOT, *_cells([zero_shot[name] for name in domains]), end_section=True)
    matrix = accuracy.to_numpy(dtype=float)
    for j, learnt in enumerate(accuracy.index):
        table.add_row(
            shorten(str(learnt), first), *_cells(matrix[j], learnt=j), end_section=j == len(matrix) - 1
        )
    metrics = stream_metrics(accuracy)
    for name, heading in METRIC_ROWS.items():
        table.add_row(heading, *_cells(getattr(metrics, name)))
    return table


def _table_by_domain(accuracy: pd.DataFrame, zero_shot: Mapping[str, float] | None, width: int) -> Table:
    metrics = stream_metrics(accuracy)
    columns = {ZERO_SHOT: _zero_shot_row(accuracy, zero_shot)} if zero_shot else {}
    columns["learnt"] = just_learnt(accuracy)
    columns |= {heading: getattr(metrics, name) for name, heading in METRIC_ROWS.items()}
    table = new_table()
    table.add_column("domain", no_wrap=True, style="bold")
    for heading in columns:
        table.add_column(heading, justify="right", min_width=CELL_WIDTH)
    room = max(width - sum(max(len(heading), CELL_WIDTH) + 1 for heading in columns) - 1, 8)
    for k, domain in enumerate(accuracy.columns):
        cells = [number(values[k]) for values in columns.values()]
        table.add_row(shorten(str(domain), room), *cells, end_section=k == accuracy.shape[1] - 1)
    table.add_row("mean", *(number(mean_of_defined(values)) for values in columns.values()))
    return table


def new_table() -> Table:
    """An empty table for the terminal, as all results are printed."""
    return Table(box=box.HORIZONTALS, padding=0, header_style="bold", border_style="dim", show_edge=False)


def print_columns(console: Console, names: Sequence[str], columns: Mapping[str, Sequence[Text]]) -> None:
    """Print a table; columns that do not fit stand in a table of their own below.

    Args:
        console: where to print.
        names: of the rows.
        columns: by heading, which may have several lines, a cell per row.
    """
    shown = row_names(names, min(NAME_WIDTH, max(console.width // 3, 8)))
    room = console.width - max(map(len, shown)) - 1
    for headings in _chunks(columns, room):
        table = new_table()
        table.add_column("", no_wrap=True, style="bold")
        for heading in headings:
            table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
        for i, name in enumerate(shown):
            table.add_row(Text(name), *(columns[heading][i] for heading in headings))
        console.print(table)


def _chunks(columns: Mapping[str, Sequence[Text]], room: int) -> list[list[str]]:
    """Share columns out to tables that fit into `room` characters each, at least one column to a table."""
    chunks: list[list[str]] = []
    left = 0
    for heading, cells in columns.items():
        needed = max(*map(len, heading.split("\n")), *map(len, cells)) + 1
        if not chunks or needed > left:
            chunks.append([])
            left = room
        chunks[-1].append(heading)
        left -= needed
    return chunks


def row_names(names: Sequence[str], width: int) -> list[str]:
    """Names on one line of at most `width` characters; those that would come out alike begin with their number."""
    short = [shorten(" ".join(name.split()), width) for name in names]
    return [
        shorten(f"{position}:{name}", width) if short.count(cut) > 1 else cut
        for position, (name, cut) in enumerate(zip(names, short, strict=True), start=1)
    ]


def _cells(values: Sequence[float] | np.ndarray, learnt: int | None = None) -> list[Text]:
    """Format a row and its mean: the domain just learnt bold, those not learnt yet dim."""
    styles = [
        "" if learnt is None or k < learnt else "bold" if k == learnt else "dim" for k in range(len(values))
    ]
    cells = [Text(number(value), style=style) for value, style in zip(values, styles, strict=True)]
    return [*cells, Text(number(mean_of_defined(np.asarray(values, dtype=float))), style="bold")]


def mean_of_defined(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN when all are.

    Args:
        values: numbers of any shape.

    Returns:
        their mean.
    """
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def just_learnt(accuracy: pd.DataFrame) -> np.ndarray:
    """Accuracy of each domain right after it was learnt: the matrix's diagonal.

    Args:
        accuracy: [J, K] in %.

    Returns:
        [K] in %; NaN for domains not learnt yet.
    """
    values = np.full(accuracy.shape[1], np.nan)
    values[: accuracy.shape[0]] = np.diagonal(accuracy.to_numpy(dtype=float))
    return values


def _zero_shot_row(accuracy: pd.DataFrame, zero_shot: Mapping[str, float]) -> np.ndarray:
    return np.array([zero_shot.get(str(name), np.nan) for name in accuracy.columns], dtype=float)


# The page


def report_html(data: ReportData) -> str:
    """Render the report: one file, nothing loaded from elsewhere.

    Args:
        data: what to show. Parts that are empty are left out.

    Returns:
        the page's HTML.
    """
    metrics = stream_metrics(data.accuracy)
    zero_shot = _zero_shot_row(data.accuracy, data.zero_shot)
    return (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            data=data,
            domains=[str(name) for name in data.accuracy.columns],
            headline=_headline(data, metrics, zero_shot),
            heat=_heat_map(data.accuracy, zero_shot),
            panels=_panels(data.accuracy, zero_shot),
            comparison=_comparison(metrics, zero_shot),
            per_domain=_per_domain(data, metrics, zero_shot),
            classes=_classes(data.classes),
            timings=_timings(data),
            bad_by_domain=_bad_by_domain(data.bad_images),
        )
    )


def thumbnail(image: bytes, side: int = 96) -> bytes:
    """Shrink an image for the report.

    Args:
        image: encoded image bytes of any kind that Pillow reads.
        side: the longer side of the result in pixels; small images keep their size.

    Returns:
        JPEG bytes, or PNG where that is smaller (drawings).

    Raises:
        OSError: the bytes are no image.
    """
    from PIL import Image  # only callers that show images need Pillow

    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((side, side))
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=85)
    return min(png.getvalue(), jpeg.getvalue(), key=len)


def _headline(data: ReportData, metrics: StreamMetrics, zero_shot: np.ndarray) -> dict[str, Any]:
    tasks, total = data.accuracy.shape
    means = metrics.means()
    learnt = ~np.isnan(metrics.last)
    base_transfer = mean_of_defined(np.where(np.isnan(metrics.transfer), np.nan, zero_shot))
    base_last = mean_of_defined(np.where(learnt, zero_shot, np.nan))
    return {
        "tasks": tasks,
        "total": total,
        "classes": sum(map(len, data.classes.values())),
        "means": means,
        "zero_shot": mean_of_defined(zero_shot),
        "zero_shot_learnt": base_last,
        "zero_shot_transfer": base_transfer,
        "gain": means["last"] - base_last,
    }


def _heat_map(accuracy: pd.DataFrame, zero_shot: np.ndarray) -> dict[str, Any]:
    matrix = accuracy.to_numpy(dtype=float)
    rows = [
        {
            "name": ZERO_SHOT,
            "cells": [heat_cell(v, "") for v in zero_shot],
            "mean": mean_of_defined(zero_shot),
        }
    ]
    for j, learnt in enumerate(accuracy.index):
        cells = [heat_cell(v, "now" if k == j else "") for k, v in enumerate(matrix[j])]
        rows.append({"name": str(learnt), "cells": cells, "mean": float(matrix[j].mean())})
    return {"rows": rows, "numbers": matrix.shape[1] <= NUMBERS_UP_TO}


def heat_cell(value: float, kind: str) -> dict[str, Any]:
    """A cell of a heat map on a page.

    Args:
        value: accuracy in %, or NaN.
        kind: the cell's CSS class: "now" for the domain just learnt, else "".

    Returns:
        `value`, `colour` and `ink` (of the background and of the figures, as CSS), `kind`.
    """
    if np.isnan(value):
        return {"value": value, "colour": "#ffffff", "ink": "#1d2430", "kind": kind}
    red, green, blue = heat_colour(value)
    ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "#1d2430"
    return {"value": value, "colour": f"#{red:02x}{green:02x}{blue:02x}", "ink": ink, "kind": kind}


def heat_colour(value: float) -> tuple[int, int, int]:
    """Colour of an accuracy: from nearly white at 0 % to dark blue at 100 %.

    Args:
        value: accuracy in %.

    Returns:
        red, green and blue, 0 to 255.
    """
    stops = np.array(
        [[247, 250, 253], [198, 219, 239], [107, 166, 212], [33, 102, 172], [8, 48, 107]], dtype=float
    )
    position = np.clip(value, 0, 100) / 100 * (len(stops) - 1)
    channels = [np.interp(position, range(len(stops)), stops[:, c]) for c in range(3)]
    return round(channels[0]), round(channels[1]), round(channels[2])


def _panels(accuracy: pd.DataFrame, zero_shot: np.ndarray) -> list[dict[str, Any]]:
    """Lay out a small line chart per domain; SVG units: x 6 to 154 over tasks, y 62 (0 %) to 6 (100 %)."""
    matrix = np.vstack([zero_shot, accuracy.to_numpy(dtype=float)])
    steps = np.linspace(6, 154, len(matrix))
    panels = []
    for k, domain in enumerate(accuracy.columns):
        points = [(x, 62 - 0.56 * y) for x, y in zip(steps, matrix[:, k], strict=True) if y == y]
        learnt = (steps[k + 1], 62 - 0.56 * matrix[k + 1, k]) if k + 1 < len(matrix) else None
        panels.append(
            {
                "name": str(domain),
                "before": _polyline([p for p in points if learnt is None or p[0] <= learnt[0]]),
                "after": _polyline([p for p in points if learnt is not None and p[0] >= learnt[0]]),
                "learnt": learnt and {"x": f"{learnt[0]:.1f}", "y": f"{learnt[1]:.1f}"},
                "base": f"{62 - 0.56 * zero_shot[k]:.1f}" if zero_shot[k] == zero_shot[k] else None,
                "zero_shot": zero_shot[k],
                "end": matrix[-1, k],
            }
        )
    return panels


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _comparison(metrics: StreamMetrics, zero_shot: np.ndarray) -> list[dict[str, Any]]:
    """Transfer, Average and Last, each beside zero-shot on the domains for which the metric is defined."""
    explained = {
        "transfer": ("Transfer", "before a domain's turn, averaged over tasks"),
        "average": ("Average", "over all tasks"),
        "last": ("Last", "after the last task"),
    }
    rows = []
    for name, (title, meaning) in explained.items():
        values = getattr(metrics, name)
        base = mean_of_defined(np.where(np.isnan(values), np.nan, zero_shot))
        mean = mean_of_defined(values)
        rows.append({"title": title, "meaning": meaning, "value": mean, "base": base, "gain": mean - base})
    return rows


def _per_domain(data: ReportData, metrics: StreamMetrics, zero_shot: np.ndarray) -> list[dict[str, Any]]:
    learnt = just_learnt(data.accuracy)
    return [
        {
            "name": str(domain),
            "classes": len(data.classes.get(str(domain), ())),
            "images": sum(one.total for one in data.classes.get(str(domain), ())),
            "zero_shot": zero_shot[k],
            "transfer": metrics.transfer[k],
            "learnt": learnt[k],
            "last": metrics.last[k],
            "gain": metrics.last[k] - zero_shot[k],
            "backward": metrics.backward_transfer[k],
        }
        for k, domain in enumerate(data.accuracy.columns)
    ]


def _classes(classes: Mapping[str, Sequence[ClassAccuracy]]) -> list[dict[str, Any]]:
    """Per domain, its classes with the worst first."""
    domains = []
    for domain, members in classes.items():
        worst_first = sorted(members, key=lambda one: (one.correct / max(one.total, 1), one.name))
        rows = [
            {
                "name": one.name,
                "total": one.total,
                "accuracy": _share(one.correct, one.total),
                "zero_shot": _share(one.zero_shot, one.total),
            }
            for one in worst_first
        ]
        domains.append({"name": domain, "rows": rows})
    return domains


def _share(correct: int | None, total: int) -> float:
    return 100 * correct / total if correct is not None and total else float("nan")


def _timings(data: ReportData) -> dict[str, Any]:
    """Bars per phase, cut into stages, all on one scale; and the sum of each stage over the phases."""
    totals: dict[str, float] = {}
    for stages in data.timings.values():
        for stage, seconds in stages.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    colours = _stage_colours(list(totals))
    longest = max((sum(stages.values()) for stages in data.timings.values()), default=0.0) or 1.0
    phases = []
    for phase, stages in data.timings.items():
        bars = [
            {"stage": stage, "seconds": seconds, "width": 100 * seconds / longest, "colour": colours[stage]}
            for stage, seconds in stages.items()
            if seconds > 0
        ]
        phases.append({"name": phase, "bars": bars, "total": sum(stages.values())})
    everything = sum(totals.values()) or 1.0
    summary = [
        {"stage": stage, "seconds": seconds, "share": 100 * seconds / everything, "colour": colours[stage]}
        for stage, seconds in sorted(totals.items(), key=lambda item: -item[1])
    ]
    return {"phases": phases, "stages": summary}


def _stage_colours(stages: Sequence[str]) -> dict[str, str]:
    working = [stage for stage in stages if stage not in IDLE_STAGES]
    colours = {stage: STAGE_COLOURS[i % len(STAGE_COLOURS)] for i, stage in enumerate(working)}
    return colours | {stage: IDLE_STAGES[stage] for stage in stages if stage in IDLE_STAGES}


def _bad_by_domain(bad_images: Sequence[BadImage]) -> dict[str, list[BadImage]]:
    by_domain: dict[str, list[BadImage]] = {}
    for bad in bad_images:
        by_domain.setdefault(bad.domain, []).append(bad)
    return by_domain


# The picture


def matrix_figure_png(
    accuracy: pd.DataFrame, zero_shot: Mapping[str, float] | None = None, title: str = ""
) -> bytes:
    """Draw the heat map beside the accuracy curves, for MLflow or a slide.

    Args:
        accuracy: [J, K] in %, index = learnt so far, columns = domains.
        zero_shot: % per domain before learning, drawn as the first row.
        title: a line above the picture.

    Returns:
        PNG bytes.
    """
    # Imported here: it costs half a second, and tables and pages do without. No pyplot: it is global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    domains = accuracy.shape[1]
    height = float(np.clip(2.2 + 0.36 * domains, 3.4, 14))
    figure = Figure(figsize=(height * 1.25 + 6.0, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    heat, lines = figure.subplots(1, 2, width_ratios=[height * 1.1, 5.5])
    rows = ([ZERO_SHOT] if zero_shot else []) + [str(name) for name in accuracy.index]
    matrix = accuracy.to_numpy(dtype=float)
    if zero_shot:
        matrix = np.vstack([_zero_shot_row(accuracy, zero_shot), matrix])
    _draw_heat_map(heat, matrix, rows, [str(name) for name in accuracy.columns])
    _draw_curves(lines, matrix, rows, [str(name) for name in accuracy.columns], offset=1 if zero_shot else 0)
    if title:
        figure.suptitle(title, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_heat_map(axes: Any, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    colours = np.array(
        [[heat_colour(0 if np.isnan(v) else v) for v in row] for row in matrix], dtype=np.uint8
    )
    axes.imshow(colours, aspect="auto")
    font = float(np.clip(110 / max(len(columns), 1), 4, 9))
    # Names are shown as they are: "$" starts no formula.
    style: dict[str, Any] = {"fontsize": font, "parse_math": False}
    axes.set_xticks(range(len(columns)), [shorten(c, 16) for c in columns], rotation=90, **style)
    axes.set_yticks(range(len(rows)), [shorten(r, 16) for r in rows], **style)
    axes.set_title("accuracy in %; row: learnt so far, column: tested on", fontsize=9)
    axes.tick_params(length=0)
    if len(columns) > NUMBERS_UP_TO:
        return
    for (j, k), value in np.ndenumerate(matrix):
        if value == value:
            ink = heat_cell(value, "")["ink"]
            axes.text(k, j, number(value), ha="center", va="center", color=ink, fontsize=font)


def _draw_curves(
    axes: Any, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], offset: int
) -> None:
    tasks = range(len(rows))
    many = len(columns) > len(STAGE_COLOURS)
    for k, name in enumerate(columns):
        colour = STAGE_COLOURS[k % len(STAGE_COLOURS)]
        axes.plot(
            tasks,
            matrix[:, k],
            color=colour,
            linewidth=1.0 if many else 1.6,
            alpha=0.7,
            label=shorten(name, 20),
        )
        if k + offset < len(rows):
            axes.plot([k + offset], [matrix[k + offset, k]], "o", color=colour, markersize=4)
    axes.set_ylim(0, 100)
    font = float(np.clip(110 / max(len(rows), 1), 4, 9))
    axes.set_xticks(tasks, [shorten(r, 16) for r in rows], rotation=90, fontsize=font, parse_math=False)
    axes.set_title("accuracy in % over tasks; dot: just learnt", fontsize=9)
    axes.grid(axis="y", color="#e3e7ec")
    axes.spines[["top", "right"]].set_visible(False)
    if len(columns) <= NUMBERS_UP_TO:
        legend = axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
