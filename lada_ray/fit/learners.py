"""How the learners are run, by kind: in this process, or on the cluster."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lada_ray.cluster import result
from lada_ray.config import TRAINED
from lada_ray.fit.closed_form import solve_tasks
from lada_ray.fit.plan import FitPlan, Ledger
from lada_ray.fit.task import TextSide, TrainResources, fit_tasks, learn_tasks


def learn_remaining(
    plan: FitPlan, ledger: Ledger, device: torch.device | str, text: TextSide | None = None
) -> Iterator[str]:
    """Learn and commit, in this process, the tasks that are not committed, in order; arguments as of `learn_tasks`.

    Yields:
        The digest of each pack that was committed.
    """
    torch.set_num_threads(plan.threads)
    return learn_tasks(plan, ledger, device, text=text) if plan.kind in TRAINED else solve_tasks(plan, ledger)


def fit_remaining(plan: FitPlan, ledger: Ledger, resources: TrainResources, storage: str, name: str) -> None:
    """Learn all tasks that are not committed yet on the cluster; returns when they are. Arguments as of `fit_tasks`."""
    import ray

    if plan.kind in TRAINED:
        fit_tasks(plan, ledger, resources, storage, name)
    elif resources.workers == 0:
        _solve(plan, ledger)
    else:
        task = ray.remote(num_cpus=resources.cpus)(_solve)
        result(task.remote(plan, ledger))


def _solve(plan: FitPlan, ledger: Ledger) -> None:
    torch.set_num_threads(plan.threads)
    for _ in solve_tasks(plan, ledger):
        pass
