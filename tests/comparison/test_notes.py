"""Missing runs, undefined metrics, results that repeat, differences that cannot be tested."""

from __future__ import annotations

from typing import Any

from lada_ray.comparison import comparison_notes
from tests.comparison.outcomes import joint, outcome, three_seeds, without_shots


def test_missing_runs_are_named() -> None:
    outcomes = [o for o in three_seeds() if (o.variant, o.seed) not in {("lada", 2), ("rail_dual", 0)}]
    assert comparison_notes(outcomes, "lada")[0] == (
        "Missing, so that partners count in the means only: "
        "order 0 seed 2 of lada; order 0 seed 0 of rail_dual."
    )


def test_variants_that_miss_the_same_runs_share_a_line() -> None:
    outcomes = [outcome("lada", seed) for seed in range(9)]
    outcomes += [outcome(variant, seed, 70 + seed) for variant in ("a", "b") for seed in (0, 1)]
    note = comparison_notes(outcomes, "lada")[0]
    assert note.endswith("only: order 0 seed 2, order 0 seed 3, order 0 seed 4, order 0 seed 5, order 0 seed 6, "
                         "order 0 seed 7, 1 more of a, b.")  # fmt: skip


def test_undefined_metrics_are_named() -> None:
    outcomes = [*three_seeds(), joint(0, 85), joint(1, 86), joint(2, 90)]
    outcomes[1] = outcome("lada", 1, 82, transfer=None)
    notes = comparison_notes(outcomes, "lada")
    assert "Undefined: joint (Transfer, Average, Forgetting, BWT)." in notes
    assert "Undefined in some runs: lada (Transfer)." in notes


def test_seeds_that_change_nothing_are_named() -> None:
    lada = [outcome("lada", seed, 80 + seed, order) for order in (0, 1) for seed in range(3)]
    assert comparison_notes([*lada, *without_shots("ncm", 70, 71), *without_shots("b", 72, 73)], "lada") == [
        "The same for every seed, so that each order counts once: "
        "lada (Transfer, Average, Forgetting, BWT); ncm, b.",
        "The same difference in all pairs, so no interval and no p: ncm, b (Transfer, Average, Forgetting, BWT).",
    ]


def test_differences_that_cannot_be_tested_are_named() -> None:
    single = [outcome("lada", 0, 80), outcome("ncm", 0, 70.5)]
    assert comparison_notes(single, "lada") == ["One observation, so no interval and no p: ncm."]
    ramp: dict[str, Any] = {"average": 50.0, "transfer": 30.0, "forgetting": 2.0, "backward_transfer": -1.0}
    lada, other = (
        [outcome(name, seed, last + seed, **{k: v + seed for k, v in ramp.items()}) for seed in range(3)]
        for name, last in (("lada", 70), ("other", 71))
    )
    assert comparison_notes([*lada, *other], "lada") == [
        "The same difference in all pairs, so no interval and no p: other."
    ]
