"""What a reader of a comparison has to know: missing runs, undefined metrics, no test possible. A line per fact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lada_ray.comparison.numbers import METRICS, Outcome, by_variant, observations, paired
from lada_ray.report import METRIC_ROWS

Metrics = Mapping[str, Sequence[str]]
"""Some metrics of each variant."""


def comparison_notes(outcomes: Sequence[Outcome], baseline: str) -> list[str]:
    """What a reader of the tables has to know, a line per fact.

    Args:
        outcomes: of the baseline and of other variants.
        baseline: the variant that others are compared with.

    Returns:
        the notes; empty when there is nothing to say.

    Raises:
        InputError: as for `paired`.
    """
    differences, runs = paired(outcomes, baseline), by_variant(outcomes)
    return [*_missing_note(runs), *_mean_notes(runs), *_difference_notes(differences)]


def _missing_note(runs: Mapping[str, pd.DataFrame]) -> list[str]:
    """Runs that some variants have and others do not; variants alike are named together."""
    every = {key for table in runs.values() for key in table.index}
    groups: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for variant, table in runs.items():
        groups.setdefault(tuple(sorted(every.difference(table.index))), []).append(variant)
    missing = [f"{_listed(keys)} of {', '.join(variants)}" for keys, variants in groups.items() if keys]
    return [f"Missing, so that partners count in the means only: {'; '.join(missing)}."] if missing else []


def _listed(keys: Sequence[tuple[int, int]], most: int = 6) -> str:
    names = [f"order {order} seed {seed}" for order, seed in keys]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _mean_notes(runs: Mapping[str, pd.DataFrame]) -> list[str]:
    def where(holds: Callable[[pd.Series], Any]) -> Metrics:
        return {name: [m for m in METRICS if holds(table[m])] for name, table in runs.items()}

    every, defined = dict.fromkeys(runs, METRICS), where(lambda v: v.notna().any())
    repeated = "The same for every seed, so that each order counts once"
    return [
        *_note("Undefined", where(lambda v: v.isna().all()), every),
        *_note("Undefined in some runs", where(lambda v: v.isna().any() and v.notna().any()), every),
        *_note(repeated, where(_repeated), defined),
    ]


def _repeated(values: pd.Series) -> bool:
    table = values.dropna().to_frame()
    return len(observations(table)) < len(table)


def _difference_notes(differences: pd.DataFrame) -> list[str]:
    n, sd = differences["n"], differences["sd"]
    defined = _where(n > 0)
    return [
        *_note("One observation, so no interval and no p", _where(n == 1), defined),
        *_note(
            "The same difference in all pairs, so no interval and no p", _where((n > 1) & (sd == 0)), defined
        ),
    ]


def _where(found: pd.Series) -> Metrics:
    """The metrics of each variant for which `found`, index (variant, metric), is true."""
    metrics: dict[str, list[str]] = {}
    for variant, metric in found.index[found]:
        metrics.setdefault(variant, []).append(metric)
    return metrics


def _note(fact: str, metrics: Metrics, every: Metrics) -> list[str]:
    """A fact and for what it holds; a variant stands alone where it holds for `every` metric of it."""
    groups: dict[str, list[str]] = {}
    for variant, some in metrics.items():
        names = "" if list(some) == list(every[variant]) else f" ({_titles(some)})"
        if some:
            groups.setdefault(names, []).append(variant)
    found = "; ".join(f"{', '.join(variants)}{names}" for names, variants in groups.items())
    return [f"{fact}: {found}."] if found else []


def _titles(metrics: Iterable[str]) -> str:
    return ", ".join(METRIC_ROWS[metric] for metric in metrics)
