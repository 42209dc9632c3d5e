"""Ray Train beside the driver: its end and its errors."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console as RichConsole

from lada_ray import console as console_module
from lada_ray import training
from lada_ray.console import Console
from lada_ray.errors import InputError, LadaError, LostLease
from lada_ray.training import Background, raise_cause


class WorkerFailure(Exception):
    """As Ray Train tells it: errors by rank, each wrapped."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("training failed on rank 0")
        wrapped = RuntimeError("wrapped")
        wrapped._base_exc = error  # type: ignore[attr-defined]
        self.worker_failures = {0: wrapped}


def start(monkeypatch: pytest.MonkeyPatch, fit: Any) -> Background:
    monkeypatch.setattr(training, "fit_remaining", fit)
    nothing: Any = None
    return Background(nothing, nothing, nothing, "/nowhere", "name", nothing)


def test_it_runs_beside_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    background = start(monkeypatch, lambda *_: go.wait(10))
    assert not background.over
    go.set()
    background.join()
    assert background.over


def test_a_workers_error_is_raised_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise WorkerFailure(LostLease("taken over"))

    background = start(monkeypatch, fail)
    with pytest.raises(LostLease, match="taken over"):
        background.join()


def test_other_errors_become_a_sentence() -> None:
    with pytest.raises(LadaError, match="training failed: out of memory"):
        raise_cause(RuntimeError("out of memory"))
    with pytest.raises(InputError):
        raise_cause(InputError(["no"]))


def next_packs(
    monkeypatch: pytest.MonkeyPatch, packs: list[tuple[str, ...]], over: bool, console: Console | None = None
) -> tuple[str, ...]:
    """Wait beside a training whose packs appear with time."""
    go, nothing = threading.Event(), None
    monkeypatch.setattr(training, "fit_remaining", lambda *_: over or go.wait(20))
    ledger: Any = SimpleNamespace(packs=lambda: packs.pop(0) if len(packs) > 1 else packs[0])
    anything: Any = nothing
    watch: Any = SimpleNamespace(read=lambda: ("digits", 7, 20))
    background = Background(anything, ledger, anything, "/nowhere", "name", watch)
    if over:
        background._thread.join()
    lease: Any = SimpleNamespace(check=lambda: None)
    try:
        return background.next_packs(0, lease, console or Console(quiet=True))
    finally:
        go.set()


def test_training_that_ends_too_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LadaError, match="training ended after 0 tasks"):
        next_packs(monkeypatch, [()], over=True)
    assert next_packs(monkeypatch, [("first",)], over=True) == ("first",)


def test_training_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "POLL_S", 0.01)
    monkeypatch.setattr(console_module, "BAR_AFTER_S", 0.02)
    sink = io.StringIO()
    console = Console(rich=RichConsole(file=sink, width=80, highlight=False))
    packs: list[tuple[str, ...]] = [*[()] * 20, ("first",)]
    assert next_packs(monkeypatch, packs, over=False, console=console) == ("first",)
    assert "learning digits: 7 of 20" in sink.getvalue()
