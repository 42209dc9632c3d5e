"""The learners without gradients: what a task's features say is absorbed at once, in closed form.

They look at the deterministic view of each training image alone. What the next task needs of all tasks before it is
kept beside the packs, the latest only; where that is missing, after a kill, it is made again from the bank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lada_ray.features.text import read_text
from lada_ray.fit.plan import FitPlan, Fitted, Ledger, TaskPlan, Tensors
from lada_ray.method.ncm import NearestMean
from lada_ray.method.rail import RailDual, RailPrimal
from lada_ray.views import TEST_VIEW


class Solver(Protocol):
    """A learner in closed form."""

    def learn(
        self, unit: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int
    ) -> dict[str, npt.NDArray[Any]]:
        """Absorb a task: unit features [n, d], their classes among the C seen, C. Returns what its pack keeps."""

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that the next `learn` needs."""

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a `state`."""


class ZeroShot:
    """Learns nothing: a class that is "seen" differs from others in nothing."""

    def learn(
        self, unit: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int
    ) -> dict[str, npt.NDArray[Any]]:
        """See Solver."""
        return {}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """See Solver."""
        return {}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See Solver."""


def make_solver(kind: str, width: int, seed: int) -> Solver:
    """The learner of a kind.

    Args:
        kind: `method.kind`.
        width: d.
        seed: of the run; RAIL's projection is drawn from it.
    """
    makers: dict[str, Callable[[], Solver]] = {
        "zero_shot": ZeroShot,
        "ncm": NearestMean,
        "rail_primal": lambda: RailPrimal(width, seed),
        "rail_dual": RailDual,
    }
    return makers[kind]()


def solve_tasks(plan: FitPlan, ledger: Ledger) -> Iterator[str]:
    """Learn and commit the tasks that are not committed, in order.

    Yields:
        The digest of each pack that was committed.
    """
    solver = make_solver(plan.kind, plan.bank.width, plan.seed)
    packs = ledger.packs()
    remaining, parent = plan.tasks[len(packs) :], packs[-1] if packs else None
    if remaining:
        _restore(plan, ledger, solver, packs)
    for task in remaining:
        started = time.time()
        text = np.concatenate([read_text(plan.bank, part.prompts) for part in task.parts])
        tensors: Tensors = {"text": text, **_learn(plan, solver, task)}
        parent = ledger.commit(task, Fitted(tensors, started, time.time() - started), parent)
        if task is plan.tasks[-1] and (state := solver.state()):
            ledger.save_state(parent, state)
        yield parent


def _learn(plan: FitPlan, solver: Solver, task: TaskPlan) -> dict[str, npt.NDArray[Any]]:
    raw = plan.bank.fetch(task.shas, [TEST_VIEW])[:, 0]
    first = sum(before.classes for before in plan.tasks[: task.position])
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return solver.learn(unit, task.labels + first, first + task.classes)


def _restore(plan: FitPlan, ledger: Ledger, solver: Solver, packs: Sequence[str]) -> None:
    """Bring a solver to the state after these packs."""
    if not packs:
        return
    state = ledger.load_state(packs[-1])
    if state is not None:
        solver.load_state(state)
        return
    for task in plan.tasks[: len(packs)]:
        _learn(plan, solver, task)
