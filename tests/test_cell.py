"""A cell: a whole stream in this process, killed anywhere it goes on, and what it says can be recomputed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lada_ray.cell import Cell, Learnt, learn_cell
from lada_ray.domains import Domain
from lada_ray.errors import InputError, LostLease
from lada_ray.evaluate import TestSet, candidates, read_tests
from lada_ray.features.text import read_text
from lada_ray.fit.learners import learn_remaining
from lada_ray.head import make_head
from lada_ray.method import rail
from lada_ray.model import LadaModel
from lada_ray.store import open_store
from lada_ray.views import TEST_VIEW
from tests.conftest import TinyWorld

KINDS = ("lada", "joint", "zero_shot", "ncm", "rail_primal", "rail_dual")


class KilledError(Exception):
    """Stands for SIGKILL."""


@pytest.fixture(autouse=True)
def _few_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = rail.RailPrimal.__init__.__defaults__ or ()
    monkeypatch.setattr(rail.RailPrimal.__init__, "__defaults__", (200, *defaults[1:]))


def cell_of(
    world: TinyWorld, name: str, kind: str = "lada", domains: tuple[Domain, ...] | None = None, **changes: Any
) -> Cell:
    config = world.config(f"cell-{name}", **changes, method={"kind": kind})
    # As compare does: a learner in closed form has no augmented views.
    stream = world.stream(config, domains)
    return Cell.of(stream, world.images(stream))


def packs_of(learnt: Learnt) -> tuple[str, ...]:
    return tuple(json.loads(Path(learnt.folder, "model", "model.json").read_text())["packs"])


def accuracy_of(world: TinyWorld, model: LadaModel, test: TestSet) -> float:
    """Share of a domain's test images that a model of all domains takes for what they are, in %."""
    raw = world.bank.fetch(test.shas, [TEST_VIEW])[:, 0]
    truth = [(test.domain, test.class_names[label]) for label in test.labels]
    said = [model.class_names[i] for i in model.predict_features(raw)]
    return 100 * sum(a == b for a, b in zip(said, truth, strict=True)) / len(truth)


@pytest.mark.parametrize("kind", KINDS)
def test_every_learner_leaves_a_run_that_loads(tiny_world: TinyWorld, kind: str) -> None:
    cell = cell_of(tiny_world, kind, kind)
    count: list[int] = []
    learnt = learn_cell(cell, count=count.append)
    names = ["all domains"] if kind == "joint" else ["pets", "wild"]
    assert [row.learnt for row in learnt.rows] == ["zero-shot", *names]
    assert count == [0] + [1] * len(names)
    assert learnt.folder == f"{tiny_world.storage}/cell-{kind}"
    store = open_store(learnt.folder)
    matrix = pd.read_csv(Path(learnt.folder) / "accuracy_matrix.csv", index_col="learnt")
    assert (list(matrix.index), list(matrix.columns)) == (names, ["pets", "wild"])
    assert [row.accuracy() for row in learnt.rows[1:]] == [
        pytest.approx(dict(row)) for _, row in matrix.iterrows()
    ]
    assert json.loads(store.read("metrics.json")) == learnt.metrics
    assert learnt.metrics["last"] == pytest.approx(matrix.iloc[-1].mean())
    assert learnt.metrics["images_encoded"] == 0
    assert read_tests(store) == cell.evaluation.tests
    model = LadaModel.load(f"{learnt.folder}/model")
    assert model.domains == ["pets", "wild"]
    found = [accuracy_of(tiny_world, model, test) for test in cell.evaluation.tests]
    assert found == pytest.approx(matrix.iloc[-1].tolist())


def test_the_first_row_is_zero_shot(tiny_world: TinyWorld) -> None:
    cell = cell_of(tiny_world, "ncm", "ncm")
    zero_shot = learn_cell(cell).rows[0]
    texts = np.concatenate([read_text(tiny_world.bank, test.prompts) for test in cell.evaluation.tests])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    start = 0
    for test in cell.evaluation.tests:
        chosen = (tiny_world.bank.fetch(test.shas, [TEST_VIEW])[:, 0] @ texts.T).argmax(axis=1)
        hits = np.array(test.labels)[chosen == start + np.array(test.labels)]
        assert zero_shot.correct[test.domain] == np.bincount(hits, minlength=len(test.class_names)).tolist()
        start += len(test.class_names)
    labels, _ = candidates(cell.evaluation, make_head([], cell.evaluation.prediction, tiny_world.bank.width))
    assert len(labels) == start == 5


@pytest.mark.parametrize("kind", ["lada", "joint", "rail_dual"])
def test_again_it_only_looks_up(tiny_world: TinyWorld, kind: str) -> None:
    cell = cell_of(tiny_world, f"again-{kind}", kind)
    first = learn_cell(cell)
    folder = Path(first.folder)
    kept = [
        path for part in ("model/packs", "tasks", "rows") for path in sorted((folder / part).rglob("*.*"))
    ]
    moments = [path.stat().st_mtime_ns for path in kept]
    count: list[int] = []
    second = learn_cell(cell, count=count.append)
    assert second == first  # the seconds of the fits too
    assert count == [1 if kind == "joint" else 2]
    assert [path.stat().st_mtime_ns for path in kept] == moments
    assert not (folder / "checkpoint").exists()
    # RAIL alone keeps what the next task would need, after its newest pack.
    solver = [path.name for path in folder.glob("solver/*")]
    assert solver == ([f"{packs_of(first)[-1]}.safetensors"] if kind == "rail_dual" else [])


@pytest.mark.parametrize("kind", ["lada", "rail_dual", "rail_primal"])
def test_killed_after_a_task_it_goes_on(tiny_world: TinyWorld, kind: str) -> None:
    undisturbed = learn_cell(cell_of(tiny_world, f"whole-{kind}", kind))
    cell = cell_of(tiny_world, f"killed-{kind}", kind)
    learnt: list[int] = []

    def kill_after_first(number: int) -> None:
        learnt.append(number)
        if sum(learnt) == 1:
            raise KilledError

    with pytest.raises(KilledError):
        learn_cell(cell, count=kill_after_first)
    folder = Path(undisturbed.folder).with_name(f"cell-killed-{kind}")
    assert not (folder / "metrics.json").exists()
    learnt.clear()
    again = learn_cell(cell, count=lambda number: learnt.append(number))
    assert learnt == [1, 1]
    assert packs_of(again) == packs_of(undisturbed)
    assert (again.rows, again.metrics) == (undisturbed.rows, undisturbed.metrics)


def test_it_commits_what_a_training_worker_would(tiny_world: TinyWorld) -> None:
    learnt = learn_cell(cell_of(tiny_world, "worker"))
    config = tiny_world.config("cell-worker-alone")
    with tiny_world.run(config) as (run, ledger):
        assert list(learn_remaining(tiny_world.plan(config), ledger, "cpu")) == list(packs_of(learnt))
        assert learnt.seconds > 0
        assert learnt.seconds == sum(
            json.loads(path.read_text())["timings"]["fit"] for path in Path(learnt.folder, "tasks").iterdir()
        )
        assert run.packs == packs_of(learnt)


@pytest.mark.parametrize("kind", ["ncm", "rail_dual"])
def test_an_appended_domain_continues(tiny_world: TinyWorld, kind: str) -> None:
    at_once = learn_cell(cell_of(tiny_world, f"both-{kind}", kind))
    short = learn_cell(cell_of(tiny_world, f"grows-{kind}", kind, tiny_world.domains[:1]))
    assert short.metrics["transfer"] is None  # one domain alone
    first = packs_of(short)
    grown = learn_cell(cell_of(tiny_world, f"grows-{kind}", kind))
    assert packs_of(grown)[:1] == first
    assert packs_of(grown) == packs_of(at_once)
    assert (grown.rows, grown.metrics) == (at_once.rows, at_once.metrics)


def test_another_run_of_this_name_is_refused_and_fresh_replaces_it(tiny_world: TinyWorld) -> None:
    first = packs_of(learn_cell(cell_of(tiny_world, "taken", "ncm")))
    other = cell_of(tiny_world, "taken", "ncm", seed=1)
    with pytest.raises(InputError, match="seed: 0 in the run, 1 now"):
        learn_cell(other)
    fresh = learn_cell(other, fresh=True)
    assert not set(packs_of(fresh)) & set(first)
    assert len(list(Path(fresh.folder, "model", "packs").glob("*/pack.json"))) == 2
    assert learn_cell(other) == fresh


def test_joint_is_one_task_that_cannot_grow(tiny_world: TinyWorld) -> None:
    joint = cell_of(tiny_world, "joint-grows", "joint", tiny_world.domains[:1])
    assert [row.learnt for row in learn_cell(joint).rows] == ["zero-shot", "pets"]
    with pytest.raises(InputError) as error:
        learn_cell(cell_of(tiny_world, "joint-grows", "joint"))
    assert "2 are new (dog, wolf)" in str(error.value)


def test_a_cell_that_was_taken_over_leaves_no_table(
    tiny_world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(tiny_world, "overtaken", "ncm")
    folder = tiny_world.storage / "cell-overtaken"

    def take_over(number: int) -> None:
        model = folder / "model" / "model.json"
        model.write_text(json.dumps({**json.loads(model.read_text()), "epoch": 9}))

    with pytest.raises(LostLease, match="epoch 9"):
        learn_cell(cell, count=take_over)
    assert not (folder / "metrics.json").exists()
    assert not json.loads((folder / "model" / "model.json").read_text())["packs"]
