"""What a plan counts, against what learners really keep; whole plans are printed in jobs/test_run_stream.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lada_ray import plan
from lada_ray.fit.closed_form import solve_tasks
from lada_ray.fit.learners import learn_remaining
from lada_ray.method import rail
from tests.fit.test_task import MemoryLedger

if TYPE_CHECKING:
    from conftest import TinyWorld


@pytest.mark.parametrize("kind", ["zero_shot", "ncm", "rail_primal", "rail_dual"])
def test_what_is_kept_is_foretold_to_the_byte(
    tiny_world: TinyWorld, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = rail.RailPrimal.__init__.__defaults__ or ()
    monkeypatch.setattr(rail.RailPrimal.__init__, "__defaults__", (200, *defaults[1:]))
    monkeypatch.setattr(plan, "DIMENSIONS", 200)
    config = tiny_world.config(method={"kind": kind})
    fit, ledger = tiny_world.plan(config), MemoryLedger(32)
    assert len(list(solve_tasks(fit, ledger))) == 2
    packs = sum(tensor.nbytes for fitted in ledger.fitted for tensor in fitted.tensors.values())
    state = sum(array.nbytes for array in ledger.state[1].values()) if ledger.state else 0
    assert plan.kept_bytes(config.method, 32, fit.tasks) == (packs, state)


def test_what_lada_keeps_is_foretold_within_a_tenth(tiny_world: TinyWorld) -> None:
    config = tiny_world.config()
    fit, ledger = tiny_world.plan(config), MemoryLedger(32)
    list(learn_remaining(fit, ledger, "cpu"))
    packs = sum(tensor.nbytes for fitted in ledger.fitted for tensor in fitted.tensors.values())
    told, state = plan.kept_bytes(config.method, 32, fit.tasks)
    assert state == 0
    assert told == pytest.approx(packs, rel=0.1)


def test_steps_that_remain_and_classes_that_they_replay(tiny_world: TinyWorld) -> None:
    tasks = plan.Tasks(tiny_world.plan().tasks, (9, 4), 0)
    assert (tasks.remaining, tasks.done, tasks.seen) == (13, False, 1)  # 0 classes, then 3
    assert (replace(tasks, learnt=1).remaining, replace(tasks, learnt=1).done) == (4, False)
    assert (replace(tasks, learnt=2).remaining, replace(tasks, learnt=2).done) == (0, True)
    joint = tiny_world.plan(tiny_world.config(method={"kind": "joint"}))
    assert plan.Tasks(joint.tasks, (13,), 0).seen == 0
