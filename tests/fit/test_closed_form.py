"""The learners in closed form on the tiny world: what their packs say, and going on after kills."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from lada_ray.config import MethodConfig
from lada_ray.fit.closed_form import make_solver, solve_tasks
from lada_ray.fit.plan import FitPlan
from lada_ray.method import rail
from lada_ray.views import TEST_VIEW
from tests.fit.test_task import MemoryLedger

if TYPE_CHECKING:
    from conftest import TinyWorld

KINDS = ("zero_shot", "ncm", "rail_primal", "rail_dual")


@pytest.fixture(autouse=True)
def _few_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rail.RailPrimal.__init__, "__defaults__", (200, *rail.RailPrimal.__init__.__defaults__[1:])
    )


def plan_of(world: TinyWorld, kind: str) -> FitPlan:
    return world.plan(world.config(method={"kind": kind}))


def solved(plan: FitPlan, ledger: MemoryLedger | None = None) -> MemoryLedger:
    ledger = ledger or MemoryLedger(32)
    for _ in solve_tasks(plan, ledger):
        pass
    return ledger


@pytest.mark.parametrize("kind", KINDS)
def test_packs_hold_the_text_and_what_the_learner_keeps(tiny_world: TinyWorld, kind: str) -> None:
    pets, wild = solved(plan_of(tiny_world, kind)).fitted
    more = {
        "zero_shot": [{}, {}],
        "ncm": [{"prototypes": (3, 32)}, {"prototypes": (2, 32)}],
        "rail_primal": [{"projection": (32, 200), "weights": (200, 3)}, {"weights": (200, 5)}],
        "rail_dual": [
            {"features": (18, 32), "coefficients": (18, 3)},
            {"features": (12, 32), "coefficients": (30, 5)},
        ],
    }[kind]
    for fitted, classes, kept in zip((pets, wild), (3, 2), more, strict=True):
        shapes = {name: tensor.shape for name, tensor in fitted.tensors.items()}
        assert shapes == {"text": (classes, 32), **kept}
        assert all(tensor.dtype == np.float32 for tensor in fitted.tensors.values())
        assert not fitted.losses


def test_the_solvers_have_the_constants_that_their_packs_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    primal, dual = make_solver("rail_primal", 32, 0), make_solver("rail_dual", 32, 0)
    told = [MethodConfig(kind=kind).identity for kind in ("rail_primal", "rail_dual")]
    assert {"kind": "rail_primal", "mix": 0.8, **_of(primal, "ridge", "dimensions")} == told[0]
    assert {"kind": "rail_dual", "mix": 0.8, **_of(dual, "ridge", "gamma")} == told[1]


def _of(solver: object, *names: str) -> dict[str, float]:
    return {name: getattr(solver, name) for name in names}


def test_class_means_are_those_of_the_unit_features(tiny_world: TinyWorld) -> None:
    plan = plan_of(tiny_world, "ncm")
    wild = solved(plan).fitted[1].tensors["prototypes"]
    task = plan.tasks[1]
    raw = tiny_world.bank.fetch(task.shas, [TEST_VIEW])[:, 0]
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    mean = unit[task.labels == 1].mean(axis=0)
    np.testing.assert_allclose(wild[1], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [True, False])
def test_the_next_start_goes_on_as_if_there_had_been_none(
    tiny_world: TinyWorld, kind: str, kept: bool
) -> None:
    plan = plan_of(tiny_world, kind)
    undisturbed = solved(plan)
    ledger = MemoryLedger(32)
    first = next(tasks := solve_tasks(plan, ledger))
    tasks.close()
    assert (first, len(ledger.fitted)) == ("pack 0", 1)
    if kept:  # as at the end of a run to which a domain is appended
        shorter = FitPlan(**{**vars(plan), "tasks": plan.tasks[:1]})
        ledger = solved(shorter)
    solved(plan, ledger)
    for a, b in zip(ledger.fitted, undisturbed.fitted, strict=True):
        assert a.tensors.keys() == b.tensors.keys()
        for name in a.tensors:
            assert np.array_equal(a.tensors[name], b.tensors[name]), name


def test_the_state_is_kept_after_the_last_task_alone(tiny_world: TinyWorld) -> None:
    ledger = solved(plan_of(tiny_world, "rail_dual"))
    assert ledger.state is not None
    assert ledger.state[0] == "pack 1"
    assert solved(plan_of(tiny_world, "ncm")).state is None
