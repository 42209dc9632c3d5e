"""Means and paired differences by hand, missing partners, one seed, joint learners."""

from __future__ import annotations

import math

import pytest

from lada_ray.comparison import Outcome, last_by_domain, mean_matrix, paired, raw_results, summary
from lada_ray.comparison.numbers import observations
from lada_ray.errors import InputError
from tests.comparison.outcomes import difference, joint, mean, outcome, three_seeds, without_shots


def test_summary_is_mean_and_sample_deviation() -> None:
    outcomes = three_seeds()
    assert mean(outcomes, "lada") == {"mean": 82.0, "sd": 2.0, "n": 3}
    assert mean(outcomes, "rail_dual") == {"mean": 80.0, "sd": pytest.approx(math.sqrt(3)), "n": 3}
    assert mean(outcomes, "lada", "seconds") == {"mean": 20.0, "n": 3}


def test_variants_keep_their_order_and_one_seed_has_no_deviation() -> None:
    outcomes = [outcome("z"), outcome("a")]
    assert list(summary(outcomes).index) == ["z", "a"]
    assert mean(outcomes, "z") == {"mean": 80.0, "sd": pytest.approx(math.nan, nan_ok=True), "n": 1}


def test_paired_differences_by_hand() -> None:
    row = difference(three_seeds(), "rail_dual")
    half = 4.302652729911275 / math.sqrt(3)  # t of 0.975 with 2 degrees of freedom; the deviation is 1
    assert (row["mean"], row["sd"], row["n"], row["unpaired"]) == (-2.0, 1.0, 3, 0)
    assert row["low"] == pytest.approx(-2 - half)
    assert row["high"] == pytest.approx(-2 + half)
    # With 2 degrees of freedom p = 1 - |t| / sqrt(2 + t²), and t = -2 √3.
    assert row["p"] == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14))


def test_pairs_are_matched_by_order_and_seed_wherever_they_stand() -> None:
    lada = [outcome("lada", seed, 60 + 10 * order + seed, order) for order in (0, 1) for seed in (0, 1)]
    better = [outcome("better", o.seed, o.metrics["last"] + 1 + o.seed, o.order) for o in reversed(lada)]
    row = difference([*lada, *better], "better")
    assert (row["mean"], row["n"]) == (1.5, 4)
    assert row["sd"] == pytest.approx(math.sqrt(1 / 3))


def test_seeds_that_change_nothing_are_no_observations() -> None:
    # Differences -10 and -12, each three times: two observations, whose t is -11 with 1 degree of freedom.
    row = difference([*without_shots("lada", 80, 82), *without_shots("ncm", 70, 70)], "ncm")
    assert (row["mean"], row["n"], row["unpaired"]) == (-11.0, 2, 0)
    assert row["sd"] == pytest.approx(math.sqrt(2))
    assert row["p"] == pytest.approx(2 * math.atan(1 / 11) / math.pi)
    assert mean(without_shots("lada", 80, 82), "lada") == {"mean": 81.0, "sd": pytest.approx(2**0.5), "n": 2}
    one = difference([*without_shots("lada", 80), *without_shots("ncm", 70)], "ncm")
    assert (one["mean"], one["n"]) == (-10.0, 1)
    assert math.isnan(one["sd"])
    assert math.isnan(one["p"])


def test_seeds_count_where_they_change_either_of_the_two() -> None:
    lada = [outcome("lada", seed, 80 + seed, order) for order in (0, 1) for seed in range(3)]
    outcomes = [*lada, *without_shots("ncm", 70, 70)]
    assert difference(outcomes, "ncm")["n"] == 6
    assert difference(outcomes, "ncm", "transfer")["n"] == 2
    assert (mean(outcomes, "lada")["n"], mean(outcomes, "ncm")["n"]) == (6, 2)
    assert mean(outcomes, "lada", "seconds")["n"] == 6


def test_a_tie_within_one_order_is_chance() -> None:
    rows = [
        outcome("lada", seed, last, order) for order in (0, 1) for seed, last in enumerate((80, 80 + order))
    ]
    table = raw_results(rows).set_index(["order", "seed"])[["last"]]
    assert len(observations(table)) == 4
    assert observations(table.loc[[0]])["last"].tolist() == [80.0]


def test_identical_differences_have_no_interval_and_no_p() -> None:
    # 0.1 + 0.2 is not 0.3: rounding must not pass for a spread.
    lada = [outcome("lada", seed, value) for seed, value in enumerate((70.1, 70.2, 70.3))]
    other = [outcome("other", one.seed, one.metrics["last"] + 0.1 + 0.2) for one in lada]
    row = difference([*lada, *other], "other")
    assert row["mean"] == pytest.approx(0.3)
    assert row["sd"] == 0.0
    assert row["n"] == 3
    assert all(math.isnan(row[name]) for name in ("low", "high", "p"))


def test_one_pair_has_a_difference_but_no_interval() -> None:
    outcomes = [outcome("lada", 0, 80), outcome("ncm", 0, 70.5)]
    row = difference(outcomes, "ncm")
    assert (row["mean"], row["n"]) == (-9.5, 1)
    assert all(math.isnan(row[name]) for name in ("sd", "low", "high", "p"))


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_metrics_that_are_undefined_stay_so(undefined: float | None) -> None:
    outcomes = [*three_seeds(), joint(0, 85), joint(1, 86), joint(2, 90)]
    outcomes[1:3] = [outcome("lada", 1, 82, transfer=undefined), outcome("lada", 2, 84, transfer=31.0)]
    assert mean(outcomes, "joint", "transfer")["n"] == 0
    assert math.isnan(mean(outcomes, "joint", "transfer")["mean"])
    assert mean(outcomes, "lada", "transfer")["n"] == 2
    row = difference(outcomes, "joint", "transfer")
    assert (row["n"], row["unpaired"]) == (0, 2)
    assert difference(outcomes, "joint")["mean"] == 5.0


def test_runs_without_a_partner_are_counted() -> None:
    outcomes = [o for o in three_seeds() if (o.variant, o.seed) not in {("lada", 2), ("rail_dual", 0)}]
    row = difference(outcomes, "rail_dual")
    assert (row["mean"], row["n"], row["unpaired"]) == (-1.0, 1, 2)
    assert mean(outcomes, "lada")["n"] == 2


def test_a_variant_alone_has_no_differences() -> None:
    assert paired([outcome("lada", seed, 80 + seed) for seed in (0, 1)], "lada").empty


def test_domains_align_by_name_over_orders() -> None:
    outcomes = [outcome("lada", 0, 60, order=1), outcome("lada", 0, 80, order=0), joint(0, 90)]
    # Order 0: digits 76, signs 84; order 1 learns signs first: signs 56, digits 64.
    last = last_by_domain(outcomes)
    assert list(last.columns) == ["digits", "signs"]
    assert last.to_numpy().tolist() == [[70.0, 70.0], [86.0, 94.0]]
    matrix = mean_matrix(outcomes, "lada", 1)
    assert list(matrix.index) == ["signs", "digits"]
    assert matrix.to_numpy().tolist() == [[30.0, 40.0], [64.0, 56.0]]


def test_mean_matrix_is_over_seeds() -> None:
    assert mean_matrix(three_seeds(), "lada", 0).to_numpy().tolist() == [[62.0, 30.0], [78.0, 86.0]]
    with pytest.raises(InputError, match="no outcome of 'lada' with order 3"):
        mean_matrix(three_seeds(), "lada", 3)


def test_all_reasons_why_nothing_compares_are_said_at_once() -> None:
    other = outcome("b", 1)
    renamed = Outcome("b", 0, 1, other.metrics, other.accuracy.rename(columns={"signs": "pets"}), 1.0, "/x")
    backwards = outcome("c", 0, learnt=("signs", "digits"))
    with pytest.raises(InputError) as caught:
        paired([outcome("a"), outcome("a"), renamed, backwards], "lada")
    assert len(caught.value.problems) == 4
    for part in (
        "a, order 0, seed 0 is there 2 times (/runs/0-0, /runs/0-0)",
        "b, order 0, seed 1 (/x) has domains digits, pets, others digits, signs",
        "c, order 0, seed 0 (/runs/0-0) learnt signs, digits, but a in the same order digits, signs",
        "the baseline 'lada' is not among the variants: a, b, c",
    ):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="run at least one variant"):
        summary([])
