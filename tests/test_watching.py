"""Watches that nobody depends on, in processes that are light."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from lada_ray.watching import Count, Counter, Watch, Watcher

HEAVY = ("torch", "pandas", "numpy", "pyarrow", "mlflow")


def test_the_watch_keeps_the_newest() -> None:
    watch = Watch()
    assert watch.read() is None
    watch.update("digits", 3, 10)
    watch.update("digits", 4, 10)
    assert watch.read() == ("digits", 4, 10)


def test_the_count_adds_up() -> None:
    count = Count()
    count.add(2)
    count.add(3)
    assert count.read() == 5


def _kill(actor: Any) -> None:
    """Kill an actor and wait until it is dead: `ray.kill` returns before, and calls are answered till then."""
    import ray

    ray.kill(actor)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            ray.get(actor.read.remote(), timeout=5)
        except ray.exceptions.RayActorError:
            return
        time.sleep(0.05)
    raise AssertionError("the actor still answers 30 s after ray.kill")


def test_a_dead_watch_costs_nothing(ray_local: None) -> None:
    watcher = Watcher()
    watcher("digits", 1, 2)
    for _ in range(50):
        if watcher.read() is not None:
            break
        time.sleep(0.05)
    assert watcher.read() == ("digits", 1, 2)
    _kill(watcher._actor)
    watcher("digits", 2, 2)
    assert watcher.read() is None


def test_a_dead_count_costs_nothing(ray_local: None) -> None:
    counter = Counter()
    counter()
    counter(2)
    assert counter.read() == 3  # what one caller sent arrives in order
    _kill(counter._actor)
    counter()
    assert counter.read() == 0


@pytest.mark.parametrize("module", ["lada_ray.watching", "lada_ray.config"])
def test_it_is_imported_without_what_takes_memory(module: str) -> None:
    # A process of its own: in this one other tests have imported everything.
    names = set(HEAVY) if module == "lada_ray.watching" else {"torch", "pandas"}
    code = f"import sys, {module}; print(sorted({names!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
