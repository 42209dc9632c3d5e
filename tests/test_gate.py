"""The promotion gate: what passes, what blocks, what cannot be decided."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from lada_ray.config import find_problems
from lada_ray.gate import FEWEST, Check, Gate, Limits, Role, Scores, interval, judge, print_gate

LIMITS = Limits(max_drop=1.0, min_gain=2.0, max_transfer_drop=0.5)


def scores(role: Role, lost: int, same: int, won: int, right: int = 0, domain: str = "pets") -> Scores:
    """Scores with these differences to what the role compares with; both are right on `right` of the same ones."""
    before = np.array([True] * lost + [True] * right + [False] * (same - right) + [False] * won, bool)
    after = np.array([False] * lost + [True] * right + [False] * (same - right) + [True] * won, bool)
    other = np.zeros(len(before), bool)
    if role == "new":
        return Scores(domain, role, after, other, before)
    return Scores(domain, role, after, before, other)


def check(role: Role, lost: int, same: int, won: int, right: int = 0, limits: Limits = LIMITS) -> Check:
    (one,) = judge([scores(role, lost, same, won, right)], limits).checks
    return one


def test_a_small_drop_of_an_earlier_domain_passes() -> None:
    one = check("earlier", lost=8, same=990, won=2, right=900)
    assert (one.name, one.domain, one.n, one.verdict) == ("max_drop", "pets", 1000, "passed")
    assert (one.before, one.after, one.estimate, one.limit, one.missed_by) == (90.8, 90.2, -0.6, -1.0, 0.0)
    # The sum of 1000 differences has the variance 10 - 36/1000: 1.96 standard deviations are 0.62 points.
    assert one.low == pytest.approx(-0.6 - 0.62, abs=0.11)
    assert one.high == pytest.approx(-0.6 + 0.62, abs=0.11)


def test_a_clear_drop_blocks_and_says_by_how_much() -> None:
    one = check("earlier", lost=60, same=930, won=10, right=830)
    assert (one.verdict, one.estimate, one.missed_by) == ("blocked", -5.0, 4.0)
    assert one.high < one.limit
    assert one.said == (
        "pets (max_drop): 89.0 % to 84.0 %, -5.00 points against the champion "
        f"(95 % interval {one.low:+.2f} to {one.high:+.2f}, 1000 images); at least -1.00 is asked for: "
        "missed by 4.00, BLOCKED"
    )


def test_a_drop_that_may_be_chance_is_undecided() -> None:
    one = check("earlier", lost=12, same=83, won=5)
    assert (one.estimate, one.verdict) == (-7.0, "undecided")
    assert one.low < one.limit < one.high
    assert one.said.endswith("at least -1.00 is asked for: missed by 6.00, which may be chance; passes")


@pytest.mark.parametrize(
    ("gained", "verdict"), [(300, "passed"), (20, "passed"), (19, "undecided"), (0, "blocked")]
)
def test_the_new_domain_has_to_beat_zero_shot(gained: int, verdict: str) -> None:
    one = check("new", lost=40, same=920 - gained, won=40 + gained)
    assert (one.name, one.limit, one.verdict) == ("min_gain", 2.0, verdict)
    assert "points against zero-shot CLIP" in one.said


@pytest.mark.parametrize(
    ("lost", "won", "verdict"),
    # A drop of 0.6 points is no chance where hardly an image changes, and may be where many do.
    [(50, 0, "passed"), (60, 0, "blocked"), (1060, 1000, "undecided"), (200, 0, "blocked")],
)
def test_a_guard_domain_keeps_its_zero_shot_accuracy(lost: int, won: int, verdict: str) -> None:
    one = check("guard", lost, same=10_000 - lost - won, won=won)
    assert (one.name, one.limit, one.verdict) == ("max_transfer_drop", -0.5, verdict)


@pytest.mark.parametrize("n", [300, 700, 1000, 1100, 9000])
def test_exactly_the_limit_is_no_more_than_the_limit(n: int) -> None:
    exact = [(h * n // 10_000, h / 100) for h in range(1, 400) if h * n % 10_000 == 0]
    for lost, points in exact[:12]:
        limits = Limits(max_drop=points, min_gain=points)
        assert check("earlier", lost, n - lost, 0, limits=limits).verdict == "passed"
        assert check("earlier", lost + 1, n - lost - 1, 0, limits=limits).verdict != "passed"
        assert check("new", 0, n - lost, lost, limits=limits).verdict == "passed"
        assert check("new", 0, n - lost + 1, lost - 1, limits=limits).verdict != "passed"


def test_the_interval_is_that_of_resampled_images() -> None:
    difference = np.array([-1] * 15 + [0] * 300 + [1] * 25)
    drawn = np.random.default_rng(1).choice(difference, (4000, 340)).mean(axis=1) * 100
    low, high = interval(15, 300, 25)
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.35)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.35)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth, rng = np.array([0.06, 0.9, 0.04]), np.random.default_rng(0)
    ends = np.array([interval(*counts) for counts in rng.multinomial(500, truth, 300).tolist()])
    covered = ((ends[:, 0] <= -2) & (ends[:, 1] >= -2)).mean()
    assert 0.92 <= covered <= 0.98


def test_without_images_nothing_is_decided() -> None:
    for role in ("earlier", "new", "guard"):
        gate = judge([scores(role, 0, 0, 0)], LIMITS)
        (one,) = gate.checks
        assert (one.n, one.verdict, gate.passed, gate.flagged) == (0, "undecided", True, (one,))
        assert np.isnan([one.before, one.after, one.estimate, one.low, one.high, one.missed_by]).all()
        assert one.said.endswith("no test images, so nothing is known; passes")
        assert one.to_json()["estimate"] is None


def test_two_lost_images_do_not_block() -> None:
    one = check("earlier", lost=2, same=0, won=0)
    assert (one.estimate, one.low, one.verdict) == (-100.0, -100.0, "undecided")
    assert one.high == pytest.approx(-100 + 2 * 100 * (1 - 0.025**0.5))
    assert one.said.endswith("missed by 99.00, which so few images cannot prove; passes")


def test_the_fewest_images_that_block() -> None:
    verdicts = [check("earlier", lost=n, same=0, won=0).verdict for n in range(1, 9)]
    assert verdicts.index("blocked") + 1 == FEWEST == 6
    # The bootstrap alone would be sure here.
    assert interval(3, 1, 0)[1] < -1
    assert check("earlier", lost=3, same=1, won=0).verdict == "undecided"


def test_identical_predictions_are_no_drop_and_no_gain() -> None:
    assert check("earlier", 0, 50, 0, right=40).verdict == "passed"
    assert check("guard", 0, 2, 0).verdict == "passed"
    few, many = check("new", 0, 50, 0, right=20), check("new", 0, 500, 0, right=20)
    assert (few.verdict, few.low, few.high) == ("undecided", pytest.approx(-7.11, abs=0.01), -few.low)
    assert (many.verdict, many.high) == ("blocked", pytest.approx(0.74, abs=0.01))


def test_no_more_gain_is_asked_for_than_there_is_room() -> None:
    perfect = check("new", 0, 1000, 0, right=1000)
    assert (perfect.limit, perfect.verdict) == (0.0, "passed")
    nearly = check("new", 0, 990, 10, right=990)
    assert (nearly.limit, nearly.estimate, nearly.verdict) == (1.0, 1.0, "passed")
    worse = check("new", 100, 890, 10, right=890)
    assert (worse.limit, worse.verdict) == (1.0, "blocked")


def test_the_result_does_not_depend_on_the_images_order_nor_on_when_it_is_asked() -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.random(400) < share for share in (0.5, 0.6, 0.4)]
    order = rng.permutation(400)
    first, again = Scores("a", "earlier", *arrays), Scores("a", "earlier", *[a[order] for a in arrays])
    np.random.seed(7)
    assert judge([first], LIMITS) == judge([again], LIMITS) == judge([first], LIMITS)


def gate() -> Gate:
    return judge(
        [
            scores("earlier", 60, 930, 10, domain="pets"),
            scores("earlier", 12, 83, 5, domain="signs"),
            scores("new", 0, 100, 100, domain="digits"),
            scores("guard", 0, 0, 0, domain="doodles"),
        ],
        LIMITS,
    )


def test_one_blocked_check_closes_the_gate() -> None:
    found = gate()
    assert not found.passed
    assert [c.domain for c in found.blocked] == ["pets"]
    assert [c.domain for c in found.flagged] == ["signs", "doodles"]
    assert found.said == (
        "the gate is closed: 1 of 4 checks blocked, pets (max_drop); "
        "undecided: signs (max_drop), doodles (max_transfer_drop)"
    )
    assert judge([scores("new", 0, 9, 9)], LIMITS).said == "the gate is passed (1 check)"


def test_it_is_written_as_json() -> None:
    said: Any = json.loads(json.dumps(gate().to_json(), allow_nan=False))
    assert (said["passed"], said["blocked"]) == (False, ["max_drop pets"])
    assert said["flagged"] == ["max_drop signs", "max_transfer_drop doodles"]
    assert {**said["checks"][2], "said": ""} == {
        **{"name": "min_gain", "domain": "digits", "before": 0.0, "after": 50.0, "estimate": 50.0},
        **{"low": 43.0, "high": 57.0, "limit": 2.0, "n": 200, "verdict": "passed", "said": ""},
    }
    assert said["checks"][3]["before"] is None


@pytest.mark.parametrize("width", [120, 60])
def test_it_is_printed(width: int) -> None:
    sink = io.StringIO()
    print_gate(gate(), Console(file=sink, width=width))
    shown = sink.getvalue()
    for words in (
        "-5.00",
        "blocked",
        "undecided",
        "+43.00 to +57.00",
        "the gate is closed: 1 of 4",
        "nothing is known",
    ):
        assert words in shown
    assert shown.count("pets (max_drop)") == 2


def test_a_hundred_thousand_images_are_quick() -> None:
    rng = np.random.default_rng(0)
    many = [Scores(f"d{i}", "earlier", *(rng.random(100_000) < 0.8 for _ in range(3))) for i in range(10)]
    started = time.perf_counter()
    judge(many, LIMITS)
    assert time.perf_counter() - started < 2


def test_nothing_to_check_is_no_proof() -> None:
    with pytest.raises(ValueError, match="at least one domain"):
        judge([], LIMITS)


def test_scores_are_paired_bools() -> None:
    right = np.ones(3, bool)
    for wrong in [np.ones(4, bool), np.ones(3, np.int64), np.ones((3, 1), bool)]:
        with pytest.raises(ValueError, match="pets: scores have to be bools of one shape"):
            Scores("pets", "new", right, wrong, right)  # type: ignore[arg-type]


def test_limits_are_strict() -> None:
    assert find_problems({"max_dorp": 1, "min_gain": -1, "max_transfer_drop": 101}, Limits) == [
        "min_gain: must be greater than or equal to 0 (got -1)",
        "max_transfer_drop: must be less than or equal to 100 (got 101)",
        "max_dorp: unknown key; did you mean max_drop?",
    ]
    with pytest.raises(ValidationError):
        LIMITS.max_drop = 2.0  # type: ignore[misc]
    assert all(field.description for field in Limits.model_fields.values())
