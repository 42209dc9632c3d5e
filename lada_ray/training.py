"""Fitting beside the driver: in the background, its errors told as what they are."""

from __future__ import annotations

import threading
import time
from typing import Any

from lada_ray.console import Console
from lada_ray.errors import LadaError
from lada_ray.fit.learners import fit_remaining
from lada_ray.fit.plan import FitPlan, Ledger
from lada_ray.fit.task import TrainResources
from lada_ray.lease import Lease
from lada_ray.watching import Watcher

START_POLL_S = 0.1
# Of the packs as well, which may be an object store's.
POLL_S = 0.25


class Background:
    """The fitting of all remaining tasks, in a thread of its own.

    The thread is a daemon: when the driver ends, for whatever reason, it does not wait for the training.

    Args:
        plan, ledger, resources, storage, name: as for `fit_remaining`.
        watch: what the ledger tells progress to.
    """

    def __init__(
        self,
        plan: FitPlan,
        ledger: Ledger,
        resources: TrainResources,
        storage: str,
        name: str,
        watch: Watcher,
    ) -> None:
        self._error: BaseException | None = None
        self._ledger, self._watch = ledger, watch
        arguments = (plan, ledger, resources, storage, name)
        self._thread = threading.Thread(target=self._run, args=arguments, name="train", daemon=True)
        self._thread.start()

    def _run(self, *arguments: Any) -> None:
        try:
            fit_remaining(*arguments)
        except BaseException as error:
            self._error = error

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end.

        Raises:
            LadaError: what went wrong in a worker.
        """
        self._thread.join()
        if self._error is not None:
            raise_cause(self._error)

    def wait_for_start(self, known: int, lease: Lease) -> None:
        """Wait until a worker has begun with its first task, after `known` packs, or ended before.

        Raises:
            LostLease: another process took the run over.
        """
        while not (self.over or self._watch.read() or len(self._ledger.packs()) > known):
            lease.check()
            time.sleep(START_POLL_S)

    def next_packs(self, known: int, lease: Lease, console: Console) -> tuple[str, ...]:
        """Wait until there are more packs than `known`, showing how far the current task is; returns them all.

        Raises:
            LadaError: training failed, or ended without learning everything.
            LostLease: another process took the run over.
        """
        with console.stage("learn"):
            while True:
                over = self.over
                if len(packs := self._ledger.packs()) > known:
                    return packs
                if over:
                    self.join()
                    raise LadaError(f"training ended after {known} tasks; start the run again")
                lease.check()
                if state := self._watch.read():
                    domain, step, steps = state
                    console.progress(f"learning {domain}", step, steps)
                time.sleep(POLL_S)


def raise_cause(error: BaseException) -> None:
    """Raise the error of ours that a worker's failure came from, else the failure itself in a sentence."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for cause in [error, *failures, *(getattr(f, "_base_exc", None) for f in failures)]:
        if isinstance(cause, LadaError):
            raise cause
    raise LadaError(f"training failed: {error}") from error
