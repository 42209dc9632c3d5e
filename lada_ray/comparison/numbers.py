"""The numbers of a comparison: means and spread of each variant, paired differences to a baseline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lada_ray.errors import InputError
from lada_ray.report import METRIC_ROWS, ZERO_SHOT

METRICS = tuple(METRIC_ROWS)
CONFIDENCE = 0.95
# Accuracies are ratios of counts: differences that are really different differ by far more than rounding does.
SAME = 1e-9


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
    check_outcomes(outcomes)
    return pd.DataFrame([_raw_row(outcome, domain_names(outcomes)) for outcome in outcomes])


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


def observations(values: pd.DataFrame) -> pd.DataFrame:
    """What statistics may count: the runs or, where the seed changes nothing, one of each order.

    Without shots, a learner in closed form learns the same from every seed. Its runs repeat one result then, and
    would pass for evidence that nobody has. Whether the seed matters is asked of all orders together: ties within
    some of them are chance, ties within all of them mean that seeds say nothing about the spread.

    Args:
        values: index (order, seed); a metric in %, a column for each of the variants that are compared.

    Returns:
        `values`; when no column varies within any order, the first row of each, index order.
    """
    orders = values.groupby(level="order")
    seed_matters = (orders.max() - orders.min() >= SAME).to_numpy().any()
    return values if seed_matters else orders.first()


def summary(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Mean and spread of each variant over its `observations`.

    Args:
        outcomes: of any number of variants, orders and seeds.

    Returns:
        index: variants in order of first appearance; columns (metric, statistic): for each metric `mean` and `sd`
        in % (sample standard deviation, ddof 1; NaN for one value) over its `n` observations: the (order, seed)s
        that have it, or the orders where the seed changes nothing. For the seconds `mean` and `n`, which is the
        number of the variant's runs.

    Raises:
        InputError: as for `raw_results`.
    """
    rows = [_summary_row(runs) for runs in by_variant(outcomes).values()]
    columns = pd.MultiIndex.from_tuples(list(rows[0]), names=["metric", "statistic"])
    return pd.DataFrame(rows, index=pd.Index(variant_names(outcomes), name="variant"), columns=columns)


def _summary_row(runs: pd.DataFrame) -> dict[tuple[str, str], float]:
    row: dict[tuple[str, str], float] = {}
    for metric in METRICS:
        seen = observations(runs[[metric]].dropna())[metric]
        row |= {(metric, "mean"): seen.mean(), (metric, "sd"): seen.std(ddof=1), (metric, "n"): len(seen)}
    return row | {("seconds", "mean"): runs["seconds"].mean(), ("seconds", "n"): len(runs)}


def by_variant(outcomes: Sequence[Outcome]) -> dict[str, pd.DataFrame]:
    """`raw_results` of each variant, in order of first appearance, with index (order, seed)."""
    table = raw_results(outcomes).set_index(["order", "seed"])
    return {name: table[table["variant"] == name] for name in variant_names(outcomes)}


def paired(outcomes: Sequence[Outcome], baseline: str) -> pd.DataFrame:
    """Differences of the other variants to the baseline on the same (order, seed).

    Each (order, seed) is one observation. Where the seed changes neither of the two, as with learners in closed form
    on all images, each order is one (`observations`), whatever the number of seeds.

    Args:
        outcomes: of the baseline and of other variants.
        baseline: the variant that is subtracted.

    Returns:
        index (variant, metric); columns: `mean` and `sd` (ddof 1) of the differences in points over `n`
        observations, `low` and `high` of the 95 % t-interval of the mean, `p` of the two-sided paired t-test, and
        `unpaired`, the number of (order, seed)s at which only one of the two has the metric. With one observation,
        sd, interval and p are NaN. When all differences are the same, sd is 0, and interval and p are NaN: the test's
        statistic is undefined (0/0) or infinite, and neither is evidence.

    Raises:
        InputError: as for `raw_results`, or no outcome of the baseline.
    """
    check_outcomes(outcomes, baseline)
    runs = by_variant(outcomes)
    base = runs.pop(baseline)
    rows = {
        (variant, metric): _paired_row(theirs[metric], base[metric])
        for variant, theirs in runs.items()
        for metric in METRICS
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=["variant", "metric"])
    columns = ["mean", "sd", "n", "low", "high", "p", "unpaired"]
    return pd.DataFrame(list(rows.values()), index=index, columns=columns)


def _paired_row(theirs: pd.Series, base: pd.Series) -> dict[str, float]:
    table = pd.DataFrame({"theirs": theirs, "base": base})
    pairs = observations(table.dropna())
    differences = (pairs["theirs"] - pairs["base"]).to_numpy(dtype=float)
    unpaired = int((table.notna().sum(axis=1) == 1).sum())
    return _difference(differences) | {"n": len(pairs), "unpaired": unpaired}


def _difference(values: np.ndarray) -> dict[str, float]:
    """Mean, sd, t-interval and p of paired differences; NaN for what they leave undefined."""
    nan = float("nan")
    mean = float(values.mean()) if len(values) else nan
    if len(values) < 2 or np.ptp(values) < SAME:
        return {"mean": mean, "sd": nan if len(values) < 2 else 0.0, "low": nan, "high": nan, "p": nan}
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
    domains = domain_names(outcomes)
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
    check_outcomes(outcomes)
    found = [one.accuracy for one in outcomes if (one.variant, one.order) == (variant, order)]
    if not found:
        raise InputError([f"there is no outcome of {variant!r} with order {order}"])
    domains = domain_names(outcomes)
    mean = np.mean([frame[domains].to_numpy(dtype=float) for frame in found], axis=0)
    return pd.DataFrame(mean, index=found[0].index, columns=domains)


def zero_shot_by_domain(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Zero-shot accuracy per domain: it knows no variant, order or seed, so the first run that has it speaks for all.

    Nothing when it is a variant itself.
    """
    if any(re.sub(r"[_ ]", "-", name.lower()) == ZERO_SHOT for name in variant_names(outcomes)):
        return {}
    found = (outcome.metrics.get("zero_shot_per_domain") for outcome in outcomes)
    return next((dict(one) for one in found if one), {})


def with_zero_shot(last: pd.DataFrame, zero_shot: Mapping[str, float]) -> pd.DataFrame:
    """Put zero-shot accuracy per domain, if it is known, as a row above those of `last_by_domain`."""
    if not zero_shot:
        return last
    return pd.concat([pd.DataFrame([zero_shot], index=[ZERO_SHOT], columns=last.columns), last])


def named_rows(table: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """The rows of a table, each with its name."""
    return ((str(name), row) for name, row in table.iterrows())


def variant_names(outcomes: Iterable[Outcome]) -> list[str]:
    """The variants in order of first appearance."""
    return list(dict.fromkeys(outcome.variant for outcome in outcomes))


def domain_names(outcomes: Sequence[Outcome]) -> list[str]:
    """The domains in the order of the lowest-numbered order."""
    return list(min(outcomes, key=lambda outcome: outcome.order).accuracy.columns)


def check_outcomes(outcomes: Sequence[Outcome], baseline: str | None = None) -> None:
    """Refuse outcomes that cannot be compared.

    Args:
        outcomes: of any number of variants.
        baseline: the variant that others are to be compared with.

    Raises:
        InputError: all reasons at once.
    """
    if not outcomes:
        raise InputError(["there are no outcomes: run at least one variant"], "Nothing to compare")
    problems = [*_duplicates(outcomes), *_other_streams(outcomes)]
    variants = variant_names(outcomes)
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
    domains = domain_names(outcomes)
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
