"""Distributions: Ray Tune's values and bounds, positions that turn back into values, points for a grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lada_ray.distributions import DISTRIBUTIONS, LISTS, Distribution, Listed, Refused, numeric


def made(name: str, *arguments: Any) -> Distribution:
    return Listed(name, arguments) if name in LISTS else numeric(name, arguments)


CASES = [
    ("uniform", (1, 3)),
    ("quniform", (0, 1, 0.25)),
    ("loguniform", (0.1, 10)),
    ("qloguniform", (0.5, 8, 0.5)),
    ("randn", (20, 2)),
    ("qrandn", (20, 2, 0.5)),
    ("randint", (3, 9)),
    ("qrandint", (3, 21, 4)),
    ("qrandint", (3, 9, 1)),
    ("lograndint", (2, 20)),
    ("qlograndint", (3, 40, 4)),
    ("qlograndint", (3, 9, 1)),
    ("choice", (0.5, 1.0, 4.0)),
]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_values_are_distributed_as_in_ray_tune(name, arguments):
    from ray import tune

    ours = made(name, *arguments)
    number = 20_000
    values = [ours.value((i + 0.5) / number) for i in range(number)]
    given = (list(arguments),) if name == "choice" else arguments
    theirs = getattr(tune, name)(*given).sample(size=number, random_state=0)
    if name in {"uniform", "loguniform", "randn"}:
        quantiles = np.linspace(0.02, 0.98, 25)
        spread = max(theirs) - min(theirs)
        assert np.abs(np.quantile(values, quantiles) - np.quantile(theirs, quantiles)).max() < 0.02 * spread
    else:
        assert {type(v) for v in values} == {float if "int" not in name else int}
        levels, counts = np.unique(np.round(theirs, 9), return_counts=True)
        mine, own = np.unique(np.round(values, 9), return_counts=True)
        shares = dict(zip(mine.tolist(), (own / number).tolist(), strict=True))
        theirs_by = dict(zip(levels.tolist(), (counts / number).tolist(), strict=True))
        assert max(abs(shares.get(v, 0) - theirs_by.get(v, 0)) for v in shares | theirs_by) < 0.02


def test_every_distribution_is_compared():
    assert {name for name, _ in CASES} | {"grid_search"} == set(DISTRIBUTIONS)


def ends(distribution: Distribution) -> tuple[Any, Any]:
    values = [distribution.value(i / 1000) for i in range(1001)]
    return min(values), max(values)


def test_bounds():
    assert ends(made("uniform", 1, 3)) == (1.0, 3.0)
    assert ends(made("loguniform", "1e-4", 10)) == (1e-4, 10.0)
    assert ends(made("quniform", 0, 1, 0.25)) == (0.0, 1.0)
    assert ends(made("qloguniform", 0.5, 8, 0.5)) == (0.5, 8.0)
    assert ends(made("randint", 3, 9)) == (3, 8)  # the upper bound is excluded
    assert ends(made("lograndint", 3, 9)) == (3, 8)
    assert ends(made("qrandint", 3, 9)) == (3, 8)  # q is 1
    assert ends(made("qrandint", 4, 20, 4)) == (4, 20)  # the upper bound is included
    assert ends(made("qrandint", 3, 21, 4)) == (4, 20)  # multiples within the bounds
    assert ends(made("qlograndint", 3, 21, 4)) == (4, 20)
    assert ends(made("grid_search", 2, 1)) == (1.0, 2.0)


def test_multiples_are_the_numbers_that_a_person_writes():
    assert list(made("quniform", 0, 0.6, 0.1).values() or []) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [made("quniform", 0, 0.6, 0.1).value(p) for p in (0, 0.5, 1)] == [0.0, 0.3, 0.6]


def test_no_normal_draw_is_further_than_8_3_deviations_away():
    low, high = made("randn", 10, 1).ends()
    assert 8.1 < 10 - low < 8.3
    assert 8.1 < high - 10 < 8.3


@pytest.mark.parametrize(("name", "arguments"), [c for c in CASES if c[0] != "qrandn"], ids=str)
def test_a_position_is_the_inverse_of_a_value(name, arguments):
    distribution = made(name, *arguments)
    for step in range(1, 100):
        value = distribution.value(step / 100)
        position = distribution.position(value)
        assert position is not None
        if distribution.values() is None:
            assert position == pytest.approx(step / 100, abs=1e-9)
        assert distribution.value(position) == pytest.approx(value)


def test_positions_are_the_middle_of_each_values_share():
    assert [made("choice", 1, 2, 3, 4).position(v) for v in (1, 4)] == [0.125, 0.875]
    assert [made("randint", 1, 5).position(v) for v in (1, 4)] == [0.125, 0.875]
    assert [made("quniform", 0, 2, 1).position(v) for v in (0, 1, 2)] == [0.125, 0.5, 0.875]
    log = made("lograndint", 1, 5).position(2)
    assert log == pytest.approx((math.log(2) + math.log(3)) / 2 / math.log(5))


def test_grid_points_of_ranges():
    assert made("uniform", 1, 4).points(4) == [1, 2, 3, 4]
    assert made("uniform", 1, 4).points(1) == [2.5]
    assert made("quniform", 0, 1, 0.5).points(5) == [0.0, 0.5, 1.0]
    assert made("loguniform", 1, 8).points(4) == pytest.approx([1, 2, 4, 8])
    assert made("randn", 10, 1).points(3) == [8, 10, 12]
    assert made("randint", 1, 9).points(4) == [1, 3, 6, 8]
    assert made("randint", 1, 4).points(9) == [1, 2, 3]
    assert made("lograndint", 4, 65).points(3) == [4, 16, 64]
    assert made("qrandint", 3, 21, 4).points(3) == [4, 12, 20]


def test_what_is_no_value_has_no_position():
    assert made("qrandint", 4, 20, 4).position(10) is None
    assert made("uniform", 1, 2).position(2.5) is None
    assert made("choice", 1, 2).position(3) is None


def test_all_that_is_wrong_with_the_arguments_is_said_at_once():
    with pytest.raises(Refused) as caught:
        numeric("qloguniform", ["2", -1, 0])
    assert caught.value.complaints == (
        "qloguniform [2.0, -1, 0]: the lower bound 2.0 is not below the upper bound -1",
        "qloguniform [2.0, -1, 0]: both bounds must be greater than 0, for the scale is logarithmic",
        "qloguniform [2.0, -1, 0]: q must be greater than 0 (got 0)",
    )
