"""Fitting beside the driver: in the background, watched, its errors told as what they are."""

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


class Watch:
    """Where training workers say how far they are; a tiny actor, so that nobody waits for anybody."""

    def __init__(self) -> None:
        self.state: tuple[str, int, int] | None = None

    def update(self, domain: str, step: int, steps: int) -> None:
        """Called by the chief worker now and then."""
        self.state = (domain, step, steps)

    def read(self) -> tuple[str, int, int] | None:
        """(domain, steps done, steps to do), or None before the first."""
        return self.state


class Watcher:
    """The driver's side of a `Watch`, and the callable that workers report to; picklable."""

    def __init__(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=0)(Watch).remote()

    def __call__(self, domain: str, step: int, steps: int) -> None:
        """Report progress, without waiting."""
        self._actor.update.remote(domain, step, steps)

    def read(self) -> tuple[str, int, int] | None:
        """The newest report; None when there is none, or its node is gone: training does not depend on it."""
        import ray

        try:
            return ray.get(self._actor.read.remote(), timeout=5)
        except ray.exceptions.RayError:
            return None


class Count:
    """How many tasks are learnt, over all streams that are learnt side by side; a tiny actor."""

    def __init__(self) -> None:
        self.done = 0

    def add(self, number: int) -> None:
        """Called by whoever learns."""
        self.done += number

    def read(self) -> int:
        """Tasks learnt so far."""
        return self.done


class Counter:
    """The driver's side of a `Count`, and the callable that tells it of learnt tasks; picklable."""

    def __init__(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=0)(Count).remote()

    def __call__(self, number: int = 1) -> None:
        """Add to it, without waiting."""
        self._actor.add.remote(number)

    def read(self) -> int:
        """The count; 0 when its node is gone: nothing depends on it."""
        import ray

        try:
            return ray.get(self._actor.read.remote(), timeout=5)
        except ray.exceptions.RayError:
            return 0
