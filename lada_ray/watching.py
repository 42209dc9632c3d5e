"""Tiny actors that learners tell how far they are, and that nobody waits for.

Ray starts a process for each: this module imports nothing that takes memory.
"""

from __future__ import annotations

from typing import Any


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
