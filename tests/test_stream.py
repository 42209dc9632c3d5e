"""The parts of the main loop that whole jobs (tests/jobs) do not reach."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console as RichConsole

from lada_ray import console as console_module
from lada_ray import stream as module
from lada_ray.console import Console
from lada_ray.errors import LadaError
from lada_ray.evaluate import Row
from lada_ray.stream import _wait_for_packs, progress_line


def test_a_line_says_what_learning_did() -> None:
    total = {"a": [10], "b": [10]}
    rows = [Row("zero-shot", {"a": [4], "b": [2]}, total), Row("a", {"a": [9], "b": [2]}, total)]
    assert progress_line(rows, 2) == "  task 1 of 2: learnt a, 40.0 -> 90.0 %; mean of the 1 seen: 90.0 %"
    rows.append(Row("b", {"a": [8], "b": [7]}, total))
    assert progress_line(rows, 2).endswith("learnt b, 20.0 -> 70.0 %; mean of the 2 seen: 75.0 %")


class FakeRun:
    """A run whose packs appear with time."""

    def __init__(self, *packs: tuple[str, ...]) -> None:
        self._packs = list(packs)
        self.lease = SimpleNamespace(check=lambda: None)

    @property
    def packs(self) -> tuple[str, ...]:
        return self._packs.pop(0) if len(self._packs) > 1 else self._packs[0]


def wait(run: Any, over: bool, console: Console | None = None) -> tuple[str, ...]:
    training: Any = SimpleNamespace(over=over, join=lambda: None)
    watch: Any = SimpleNamespace(read=lambda: ("digits", 7, 20))
    return _wait_for_packs(run, 0, training, watch, console or Console(quiet=True))


def test_training_that_ends_too_early_is_an_error() -> None:
    with pytest.raises(LadaError, match="training ended after 0 tasks"):
        wait(FakeRun(()), over=True)
    assert wait(FakeRun(("first",)), over=True) == ("first",)


def test_training_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(console_module, "BAR_AFTER_S", 0.02)
    sink = io.StringIO()
    console = Console(rich=RichConsole(file=sink, width=80, highlight=False))
    assert wait(FakeRun(*[()] * 20, ("first",)), over=False, console=console) == ("first",)
    assert "learning digits: 7 of 20" in sink.getvalue()
