"""Shares of the searched parameters, against variances that are known."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from lada_ray.importance import importances
from lada_ray.space import Space

BETA = Space.from_yaml("beta")


def trials(space: Space, number: int, metric: Any) -> list[tuple[dict[str, Any], float]]:
    return [(values, metric(values)) for values in space.sample(number, seed=0)]


def test_shares_are_those_of_the_variance():
    # On the logarithmic scale β spans ln(10/0.3) = 3.51 and α ln(100) = 4.61. A straight line's variance goes with
    # the square of (slope × span): (2 × 3.51)² : 4.61² = 0.70 : 0.30.
    found = importances(
        BETA, trials(BETA, 80, lambda v: 2 * math.log(v["method.beta"]) + math.log(v["method.alpha"]))
    )
    assert found["method.beta"] == pytest.approx(0.70, abs=0.06)
    assert sum(found.values()) == pytest.approx(1)


def test_the_one_that_matters_comes_first():
    space = Space.from_yaml("full")
    found = importances(space, trials(space, 24, lambda v: v["views"]))
    assert next(iter(found)) == "views"
    assert found["views"] > 0.9
    assert set(found) == set(space.parameters)
    assert sum(found.values()) == pytest.approx(1)


def test_values_that_are_text_count_too():
    plain: dict[str, Any] = {
        "method.fusion": {"choice": ["gated", "additive"]},
        "method.beta": {"uniform": [1, 2]},
        "method.replay": {"choice": [True]},
    }
    space = Space.from_plain(plain)
    found = importances(space, trials(space, 24, lambda v: v["method.fusion"] == "gated"))
    assert found["method.fusion"] > 0.99
    assert found["method.replay"] == 0


def test_the_same_at_every_call():
    some = trials(BETA, 12, lambda v: v["method.beta"])
    assert importances(BETA, some) == importances(BETA, some)


def test_nothing_is_said_where_there_is_nothing_to_learn_from():
    some = trials(BETA, 4, lambda v: v["method.beta"])
    assert importances(BETA, []) == {}
    assert importances(BETA, some[:3]) == {}
    assert set(importances(BETA, some)) == {"method.beta", "method.alpha"}
    assert importances(BETA, [(values, 71.5) for values, _ in some]) == {}


def test_trials_that_cannot_be_used_are_left_out():
    some = trials(BETA, 6, lambda v: v["method.beta"])
    odd = [
        ({"method.beta": 99.0, "method.alpha": 1.0}, 1e9),
        ({"method.beta": 1.0, "method.alpha": 1.0}, math.nan),
    ]
    assert importances(BETA, [*some, *odd]) == importances(BETA, some)
    assert importances(BETA, [*some[:3], *odd]) == {}


def test_optuna_says_nothing(capfd):
    importances(BETA, trials(BETA, 4, lambda v: v["method.beta"]))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("optuna").getEffectiveLevel() == logging.INFO
