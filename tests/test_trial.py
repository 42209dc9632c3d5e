"""A trial: folds that share nothing, and scores that are those of plain streams learnt on each fold's images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains import Domain
from lada_ray.evaluate import Evaluator, Row, load_tests, score_packs
from lada_ray.features.fill import Images
from lada_ray.features.selection import Selection
from lada_ray.fit.classes import fit_classes_here
from lada_ray.fit.learners import learn_remaining
from lada_ray.metrics import stream_metrics
from lada_ray.prepare import Stream, plan_evaluation, plan_fit, plan_tasks
from lada_ray.results import accuracy_table
from lada_ray.trial import Search, changed, learn_siblings, learn_trial, make_folds, mean_accuracy, scores
from tests.conftest import TinyWorld

FOLDS = 2


class Unreadable:
    """Stands for a test image that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"somebody asked for the {name} of a test image")


def blind_stream(world: TinyWorld, config: StreamConfig | None = None) -> Stream:
    """As a sweep hands it out: without test images."""
    return world.stream(config, tuple(replace(domain, test=()) for domain in world.domains))


def search_of(world: TinyWorld, config: StreamConfig | None = None, metric: str = "average") -> Search:
    stream = blind_stream(world, config)
    return Search(stream, make_folds(world.images(stream), FOLDS, FOLDS, 0), metric, 1)


# ---------------------------------------------------------------- folds


def images_of(train: Sequence[tuple[Domain, Sequence[str]]]) -> Images:
    """Images whose content is said: a letter per training image of each domain."""
    selections = [Selection(domain, domain.train, (), ("test",), ()) for domain, _ in train]
    hashes = {s.uri: sha for domain, shas in train for s, sha in zip(domain.train, shas, strict=True)}
    return Images(selections, hashes)


@pytest.mark.parametrize(("folds", "held_out"), [(2, 2), (4, 4), (5, 1)])
def test_folds_share_nothing_and_cover_all(tiny_world: TinyWorld, folds: int, held_out: int) -> None:
    images = tiny_world.images(blind_stream(tiny_world))
    parts = make_folds(images, folds, held_out, 0)
    assert len(parts) == held_out
    for part in parts:
        train = {sha for s in part.selections for sha in images.shas(s.train)}
        left_out = {sha for s in part.selections for sha in images.shas(s.test)}
        assert not train & left_out
        for whole, s in zip(images.selections, part.selections, strict=True):
            assert sorted((*s.train, *s.test), key=whole.train.index) == list(whole.train)
            assert set(s.train_labels) == set(range(len(s.domain.class_names)))
            # 6 training images per class.
            assert set(np.bincount(s.test_labels)) <= {6 // folds, -(-6 // folds)}
            assert (s.views, s.bad) == (whole.views, whole.bad)
    judged = [sample.uri for part in parts for s in part.selections for sample in s.test]
    assert len(judged) == len(set(judged))
    if held_out == folds:
        assert sorted(judged) == sorted(s.uri for domain in tiny_world.domains for s in domain.train)


def test_one_content_in_two_domains_is_not_learnt_and_judged_at_once(tiny_world: TinyWorld) -> None:
    pets, wild = tiny_world.domains
    # The six cats are the first six of the dogs and wolves, too.
    contents = [[f"p{i}" for i in range(18)], [*(f"p{i}" for i in range(6)), *(f"w{i}" for i in range(6))]]
    images = images_of([(pets, contents[0]), (wild, contents[1])])
    for part in make_folds(images, 3, 3, seed=1):
        train = {sha for s in part.selections for sha in images.shas(s.train)}
        left_out = {sha for s in part.selections for sha in images.shas(s.test)}
        assert left_out
        assert not train & left_out


def test_another_seed_leaves_out_others(tiny_world: TinyWorld) -> None:
    images = tiny_world.images(blind_stream(tiny_world))
    first = [[s.test for s in make_folds(images, 4, 1, seed)[0].selections] for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


# ---------------------------------------------------------------- values


def test_a_trial_changes_what_it_names_alone(tiny_world: TinyWorld) -> None:
    config = tiny_world.config()
    new = changed(config, {"method.beta": 7.0, "views": 1, "method.memory_per_class": 9})
    assert (new.method.beta, new.views, new.method.memory_per_class) == (7.0, 1, 9)
    back = {name: getattr(config.method, name) for name in ("beta", "memory_per_class")}
    assert new.model_copy(update={"views": 2, "method": new.method.model_copy(update=back)}) == config
    assert (config.method.beta, config.views) == (1.0, 2)
    assert changed(config, {}) == config
    # What a trial learns with can be written down and read again.
    assert StreamConfig.model_validate(new.model_dump()) == new


# ---------------------------------------------------------------- scores


def matrix(*rows: Sequence[float], learnt: Sequence[str] = ("a", "b", "c")) -> pd.DataFrame:
    return pd.DataFrame(list(rows), index=list(learnt)[: len(rows)], columns=["a", "b", "c"][: len(rows[0])])


def test_scores_by_hand() -> None:
    whole = matrix([80, 30, 10], [70, 90, 20], [60, 80, 100])
    # Transfer: b 30, c (10 + 20) / 2; Average: 70, 200 / 3, 130 / 3; Last: 60, 80, 100.
    expected = {"transfer": 22.5, "average": 60.0, "last": 80.0}
    for metric, value in {**expected, "balanced": 162.5 / 3}.items():
        assert scores(whole, metric) == pytest.approx({"score": value, **expected})


def test_scores_of_a_stream_under_way() -> None:
    found = scores(matrix([80, 30, 10]), "last")
    assert found == pytest.approx({"score": 80.0, "transfer": 20.0, "average": 40.0, "last": 80.0})


def test_a_single_domain_has_no_transfer() -> None:
    found = scores(matrix([60]), "balanced")
    assert math.isnan(found.pop("transfer"))
    assert found == {"score": 60.0, "average": 60.0, "last": 60.0}
    assert math.isnan(scores(matrix([60]), "transfer")["score"])


def test_joint_training_has_last_alone() -> None:
    found = scores(matrix([60, 90], learnt=["all domains"]), "balanced")
    assert (found["score"], found["last"]) == (75.0, 75.0)
    assert math.isnan(found["transfer"])
    assert math.isnan(found["average"])


def test_accuracies_are_means_over_the_folds_that_have_images() -> None:
    folds = [
        Row("a", {"a": [1, 2], "b": [0]}, {"a": [2, 2], "b": [0]}),
        Row("a", {"a": [0, 0], "b": [1]}, {"a": [4, 4], "b": [3]}),
    ]
    assert mean_accuracy(folds) == pytest.approx({"a": (75 + 0) / 2, "b": 100 / 3})


# ---------------------------------------------------------------- whole trials


def plain_stream(world: TinyWorld, config: StreamConfig, fold: Images) -> list[Row]:
    """The rows of a run that learns a fold's images and is tested on those left out."""
    domains = tuple(replace(s.domain, train=s.train, test=s.test) for s in fold.selections)
    other = TinyWorld.__new__(TinyWorld)
    other.__dict__ = {**world.__dict__, "domains": domains}
    stream = other.stream(config)
    images = other.images(stream)
    m = config.method
    fit_classes_here(
        world.bank,
        [part.images for task in plan_tasks(stream, images) for part in task.parts],
        m.memory_per_class,
        m.mixture_components,
    )
    with other.run(config, fresh=True) as (run, ledger):
        evaluator = Evaluator(
            run.store, plan_evaluation(stream, images, run.model_store.uri), Console(quiet=True), True
        )
        learning = learn_remaining(plan_fit(stream, plan_tasks(stream, images)), ledger, "cpu")
        return [evaluator.row(ledger.packs(), name) for name, _ in zip(stream.names, learning, strict=True)]


@pytest.mark.parametrize(
    "values",
    [{}, {"method.beta": 6.0, "method.memory_per_class": 3, "views": 0}, {"method.mixture_components": 1}],
    ids=["as configured", "others", "one component"],
)
def test_a_trial_equals_plain_streams_on_its_folds(tiny_world: TinyWorld, values: dict[str, Any]) -> None:
    search = search_of(tiny_world)
    found = list(learn_trial(search, values))
    config = changed(tiny_world.config(f"plain-{len(values)}"), values)
    folds = [plain_stream(tiny_world, config, fold) for fold in search.folds]
    assert len(found) == len(folds[0]) == 2
    for k, one in enumerate(found, start=1):
        metrics = [stream_metrics(accuracy_table(rows[:k])).means() for rows in folds]
        expected = {name: np.mean([m[name] for m in metrics]) for name in ("transfer", "average", "last")}
        assert one == pytest.approx({"score": expected["average"], **expected}, rel=1e-12)
    # Neither all right nor all wrong, or it would tell nothing.
    assert 0 < found[-1]["score"] < 100


def test_values_tell_in_the_scores(tiny_world: TinyWorld) -> None:
    search = search_of(tiny_world)
    once = [list(learn_trial(search, {"method.epochs": epochs}))[-1] for epochs in (1, 1, 12)]
    assert once[0] == once[1] != once[2]


def test_what_acts_on_predictions_alone_is_learnt_once(
    tiny_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_of(tiny_world)
    siblings = [{"method.alpha": 4.0, "method.fusion": fusion} for fusion in ("additive", "gated")]
    alone = [list(learn_trial(search, values)) for values in siblings]
    learnings: list[object] = []

    def counted(*arguments: Any) -> Any:
        learnings.append(arguments)
        return learn_remaining(*arguments)

    monkeypatch.setattr("lada_ray.trial.learn_remaining", counted)
    together = list(learn_siblings(search, siblings))
    assert [list(one) for one in zip(*together, strict=True)] == alone
    assert alone[0] != alone[1]
    assert len(learnings) == FOLDS


def test_joint_training_is_a_single_task(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("joint", method={"kind": "joint", "epochs": 8})
    search = search_of(tiny_world, config, "balanced")
    assert search.tasks == 1
    (one,) = learn_trial(search, {"method.lr": 0.02})
    assert one["score"] == one["last"] > 0
    assert math.isnan(one["average"])
    (other,) = learn_trial(replace(search, metric="last"), {"method.lr": 0.02})
    assert other["score"] == one["last"]


def test_nothing_is_left_behind_but_class_fits(tiny_world: TinyWorld) -> None:
    def files() -> set[Path]:
        return {path for path in tiny_world.storage.rglob("*") if path.is_file()}

    search, before = search_of(tiny_world), files()
    list(learn_trial(search, {"method.memory_per_class": 5}))
    new = files() - before
    # A file for each fold and domain.
    assert {path.parent.name for path in new} == {"classes"}
    assert len([path for path in new if path.name.startswith("memory-5-")]) == FOLDS * 2
    list(learn_trial(search, {"method.memory_per_class": 5, "method.beta": 3.0}))
    assert files() - before == new


def test_test_images_are_not_looked_at(tiny_world: TinyWorld) -> None:
    unreadable: Any = (Unreadable(),) * 3
    domains = tuple(replace(d, test=unreadable) for d in tiny_world.domains)
    stream = blind_stream(tiny_world)
    images = tiny_world.images(stream)
    selections = [replace(s, domain=d) for s, d in zip(images.selections, domains, strict=True)]
    folds = make_folds(replace(images, selections=selections), FOLDS, FOLDS, 0)
    watched = Search(replace(stream, domains=domains), folds, "average", 1)
    assert list(learn_trial(watched, {})) == list(learn_trial(search_of(tiny_world), {}))


def test_a_domain_that_a_fold_leaves_nothing_out_of_still_competes(tiny_world: TinyWorld) -> None:
    """As where classes have fewer images than there are folds."""
    search = search_of(tiny_world)
    wild = search.folds[0].selections[1]
    nothing = replace(search.folds[0], selections=[search.folds[0].selections[0], replace(wild, test=())])
    some = replace(search, folds=(nothing, search.folds[1]))
    alone = replace(search, folds=(search.folds[1],))
    found, expected = list(learn_trial(some, {}))[-1], list(learn_trial(alone, {}))[-1]
    # What is known of "wild" comes from the other fold alone.
    assert found["transfer"] == expected["transfer"]
    # Its classes can be mistaken for in the first fold all the same.
    evaluation = plan_evaluation(search.stream, nothing, "")
    row = score_packs(evaluation, [], "zero-shot", load_tests(evaluation))
    full = plan_evaluation(search.stream, search.folds[0], "")
    assert row.correct["pets"] == score_packs(full, [], "zero-shot", load_tests(full)).correct["pets"]
    assert (row.correct["wild"], row.total["wild"]) == ([0, 0], [0, 0])
