"""Runs without a partner, undefined metrics, differences that cannot be tested."""

from __future__ import annotations

from lada_ray.comparison import comparison_notes
from tests.comparison.outcomes import joint, outcome, three_seeds


def test_runs_without_a_partner_are_named() -> None:
    outcomes = [o for o in three_seeds() if (o.variant, o.seed) not in {("lada", 2), ("rail_dual", 0)}]
    note = comparison_notes(outcomes, "lada")[0]
    assert "order 0 seed 2 of rail_dual; order 0 seed 0 of lada" in note
    assert "(pairs of rail_dual with lada: 1)" in note


def test_variants_without_the_same_partners_share_a_note() -> None:
    outcomes = [outcome("lada", seed) for seed in range(9)]
    outcomes += [outcome(variant, seed, 70 + seed) for variant in ("a", "b") for seed in (0, 1)]
    note = comparison_notes(outcomes, "lada")[0]
    assert "order 0 seed 2, order 0 seed 3" in note
    assert "order 0 seed 7, 1 more of lada" in note
    assert "(pairs of a, b with lada: 2)" in note


def test_undefined_metrics_are_named() -> None:
    outcomes = [*three_seeds(), joint(0, 85), joint(1, 86), joint(2, 90)]
    outcomes[1] = outcome("lada", 1, 82, transfer=None)
    notes = comparison_notes(outcomes, "lada")
    assert "Transfer, Average, Forgetting, BWT: undefined for joint." in notes
    assert "Transfer of lada is the mean of 2 of its 3 runs: the others do not have it." in notes


def test_differences_that_cannot_be_tested_are_named() -> None:
    single = [outcome("lada", 0, 80), outcome("ncm", 0, 70.5)]
    assert comparison_notes(single, "lada") == ["One pair only, so no interval and no p: ncm."]
    lada = [outcome("lada", seed, 70 + seed) for seed in range(3)]
    other = [outcome("other", seed, 71 + seed) for seed in range(3)]
    assert comparison_notes([*lada, *other], "lada") == [
        "Transfer, Average, Last, Forgetting, BWT: the difference is the same in all pairs, "
        "so no test is possible, for other."
    ]
