"""A comparison as CSV, as Markdown, and in the terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from lada_ray.comparison.notes import comparison_notes
from lada_ray.comparison.numbers import METRICS, Outcome, named_rows, paired, raw_results, summary
from lada_ray.comparison.words import (
    best_by_metric,
    caption,
    count_text,
    difference_text,
    mean_text,
    scope,
    verdict,
)
from lada_ray.page import duration
from lada_ray.report import METRIC_ROWS, print_columns


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
    best = {metric: best_by_metric(means, metric) for metric in METRICS}
    rows = [
        [
            _markdown(variant),
            *(_bold(mean_text(row[metric]), variant in best[metric]) for metric in METRICS),
            duration(row["seconds", "mean"]),
            f"{row['seconds', 'n']:.0f}",
        ]
        for variant, row in named_rows(means)
    ]
    parts = [_markdown_table(["", *METRIC_ROWS.values(), "time", "runs"], rows)]
    parts += [f"Mean ± standard deviation in %; {scope(outcomes)}."]
    if len(differences):
        parts += [_markdown_differences(differences), _markdown(caption(baseline))]
    notes = [f"- {_markdown(note)}" for note in comparison_notes(outcomes, baseline)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def _markdown_differences(differences: pd.DataFrame) -> str:
    rows = [
        [
            _markdown(str(variant)),
            *(difference_text(row) for _, row in table.iterrows()),
            count_text(table),
        ]
        for variant, table in differences.groupby(level="variant", sort=False)
    ]
    return _markdown_table(["", *METRIC_ROWS.values(), "n"], rows)


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
    _say(console, f"Mean ± standard deviation in %; {scope(outcomes)}", style="bold")
    print_columns(console, list(means.index), columns)
    if len(differences):
        others = list(differences.index.unique("variant"))
        columns = {title: _difference_column(differences, m) for m, title in METRIC_ROWS.items()}
        columns["n"] = [Text(count_text(differences.loc[[variant]])) for variant in others]
        _say(console, "\n" + caption(baseline), style="bold")
        print_columns(console, others, columns)
    for note in comparison_notes(outcomes, baseline):
        _say(console, f"note: {note}")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style))


def _mean_column(means: pd.DataFrame, metric: str) -> list[Text]:
    best = best_by_metric(means, metric)
    return [
        Text(mean_text(row[metric]), style="bold" if name in best else "") for name, row in named_rows(means)
    ]


def _difference_column(differences: pd.DataFrame, metric: str) -> list[Text]:
    styles = {"gain": "green", "loss": "red", "": ""}
    rows = differences.xs(metric, level="metric")
    return [Text(difference_text(row), style=styles[verdict(metric, row)]) for _, row in rows.iterrows()]
