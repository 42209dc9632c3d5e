"""How a comparison's numbers are written and judged, alike in tables, picture and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lada_ray.comparison.numbers import Outcome, variant_names
from lada_ray.page import points


def mean_text(cell: Mapping[str, float] | pd.Series) -> str:
    """Mean ± standard deviation, if there is one."""
    spread = f" ± {points(cell['sd'])}" if cell["sd"] == cell["sd"] else ""
    return points(cell["mean"]) + spread


def interval_text(row: Mapping[str, float] | pd.Series) -> str:
    """The interval of a mean difference; empty where there is none: of one observation, or of equal ones."""
    return f"[{points(row['low'])}, {points(row['high'])}]" if row["low"] == row["low"] else ""


def difference_text(row: Mapping[str, float] | pd.Series) -> str:
    """A mean difference and its interval, if there is one."""
    return f"{points(row['mean'], signed=True)} {interval_text(row)}".rstrip()


def count_text(rows: pd.DataFrame) -> str:
    """Number of observations in the differences of a variant; from the fewest to the most, where metrics differ."""
    counts = sorted(set(rows["n"][rows["n"] > 0]))
    return "–".join(f"{count:.0f}" for count in dict.fromkeys(counts[:1] + counts[-1:])) or "0"


def p_text(p: float) -> str:
    """A p-value; empty where it is undefined."""
    return "" if p != p else "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def best_of(values: pd.Series, decimals: int = 2, lowest: bool = False) -> set[str]:
    """Variants whose value, as it is shown, no other one betters; none when there is only one value.

    Args:
        values: index = variants; NaN where undefined.
        decimals: with how many they are shown.
        lowest: whether less is better.
    """
    shown = values.dropna().round(decimals)
    if len(shown) < 2:
        return set()
    return set(shown.index[shown == (shown.min() if lowest else shown.max())])


def best_by_metric(means: pd.DataFrame, metric: str) -> set[str]:
    """Variants whose mean of a metric no other one betters."""
    return best_of(means[metric, "mean"], lowest=metric == "forgetting")


def verdict(metric: str, row: pd.Series) -> str:
    """Whether the interval of a difference lies on the good or on the bad side of zero: "gain", "loss" or "".

    Differences without an interval have no verdict.
    """
    if not (row["low"] > 0 or row["high"] < 0):
        return ""
    return "gain" if (row["mean"] > 0) != (metric == "forgetting") else "loss"


def caption(baseline: str) -> str:
    """What the differences are."""
    return (
        f"Difference to {baseline} in points on the same order and seed: mean [95 % t-interval]. "
        "Each order and seed is one of n observations; where the seed changes neither of the two, each order is. "
        "Intervals hold one at a time, not corrected for the number of comparisons."
    )


def scope(outcomes: Sequence[Outcome]) -> str:
    """How many variants, orders, seeds and runs there are."""
    orders, seeds = {outcome.order for outcome in outcomes}, {outcome.seed for outcome in outcomes}
    parts = ((len(variant_names(outcomes)), "variant"), (len(orders), "order"), (len(seeds), "seed"))
    counts = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in parts]
    return f"{', '.join(counts)}: {len(outcomes)} run{'s' if len(outcomes) > 1 else ''}"
