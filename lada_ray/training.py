"""Fitting beside the driver: in the background, its errors told as what they are."""

from __future__ import annotations

import threading
from typing import Any

from lada_ray.errors import LadaError
from lada_ray.fit.learners import fit_remaining
from lada_ray.fit.plan import FitPlan, Ledger
from lada_ray.fit.task import TrainResources


class Background:
    """The fitting of all remaining tasks, in a thread of its own.

    The thread is a daemon: when the driver ends, for whatever reason, it does not wait for the training.

    Args:
        plan, ledger, resources, storage, name: as for `fit_remaining`.
    """

    def __init__(
        self, plan: FitPlan, ledger: Ledger, resources: TrainResources, storage: str, name: str
    ) -> None:
        self._error: BaseException | None = None
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


def raise_cause(error: BaseException) -> None:
    """Raise the error of ours that a worker's failure came from, else the failure itself in a sentence."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for cause in [error, *failures, *(getattr(f, "_base_exc", None) for f in failures)]:
        if isinstance(cause, LadaError):
            raise cause
    raise LadaError(f"training failed: {error}") from error
