"""What a reader of a comparison has to know: runs without a partner, undefined metrics, no test possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from lada_ray.comparison.numbers import METRICS, Outcome, named_rows, paired, summary, variant_names
from lada_ray.report import METRIC_ROWS


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
    done = {
        name: {(o.order, o.seed) for o in outcomes if o.variant == name} for name in variant_names(outcomes)
    }
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
    for variant, row in named_rows(means):
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
        for variant, row in named_rows(means)
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
