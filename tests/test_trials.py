"""The trials of a sweep as small files: the same when read again, one per set of values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lada_ray.store import Store, open_store
from lada_ray.trials import Trial, all_kept, best, keep, kept, trial_key

VALUES = {"method.beta": 0.1 + 0.2, "method.memory_per_class": 4, "method.fusion": "gated"}


def trial(score: float = 1.0, status: Any = "finished", **values: Any) -> Trial:
    return Trial({**VALUES, **values}, status, ({"score": score, "last": 7.5},), 2.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.mark.parametrize(
    "one",
    [
        trial(1 / 3),
        Trial(VALUES, "stopped", ({"score": 1.0}, {"score": 2.0}), 0.1),
        Trial(VALUES, "failed", (), 0.0, "ValueError: ünlucky", 3),
    ],
    ids=lambda one: one.status,
)
def test_a_trial_that_was_kept_is_the_same(store: Store, one: Trial) -> None:
    keep(store, one)
    assert kept(store, one.key) == one
    assert all_kept(store) == {one.key: one}


def test_an_undefined_metric_stays_undefined_in_json_that_anyone_reads(store: Store) -> None:
    undefined = Trial(VALUES, "finished", ({"score": 5.0, "transfer": math.nan},))
    keep(store, undefined)
    (entry,) = store.list("trials")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    said = json.loads(store.read(entry.key), parse_constant=refuse)
    assert said["scores"] == [{"score": 5.0, "transfer": None}]
    again = kept(store, undefined.key)
    assert again is not None
    assert again.scores[0]["score"] == 5.0
    assert math.isnan(again.scores[0]["transfer"])


def test_a_trial_made_again_replaces_what_was_kept(store: Store) -> None:
    keep(store, trial(status="failed"))
    keep(store, trial(2.0))
    assert all_kept(store) == {trial().key: trial(2.0)}


def test_there_is_none_of_an_unknown_key(store: Store) -> None:
    assert kept(store, trial().key) is None
    assert all_kept(store) == {}


def test_a_key_names_values_whatever_their_order() -> None:
    assert trial_key(dict(reversed(VALUES.items()))) == trial_key(VALUES) == trial().key
    others = [{**VALUES, "method.beta": 0.3}, {**VALUES, "views": 0}, {"method.beta": VALUES["method.beta"]}]
    assert len({trial_key(values) for values in [VALUES, *others]}) == 4


def test_values_have_the_key_of_their_file(store: Store) -> None:
    keep(store, trial())
    (entry,) = store.list("trials")
    assert entry.key == f"trials/{trial_key(VALUES)}.json"


def test_the_score_is_that_after_the_newest_task() -> None:
    assert Trial({}, "stopped", ({"score": 1.0}, {"score": 0.5})).score == 0.5
    assert math.isnan(Trial({}, "stopped", ()).score)


def test_the_best_is_a_finished_one() -> None:
    trials = [
        trial(9.0, "stopped"),
        trial(8.0, "failed"),
        trial(math.nan, views=1),
        trial(3.0, views=2),
        trial(4.0, views=3),
        trial(4.0, views=4),
    ]
    found = best(trials)
    assert found is trials[4]  # of two equal ones the first
    assert best(trials[:3]) is None
    assert best([]) is None
