"""How several variants compare: means and spread, paired differences to a baseline, table, picture and page.

A variant is a learner or a setting of one; each was run for the same orders of domains and the same seeds. An
order and a seed decide the stream and its shots, hence how hard the problem is, so variants are compared pair by pair
on the same (order, seed). Nothing here reads storage or knows about Ray: `Outcome`s go in, text and bytes come out.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from lada_ray import report
from lada_ray.errors import InputError
from lada_ray.page import duration, number, page_environment, points, shorten
from lada_ray.report import METRIC_ROWS, ZERO_SHOT, labels, print_columns

METRICS = tuple(METRIC_ROWS)
DRAWN = ("transfer", "average", "last")
CONFIDENCE = 0.95
# Accuracies are ratios of counts: differences that are really different differ by far more than rounding does.
SAME = 1e-9
INK, SOFT, BLUE = "#1d2430", "#5b6675", "#2f6fb2"
BEST_CELL = np.array([143, 190, 228])  # black figures have to be readable on it
ORDER_MARKERS = "os^Dv<>pPX"
RUN_STYLE: dict[str, Any] = {
    "color": BLUE, "alpha": 0.6, "markersize": 4.5, "markeredgewidth": 0, "linestyle": "",
}  # fmt: skip
MEAN_STYLE: dict[str, Any] = {
    "marker": "|", "color": INK, "markersize": 11, "markeredgewidth": 2.2, "linestyle": "",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one run of a variant came to.

    Attributes:
        variant: its name, such as "lada" or "lada without replay".
        order: 0 = the configured order of domains, 1, 2, ... = permutations of it.
        seed: the run's seed.
        metrics: the content of metrics.json, in %; None where a metric is undefined.
        accuracy: [J, K] in %, rows = learnt so far, columns = domains; one row for a joint learner.
        seconds: wall seconds of its fit and evaluation.
        folder: the run's folder.
    """

    variant: str
    order: int
    seed: int
    metrics: Mapping[str, Any]
    accuracy: pd.DataFrame
    seconds: float
    folder: str


# The numbers


def raw_results(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row per outcome: what all other numbers are made of.

    Args:
        outcomes: in the order in which variants are to be shown.

    Returns:
        columns variant, order, seed, the metrics in % and zero_shot (NaN where undefined), `last.<domain>` in %
        for each domain, seconds, folder.

    Raises:
        InputError: nothing to compare, the same (variant, order, seed) twice, or runs on different streams.
    """
    _check(outcomes)
    return pd.DataFrame([_raw_row(outcome, _domains(outcomes)) for outcome in outcomes])


def _raw_row(outcome: Outcome, domains: Sequence[str]) -> dict[str, Any]:
    return {
        "variant": outcome.variant,
        "order": outcome.order,
        "seed": outcome.seed,
        **{name: _defined(outcome.metrics.get(name)) for name in (*METRICS, "zero_shot")},
        **{f"last.{name}": float(outcome.accuracy[name].iloc[-1]) for name in domains},
        "seconds": float(outcome.seconds),
        "folder": outcome.folder,
    }


def _defined(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def summary(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Mean and spread of each variant over its (order, seed)s.

    Args:
        outcomes: of any number of variants, orders and seeds.

    Returns:
        index: variants in order of first appearance; columns (metric, statistic): for each metric `mean` and `sd`
        in % (sample standard deviation, ddof 1; NaN for one value) over the `n` outcomes that have it; for the
        seconds `mean` and `n`, which is the number of the variant's runs.

    Raises:
        InputError: as for `raw_results`.
    """
    grouped = raw_results(outcomes).groupby("variant", sort=False)
    table = grouped[list(METRICS)].agg(["mean", "std", "count"])
    table = table.rename(columns={"std": "sd", "count": "n"}, level=1)
    table["seconds", "mean"] = grouped["seconds"].mean()
    table["seconds", "n"] = grouped["seconds"].count()
    table.columns.names = ["metric", "statistic"]
    return table


def paired(outcomes: Sequence[Outcome], baseline: str) -> pd.DataFrame:
    """Differences of the other variants to the baseline on the same (order, seed).

    Args:
        outcomes: of the baseline and of other variants.
        baseline: the variant that is subtracted.

    Returns:
        index (variant, metric); columns: `mean` and `sd` (ddof 1) of the differences in points, `n` pairs, `low` and
        `high` of the 95 % t-interval of the mean, `p` of the two-sided paired t-test, and `unpaired`, the number of
        (order, seed)s at which only one of the two has the metric. With one pair, sd, interval and p are NaN. When
        all differences are the same, sd is 0 and the interval has no width; p is NaN, for the test's statistic is
        undefined (0/0) or infinite, and neither is evidence.

    Raises:
        InputError: as for `raw_results`, or no outcome of the baseline.
    """
    _check(outcomes, baseline)
    table = raw_results(outcomes).set_index(["order", "seed"])
    base = table[table["variant"] == baseline]
    rows = {
        (variant, metric): _paired_row(table.loc[table["variant"] == variant, metric], base[metric])
        for variant in _variants(outcomes)
        if variant != baseline
        for metric in METRICS
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=["variant", "metric"])
    columns = ["mean", "sd", "n", "low", "high", "p", "unpaired"]
    return pd.DataFrame(list(rows.values()), index=index, columns=columns)


def _paired_row(theirs: pd.Series, base: pd.Series) -> dict[str, float]:
    theirs, base = theirs.dropna(), base.dropna()
    both = theirs.index.intersection(base.index)
    differences = (theirs[both] - base[both]).to_numpy(dtype=float)
    unpaired = len(theirs.index.symmetric_difference(base.index))
    return _difference(differences) | {"n": len(both), "unpaired": unpaired}


def _difference(values: np.ndarray) -> dict[str, float]:
    """Mean, sd, t-interval and p of paired differences; NaN for what too few of them leave undefined."""
    nan = float("nan")
    mean = float(values.mean()) if len(values) else nan
    if len(values) < 2:
        return {"mean": mean, "sd": nan, "low": nan, "high": nan, "p": nan}
    if np.ptp(values) < SAME:
        return {"mean": mean, "sd": 0.0, "low": mean, "high": mean, "p": nan}
    from scipy import stats  # half a second, and only differences need it

    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    sd = float(values.std(ddof=1))
    return {"mean": mean, "sd": sd, "low": float(low), "high": float(high), "p": float(test.pvalue)}


def last_by_domain(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Mean accuracy per domain after the last task.

    Args:
        outcomes: of any number of variants; domains are matched by name, whatever the order.

    Returns:
        index: variants; columns: domains in the order of the lowest-numbered order; in %.

    Raises:
        InputError: as for `raw_results`.
    """
    grouped = raw_results(outcomes).groupby("variant", sort=False)
    domains = _domains(outcomes)
    table = grouped[[f"last.{name}" for name in domains]].mean()
    return table.set_axis(domains, axis="columns")


def mean_matrix(outcomes: Sequence[Outcome], variant: str, order: int) -> pd.DataFrame:
    """Mean accuracy matrix over the seeds of a variant and an order.

    Args:
        outcomes: of any number of variants and orders.
        variant: which variant.
        order: which order.

    Returns:
        [J, K] in %, rows = learnt so far in this order, columns = domains as in `last_by_domain`.

    Raises:
        InputError: as for `raw_results`, or there is no such outcome.
    """
    _check(outcomes)
    found = [one.accuracy for one in outcomes if (one.variant, one.order) == (variant, order)]
    if not found:
        raise InputError([f"there is no outcome of {variant!r} with order {order}"])
    domains = _domains(outcomes)
    mean = np.mean([frame[domains].to_numpy(dtype=float) for frame in found], axis=0)
    return pd.DataFrame(mean, index=found[0].index, columns=domains)


def _rows(table: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    return ((str(name), row) for name, row in table.iterrows())


def _variants(outcomes: Iterable[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.variant for outcome in outcomes))


def _domains(outcomes: Sequence[Outcome]) -> list[str]:
    return list(min(outcomes, key=lambda outcome: outcome.order).accuracy.columns)


# What cannot be compared, and what has to be said


def _check(outcomes: Sequence[Outcome], baseline: str | None = None) -> None:
    """Raise InputError with all reasons why these outcomes cannot be compared."""
    if not outcomes:
        raise InputError(["there are no outcomes: run at least one variant"], "Nothing to compare")
    problems = [*_duplicates(outcomes), *_other_streams(outcomes)]
    variants = _variants(outcomes)
    if baseline is not None and baseline not in variants:
        problems.append(f"the baseline {baseline!r} is not among the variants: {', '.join(variants)}")
    if problems:
        raise InputError(problems, "These outcomes cannot be compared")


def _duplicates(outcomes: Sequence[Outcome]) -> list[str]:
    folders: dict[tuple[str, int, int], list[str]] = {}
    for one in outcomes:
        folders.setdefault((one.variant, one.order, one.seed), []).append(one.folder)
    return [
        f"{variant}, order {order}, seed {seed} is there {len(found)} times ({', '.join(found)}): keep one"
        for (variant, order, seed), found in folders.items()
        if len(found) > 1
    ]


def _other_streams(outcomes: Sequence[Outcome]) -> list[str]:
    """Runs whose domains are not those of the first run, or whose sequence is not that of their order."""
    problems = []
    domains = _domains(outcomes)
    sequence: dict[int, Outcome] = {}
    for one in outcomes:
        where = f"{one.variant}, order {one.order}, seed {one.seed} ({one.folder})"
        if len(one.accuracy.columns) != len(domains) or set(one.accuracy.columns) != set(domains):
            problems.append(
                f"{where} has domains {', '.join(map(str, one.accuracy.columns))}, others {', '.join(domains)}"
            )
        if len(one.accuracy) == 1:
            continue  # learnt jointly: it has no sequence
        first = sequence.setdefault(one.order, one)
        if list(one.accuracy.index) != list(first.accuracy.index):
            learnt = [", ".join(map(str, run.accuracy.index)) for run in (one, first)]
            problems.append(f"{where} learnt {learnt[0]}, but {first.variant} in the same order {learnt[1]}")
    return problems


def comparison_notes(outcomes: Sequence[Outcome], baseline: str) -> list[str]:
    """What a reader of the tables has to know: runs without a partner, metrics that are undefined, no test possible.

    Args:
        outcomes: of the baseline and of other variants.
        baseline: the variant that others are compared with.

    Returns:
        one sentence or two per note; empty when there is nothing to say.

    Raises:
        InputError: as for `paired`.
    """
    means, differences = summary(outcomes), paired(outcomes, baseline)
    return [
        *_partner_notes(outcomes, baseline),
        *_undefined_notes(means),
        *_partly_undefined_notes(means),
        *_untested_notes(differences),
    ]


def _partner_notes(outcomes: Sequence[Outcome], baseline: str) -> list[str]:
    """One note per set of runs without a partner, so that variants alike share a line."""
    done = {name: {(o.order, o.seed) for o in outcomes if o.variant == name} for name in _variants(outcomes)}
    base = done.pop(baseline)
    groups: dict[tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]], list[str]] = {}
    for variant, runs in done.items():
        if runs != base:
            groups.setdefault((frozenset(runs - base), frozenset(base - runs)), []).append(variant)
    return [
        f"Without a partner, so in the means but not in the differences: {_alone(', '.join(variants), theirs)}"
        f"{'; ' if theirs and ours else ''}{_alone(baseline, ours)} (pairs of {', '.join(variants)} with "
        f"{baseline}: {len(done[variants[0]] & base)})."
        for (theirs, ours), variants in groups.items()
    ]


def _alone(who: str, runs: Iterable[tuple[int, int]]) -> str:
    names = _listed(f"order {order} seed {seed}" for order, seed in sorted(runs))
    return f"{names} of {who}" if names else ""


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _undefined_notes(means: pd.DataFrame) -> list[str]:
    """One note per set of metrics that are undefined, so that variants alike share a line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for variant, row in _rows(means):
        missing = tuple(METRIC_ROWS[metric] for metric in METRICS if not row[metric, "n"])
        groups.setdefault(missing, []).append(variant)
    return [
        f"{', '.join(missing)}: undefined for {', '.join(variants)}."
        for missing, variants in groups.items()
        if missing
    ]


def _partly_undefined_notes(means: pd.DataFrame) -> list[str]:
    return [
        f"{METRIC_ROWS[metric]} of {variant} is the mean of {row[metric, 'n']:.0f} of its {row['seconds', 'n']:.0f} "
        "runs: the others do not have it."
        for variant, row in _rows(means)
        for metric in METRICS
        if 0 < row[metric, "n"] < row["seconds", "n"]
    ]


def _untested_notes(differences: pd.DataFrame) -> list[str]:
    pairs = differences["n"].groupby(level="variant", sort=False).max()
    single = [str(variant) for variant, count in pairs.items() if count == 1]
    notes = [f"One pair only, so no interval and no p: {', '.join(single)}."] if single else []
    same = differences[(differences["n"] > 1) & (differences["sd"] == 0)].reset_index()
    groups: dict[str, list[str]] = {}
    for variant, rows in same.groupby("variant", sort=False):
        groups.setdefault(", ".join(METRIC_ROWS[metric] for metric in rows["metric"]), []).append(
            str(variant)
        )
    return notes + [
        f"{metrics}: the difference is the same in all pairs, so no test is possible, for {', '.join(variants)}."
        for metrics, variants in groups.items()
    ]


# Words and cells


def _mean_text(cell: Mapping[str, float] | pd.Series) -> str:
    spread = f" ± {points(cell['sd'])}" if cell["sd"] == cell["sd"] else ""
    return points(cell["mean"]) + spread


def _interval_text(row: Mapping[str, float] | pd.Series) -> str:
    return f"[{points(row['low'])}, {points(row['high'])}]" if row["low"] == row["low"] else ""


def _difference_text(row: Mapping[str, float] | pd.Series) -> str:
    return f"{points(row['mean'], signed=True)} {_interval_text(row)}".rstrip()


def _p_text(p: float) -> str:
    return "" if p != p else "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _best(values: pd.Series, decimals: int = 2, lowest: bool = False) -> set[str]:
    """Variants whose value, as it is shown, no other one betters; none when there is only one value."""
    shown = values.dropna().round(decimals)
    if len(shown) < 2:
        return set()
    return set(shown.index[shown == (shown.min() if lowest else shown.max())])


def _best_of(means: pd.DataFrame, metric: str) -> set[str]:
    return _best(means[metric, "mean"], lowest=metric == "forgetting")


def _verdict(metric: str, row: pd.Series) -> str:
    """Whether the interval of a difference lies on the good or on the bad side of zero."""
    if not (row["low"] > 0 or row["high"] < 0):
        return ""
    return "gain" if (row["mean"] > 0) != (metric == "forgetting") else "loss"


def _caption(baseline: str) -> str:
    return (
        f"Difference to {baseline} in points on the same order and seed: mean [95 % t-interval]. "
        "Each order and seed counts as one observation; "
        "intervals hold one at a time, not corrected for the number of comparisons."
    )


def _scope(outcomes: Sequence[Outcome]) -> str:
    orders, seeds = {outcome.order for outcome in outcomes}, {outcome.seed for outcome in outcomes}
    parts = ((len(_variants(outcomes)), "variant"), (len(orders), "order"), (len(seeds), "seed"))
    counts = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in parts]
    return f"{', '.join(counts)}: {len(outcomes)} run{'s' if len(outcomes) > 1 else ''}"


# Files and the terminal


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """The raw results for people's own statistics.

    Args:
        outcomes: what to write.

    Returns:
        CSV with a header and a row per outcome, columns as in `raw_results`; empty where undefined.

    Raises:
        InputError: as for `raw_results`.
    """
    return raw_results(outcomes).to_csv(index=False)


def to_markdown(outcomes: Sequence[Outcome], baseline: str) -> str:
    """The tables for GitHub: means with the best of each column in bold, then the differences.

    Args:
        outcomes: of the baseline and of other variants.
        baseline: the variant that others are compared with.

    Returns:
        Markdown; the second table is left out when there is no other variant.

    Raises:
        InputError: as for `paired`.
    """
    means, differences = summary(outcomes), paired(outcomes, baseline)
    best = {metric: _best_of(means, metric) for metric in METRICS}
    rows = [
        [
            _markdown(variant),
            *(_bold(_mean_text(row[metric]), variant in best[metric]) for metric in METRICS),
            duration(row["seconds", "mean"]),
            f"{row['seconds', 'n']:.0f}",
        ]
        for variant, row in _rows(means)
    ]
    parts = [_markdown_table(["", *METRIC_ROWS.values(), "time", "runs"], rows)]
    parts += [f"Mean ± standard deviation in %; {_scope(outcomes)}."]
    if len(differences):
        parts += [_markdown_differences(differences), _markdown(_caption(baseline))]
    notes = [f"- {_markdown(note)}" for note in comparison_notes(outcomes, baseline)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def _markdown_differences(differences: pd.DataFrame) -> str:
    rows = [
        [
            _markdown(str(variant)),
            *(_difference_text(row) for _, row in table.iterrows()),
            str(table["n"].max()),
        ]
        for variant, table in differences.groupby(level="variant", sort=False)
    ]
    return _markdown_table(["", *METRIC_ROWS.values(), "pairs"], rows)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _markdown(text: str) -> str:
    """Escape what Markdown or HTML would take for markup; an underscore inside a word is none."""
    escaped = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", " ".join(text.split()))
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)
    return html.escape(escaped, quote=False)


def print_comparison(outcomes: Sequence[Outcome], baseline: str, console: Console) -> None:
    """Print both tables and the notes; columns that do not fit stand in a table of their own below.

    Args:
        outcomes: of the baseline and of other variants.
        baseline: the variant that others are compared with.
        console: where to print.

    Raises:
        InputError: as for `paired`.
    """
    means, differences = summary(outcomes), paired(outcomes, baseline)
    columns = {title: _mean_column(means, metric) for metric, title in METRIC_ROWS.items()}
    columns["time"] = [Text(duration(seconds)) for seconds in means["seconds", "mean"]]
    columns["runs"] = [Text(str(count)) for count in means["seconds", "n"]]
    _say(console, f"Mean ± standard deviation in %; {_scope(outcomes)}", style="bold")
    print_columns(console, list(means.index), columns)
    if len(differences):
        others = list(differences.index.unique("variant"))
        columns = {title: _difference_column(differences, m) for m, title in METRIC_ROWS.items()}
        columns["pairs"] = [Text(str(differences.loc[variant, "n"].max())) for variant in others]
        _say(console, "\n" + _caption(baseline), style="bold")
        print_columns(console, others, columns)
    for note in comparison_notes(outcomes, baseline):
        _say(console, f"note: {note}")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style))


def _mean_column(means: pd.DataFrame, metric: str) -> list[Text]:
    best = _best_of(means, metric)
    return [Text(_mean_text(row[metric]), style="bold" if name in best else "") for name, row in _rows(means)]


def _difference_column(differences: pd.DataFrame, metric: str) -> list[Text]:
    styles = {"gain": "green", "loss": "red", "": ""}
    rows = differences.xs(metric, level="metric")
    return [Text(_difference_text(row), style=styles[_verdict(metric, row)]) for _, row in rows.iterrows()]


# The picture


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
        _draw_metric(figure.add_subplot(grid[0, position]), means, raw, metric, labels=position == 0)
    _draw_legend(figure.axes[0], sorted(raw["order"].unique()))
    _draw_domains(figure.add_subplot(grid[1, :]), last_by_domain(outcomes), _zero_shot(outcomes))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_metric(axes: Any, means: pd.DataFrame, raw: pd.DataFrame, metric: str, labels: bool) -> None:
    """One row per variant: mean and standard deviation, its runs as dots below, and the figures beside."""
    best = _best_of(means, metric)
    orders = sorted(raw["order"].unique())
    for y, (variant, row) in enumerate(means.iterrows()):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="#f4f6f8", linewidth=0)
        _draw_runs(axes, y, raw.loc[raw["variant"] == variant, ["order", metric]].dropna(), orders)
        _draw_mean(axes, y - 0.18, row[metric]["mean"], row[metric]["sd"])
        axes.text(
            1.02,
            y,
            _mean_text(row[metric]),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8.5,
            fontweight="bold" if variant in best else "normal",
        )
    _finish_metric(axes, means, raw, metric, labels)


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


def _finish_metric(axes: Any, means: pd.DataFrame, raw: pd.DataFrame, metric: str, labels: bool) -> None:
    mean, sd = means[metric, "mean"], means[metric, "sd"].fillna(0)
    ends = [*raw[metric].dropna(), *(mean - sd).dropna(), *(mean + sd).dropna()] or [0.0, 100.0]
    low, high = min(ends), max(ends)
    margin = max(0.06 * (high - low), (1 - (high - low)) / 2)  # never zoom into less than a point
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(len(means) - 0.5, -0.5)
    _name_rows(axes, list(means.index) if labels else [], len(means))
    axes.set_title(f"{METRIC_ROWS[metric]} in %", fontsize=10, fontweight="bold", loc="left")
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=8, color=SOFT)
    axes.grid(axis="x", color="#dfe4ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _name_rows(axes: Any, names: Sequence[str], rows: int) -> None:
    lines = ["\n".join(textwrap.wrap(label, 24)) or label for label in labels(names, 44)]
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
    best = [_best(last[name], decimals=1) for name in last.columns]
    rows = _with_zero_shot(last, zero_shot)
    values = rows.to_numpy(dtype=float)
    axes.imshow(_colours(values, last.to_numpy()), aspect="auto")
    numbers = len(domains) <= report.NUMBERS_UP_TO
    for (j, k), value in np.ndenumerate(values) if numbers else ():
        weight = "bold" if rows.index[j] in best[k] else "normal"
        axes.text(k, j, number(value), ha="center", va="center", fontsize=8.5, fontweight=weight)
    _finish_domains(axes, list(rows.index), domains)
    axes.set_title("Last in % by domain", fontsize=10, fontweight="bold", loc="left")
    axes.set_title(_colour_key(last.to_numpy()), fontsize=8, loc="right", color=SOFT)


def _with_zero_shot(last: pd.DataFrame, zero_shot: Mapping[str, float]) -> pd.DataFrame:
    if not zero_shot:
        return last
    return pd.concat([pd.DataFrame([zero_shot], index=[ZERO_SHOT], columns=last.columns), last])


def _finish_domains(axes: Any, rows: Sequence[str], domains: Sequence[str]) -> None:
    width = 110 // len(domains)  # characters that fit into a column
    upright = width < 8
    headings = [shorten(name, 18) for name in domains] if upright else report.column_names(domains, width)
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


def _colours(values: np.ndarray, last: np.ndarray) -> np.ndarray:
    """[R, K] accuracies -> [R, K, 3] colours by the points below `last`'s best [V, K]; absolute for one variant."""
    gaps = (np.fmax.reduce(last) - values) / _scale(last) if len(last) > 1 else 1 - values / 100
    strength = 1 - np.nan_to_num(gaps, nan=1.0).clip(0, 1)[..., None]
    return (255 + (BEST_CELL - 255) * strength).round().astype(np.uint8)


def _colour_key(last: np.ndarray) -> str:
    return (
        f"dark: best of its domain; white: {_scale(last):.0f} points or more below" if len(last) > 1 else ""
    )


def _zero_shot(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Zero-shot accuracy per domain: it knows no variant, order or seed, so the first run that has it speaks for all.

    Nothing when it is a variant itself.
    """
    if any(re.sub(r"[_ ]", "-", name.lower()) == ZERO_SHOT for name in _variants(outcomes)):
        return {}
    found = (outcome.metrics.get("zero_shot_per_domain") for outcome in outcomes)
    return next((dict(one) for one in found if one), {})


# The page


def comparison_html(
    outcomes: Sequence[Outcome],
    baseline: str,
    *,
    title: str = "Comparison",
    subtitle: str = "",
    folder: str = "",
    finished: str = "",
    command: str = "",
    notes: Sequence[str] = (),
) -> str:
    """Render the comparison: one file, nothing loaded from elsewhere.

    Args:
        outcomes: of the baseline and of other variants.
        baseline: the variant that others are compared with.
        title: the page's title.
        subtitle: one line on what was run, such as "ViT-B-16 (openai), 16 shots".
        folder: where the comparison lies.
        finished: when, as it is to be shown.
        command: what makes it again.
        notes: warnings to show at the top; those of `comparison_notes` follow.

    Returns:
        the page's HTML.

    Raises:
        InputError: as for `paired`.
    """
    means, differences, last = summary(outcomes), paired(outcomes, baseline), last_by_domain(outcomes)
    template = page_environment().get_template("comparison.html.jinja")
    return template.render(
        page=dict(title=title, subtitle=subtitle, folder=folder, finished=finished, command=command),
        scope=_scope(outcomes),
        notes=[*notes, *comparison_notes(outcomes, baseline)],
        picture=figure_png(outcomes),
        titles=METRIC_ROWS.values(),
        variants=_mean_rows(means),
        others=_difference_rows(differences),
        caption=_caption(baseline),
        baseline=baseline,
        domains=_domain_rows(last, _zero_shot(outcomes)),
        colour_key=_colour_key(last.to_numpy()),
        matrices=_matrices(outcomes),
        outcomes=outcomes,
        metrics=METRICS,
    )


def _mean_rows(means: pd.DataFrame) -> list[dict[str, Any]]:
    best = {metric: _best_of(means, metric) for metric in METRICS}
    return [
        {
            "name": variant,
            "cells": [
                {"text": _mean_text(row[metric]), "best": variant in best[metric]} for metric in METRICS
            ],
            "time": duration(row["seconds", "mean"]),
            "runs": int(row["seconds", "n"]),
        }
        for variant, row in _rows(means)
    ]


def _difference_rows(differences: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "name": variant,
            "cells": [
                {
                    "mean": points(row["mean"], signed=True),
                    "under": [text for text in (_interval_text(row), _p_text(row["p"])) if text],
                    "kind": _verdict(metric, row),
                }
                for metric, row in _rows(rows.droplevel("variant"))
            ],
            "pairs": int(rows["n"].max()),
        }
        for variant, rows in differences.groupby(level="variant", sort=False)
    ]


def _domain_rows(last: pd.DataFrame, zero_shot: Mapping[str, float]) -> dict[str, Any]:
    best = [_best(last[name], decimals=1) for name in last.columns]
    rows = _with_zero_shot(last, zero_shot)
    colours = _colours(rows.to_numpy(dtype=float), last.to_numpy())
    return {
        "names": list(last.columns),
        "rows": [
            {
                "name": name,
                "cells": [
                    {
                        "value": value,
                        "best": name in best[k],
                        "colour": "#{:02x}{:02x}{:02x}".format(*colours[j, k]),
                    }
                    for k, value in enumerate(row)
                ],
            }
            for j, (name, row) in enumerate(zip(rows.index, rows.to_numpy(dtype=float), strict=True))
        ],
    }


def _matrices(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Per variant, its mean accuracy matrix of each order; nothing where they would make the page huge."""
    if len(_domains(outcomes)) > report.NUMBERS_UP_TO:
        return []
    orders = {name: sorted({o.order for o in outcomes if o.variant == name}) for name in _variants(outcomes)}
    return [
        {
            "name": name,
            "orders": [
                {
                    "order": order,
                    "seeds": sum((o.variant, o.order) == (name, order) for o in outcomes),
                    "rows": _matrix_rows(mean_matrix(outcomes, name, order)),
                }
                for order in numbers
            ],
        }
        for name, numbers in orders.items()
    ]


def _matrix_rows(matrix: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "name": str(learnt),
            "cells": [
                report.heat_cell(value, "now" if name == learnt else "")
                for name, value in zip(matrix.columns, row, strict=True)
            ],
            "mean": report.mean_of_defined(row),
        }
        for learnt, row in zip(matrix.index, matrix.to_numpy(dtype=float), strict=True)
    ]
