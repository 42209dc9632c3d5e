"""A comparison as a page; its layout is `comparison.html.jinja` beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lada_ray.comparison.notes import comparison_notes
from lada_ray.comparison.numbers import (
    METRICS,
    Outcome,
    domain_names,
    last_by_domain,
    mean_matrix,
    named_rows,
    paired,
    summary,
    variant_names,
    with_zero_shot,
    zero_shot_by_domain,
)
from lada_ray.comparison.picture import cell_colours, colour_key, figure_png
from lada_ray.comparison.words import (
    best_by_metric,
    best_of,
    caption,
    count_text,
    interval_text,
    mean_text,
    p_text,
    scope,
    verdict,
)
from lada_ray.page import duration, page_environment, points
from lada_ray.report import METRIC_ROWS, NUMBERS_UP_TO, heat_cell, mean_of_defined


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
    template = page_environment().get_template("comparison/comparison.html.jinja")
    return template.render(
        page=dict(title=title, subtitle=subtitle, folder=folder, finished=finished, command=command),
        scope=scope(outcomes),
        notes=[*notes, *comparison_notes(outcomes, baseline)],
        picture=figure_png(outcomes),
        titles=METRIC_ROWS.values(),
        variants=_mean_rows(means),
        others=_difference_rows(differences),
        caption=caption(baseline),
        baseline=baseline,
        domains=_domain_rows(last, zero_shot_by_domain(outcomes)),
        colour_key=colour_key(last.to_numpy()),
        matrices=_matrices(outcomes),
        outcomes=outcomes,
        metrics=METRICS,
    )


def _mean_rows(means: pd.DataFrame) -> list[dict[str, Any]]:
    best = {metric: best_by_metric(means, metric) for metric in METRICS}
    return [
        {
            "name": variant,
            "cells": [
                {"text": mean_text(row[metric]), "best": variant in best[metric]} for metric in METRICS
            ],
            "time": duration(row["seconds", "mean"]),
            "runs": int(row["seconds", "n"]),
        }
        for variant, row in named_rows(means)
    ]


def _difference_rows(differences: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "name": variant,
            "cells": [
                {
                    "mean": points(row["mean"], signed=True),
                    "under": [text for text in (interval_text(row), p_text(row["p"])) if text],
                    "kind": verdict(metric, row),
                }
                for metric, row in named_rows(rows.droplevel("variant"))
            ],
            "count": count_text(rows),
        }
        for variant, rows in differences.groupby(level="variant", sort=False)
    ]


def _domain_rows(last: pd.DataFrame, zero_shot: Mapping[str, float]) -> dict[str, Any]:
    best = [best_of(last[name], decimals=1) for name in last.columns]
    rows = with_zero_shot(last, zero_shot)
    colours = cell_colours(rows.to_numpy(dtype=float), last.to_numpy())
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
    if len(domain_names(outcomes)) > NUMBERS_UP_TO:
        return []
    orders = {
        name: sorted({o.order for o in outcomes if o.variant == name}) for name in variant_names(outcomes)
    }
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
                heat_cell(value, "now" if name == learnt else "")
                for name, value in zip(matrix.columns, row, strict=True)
            ],
            "mean": mean_of_defined(row),
        }
        for learnt, row in zip(matrix.index, matrix.to_numpy(dtype=float), strict=True)
    ]
