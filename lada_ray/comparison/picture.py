"""A comparison as a picture: Transfer, Average and Last of each variant, run by run, above Last by domain."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lada_ray.comparison.numbers import (
    Outcome,
    last_by_domain,
    raw_results,
    summary,
    with_zero_shot,
    zero_shot_by_domain,
)
from lada_ray.comparison.words import best_by_metric, best_of, mean_text
from lada_ray.page import number, shorten
from lada_ray.report import METRIC_ROWS, NUMBERS_UP_TO, column_names, row_names

DRAWN = ("transfer", "average", "last")
INK, SOFT, BLUE = "#1d2430", "#5b6675", "#2f6fb2"
BEST_CELL = np.array([143, 190, 228])  # black figures have to be readable on it
ORDER_MARKERS = "os^Dv<>pPX"
RUN_STYLE: dict[str, Any] = {
    "color": BLUE, "alpha": 0.6, "markersize": 4.5, "markeredgewidth": 0, "linestyle": "",
}  # fmt: skip
MEAN_STYLE: dict[str, Any] = {
    "marker": "|", "color": INK, "markersize": 11, "markeredgewidth": 2.2, "linestyle": "",
}  # fmt: skip


def figure_png(outcomes: Sequence[Outcome]) -> bytes:
    """Draw Transfer, Average and Last of each variant, run by run, above Last by domain.

    Args:
        outcomes: of 1 to about 15 variants.

    Returns:
        PNG bytes.

    Raises:
        InputError: as for `raw_results`.
    """
    # Imported here: it costs half a second, and tables do without. No pyplot: it is global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    means, raw = summary(outcomes), raw_results(outcomes)
    drawn = [metric for metric in DRAWN if means[metric, "n"].any()] or ["last"]
    heights = [0.8 + 0.36 * len(means), 0.9 + 0.3 * (len(means) + 1)]
    layout = ConstrainedLayoutEngine(hspace=0.06)
    figure = Figure(figsize=(11, sum(heights) + 0.5), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(drawn), height_ratios=heights)
    for position, metric in enumerate(drawn):
        _draw_metric(figure.add_subplot(grid[0, position]), means, raw, metric, named=position == 0)
    _draw_legend(figure.axes[0], sorted(raw["order"].unique()))
    _draw_domains(figure.add_subplot(grid[1, :]), last_by_domain(outcomes), zero_shot_by_domain(outcomes))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_metric(axes: Any, means: pd.DataFrame, raw: pd.DataFrame, metric: str, named: bool) -> None:
    """One row per variant: mean and standard deviation, its runs as dots below, and the figures beside."""
    best = best_by_metric(means, metric)
    orders = sorted(raw["order"].unique())
    for y, (variant, row) in enumerate(means.iterrows()):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#f4f6f8", linewidth=0)
        _draw_runs(axes, y, raw.loc[raw["variant"] == variant, ["order", metric]].dropna(), orders)
        _draw_mean(axes, y - 0.18, row[metric]["mean"], row[metric]["sd"])
        axes.text(
            1.02,
            y,
            mean_text(row[metric]),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8.5,
            fontweight="bold" if variant in best else "normal",
        )
    _finish_metric(axes, means, raw, metric, named)


def _draw_runs(axes: Any, y: int, runs: pd.DataFrame, orders: Sequence[int]) -> None:
    lanes = y + (np.linspace(0.1, 0.36, len(runs)) if len(runs) > 1 else np.full(len(runs), 0.2))
    order, value = runs.to_numpy(dtype=float).T
    for position, this in enumerate(orders):
        axes.plot(value[order == this], lanes[order == this], _marker(position), **RUN_STYLE)


def _draw_mean(axes: Any, y: float, mean: float, sd: float) -> None:
    spread = 0.0 if np.isnan(sd) else sd
    axes.plot([mean - spread, mean + spread], [y, y], color=INK, linewidth=1.6, solid_capstyle="butt")
    axes.plot([mean], [y], **MEAN_STYLE)


def _marker(position: int) -> str:
    return ORDER_MARKERS[position % len(ORDER_MARKERS)]


def _finish_metric(axes: Any, means: pd.DataFrame, raw: pd.DataFrame, metric: str, named: bool) -> None:
    mean, sd = means[metric, "mean"], means[metric, "sd"].fillna(0)
    ends = [*raw[metric].dropna(), *(mean - sd).dropna(), *(mean + sd).dropna()] or [0.0, 100.0]
    low, high = min(ends), max(ends)
    margin = max(0.06 * (high - low), (1 - (high - low)) / 2)  # never zoom into less than a point
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(len(means) - 0.5, -0.5)
    _name_rows(axes, list(means.index) if named else [], len(means))
    axes.set_title(f"{METRIC_ROWS[metric]} in %", fontsize=10, fontweight="bold", loc="left")
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=8, color=SOFT)
    axes.grid(axis="x", color="#dfe4ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _name_rows(axes: Any, names: Sequence[str], rows: int) -> None:
    lines = ["\n".join(textwrap.wrap(name, 24)) or name for name in row_names(names, 44)]
    # Names are shown as they are: "$" starts no formula.
    axes.set_yticks(range(rows), lines or [""] * rows, fontsize=9, parse_math=False)
    axes.tick_params(axis="y", length=0)


def _draw_legend(axes: Any, orders: Sequence[int]) -> None:
    for position, order in enumerate(orders):
        label = f"a run, order {order}" if len(orders) > 1 else "a run"
        axes.plot([], [], _marker(position), label=label, **RUN_STYLE)
    axes.plot([], [], **MEAN_STYLE, label="mean ± standard deviation")
    axes.figure.legend(loc="outside upper right", ncols=6, fontsize=8, frameon=False)


def _draw_domains(axes: Any, last: pd.DataFrame, zero_shot: Mapping[str, float]) -> None:
    """A table in colours: a row per variant, above it zero-shot for reference, a column per domain."""
    domains = [str(name) for name in last.columns]
    best = [best_of(last[name], decimals=1) for name in last.columns]
    rows = with_zero_shot(last, zero_shot)
    values = rows.to_numpy(dtype=float)
    axes.imshow(cell_colours(values, last.to_numpy()), aspect="auto")
    numbers = len(domains) <= NUMBERS_UP_TO
    for (j, k), value in np.ndenumerate(values) if numbers else ():
        weight = "bold" if rows.index[j] in best[k] else "normal"
        axes.text(k, j, number(value), ha="center", va="center", fontsize=8.5, fontweight=weight)
    _finish_domains(axes, list(rows.index), domains)
    axes.set_title("Last in % by domain", fontsize=10, fontweight="bold", loc="left")
    axes.set_title(colour_key(last.to_numpy()), fontsize=8, loc="right", color=SOFT)


def _finish_domains(axes: Any, rows: Sequence[str], domains: Sequence[str]) -> None:
    width = 110 // len(domains)  # characters that fit into a column
    upright = width < 8
    headings = [shorten(name, 18) for name in domains] if upright else column_names(domains, width)
    axes.set_xticks(
        range(len(domains)),
        headings,
        rotation=90 if upright else 0,
        fontsize=float(np.clip(500 / len(domains), 4, 8.5)),
        parse_math=False,
    )
    _name_rows(axes, rows, len(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.hlines(np.arange(len(rows) - 1) + 0.5, -0.5, len(domains) - 0.5, color="white", linewidth=2)
    if not upright:
        axes.vlines(np.arange(len(domains) - 1) + 0.5, -0.5, len(rows) - 0.5, color="white", linewidth=2)


def _scale(last: np.ndarray) -> float:
    """Points below a domain's best variant at which a cell is white."""
    gaps = np.fmax.reduce(last) - last
    return float(np.clip(np.nanmax(gaps, initial=0.0), 1.0, 15.0))


def cell_colours(values: np.ndarray, last: np.ndarray) -> np.ndarray:
    """[R, K] accuracies -> [R, K, 3] colours by the points below `last`'s best [V, K]; absolute for one variant."""
    gaps = (np.fmax.reduce(last) - values) / _scale(last) if len(last) > 1 else 1 - values / 100
    strength = 1 - np.nan_to_num(gaps, nan=1.0).clip(0, 1)[..., None]
    return (255 + (BEST_CELL - 255) * strength).round().astype(np.uint8)


def colour_key(last: np.ndarray) -> str:
    """What the colours of Last by domain say; empty for one variant."""
    return (
        f"dark: best of its domain; white: {_scale(last):.0f} points or more below" if len(last) > 1 else ""
    )
