"""Ray Train beside the driver: its end and its errors."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lada_ray import training
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
    return Background(nothing, nothing, nothing, "/nowhere", "name")


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
