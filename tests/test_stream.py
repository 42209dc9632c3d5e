"""The parts of the main loop that whole jobs (tests/jobs) do not reach."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lada_ray import stream as module
from lada_ray.console import Console
from lada_ray.errors import LadaError, LostLease
from lada_ray.evaluate import Row
from lada_ray.stream import learn_and_test, progress_line, stop, wait_for_calibration


def test_a_line_says_what_learning_did() -> None:
    total = {"a": [10], "b": [10]}
    rows = [Row("zero-shot", {"a": [4], "b": [2]}, total), Row("a", {"a": [9], "b": [2]}, total)]
    assert progress_line(rows, 2) == "  task 1 of 2: learnt a, 40.0 -> 90.0 %; mean of the 1 seen: 90.0 %"
    rows.append(Row("b", {"a": [8], "b": [7]}, total))
    assert progress_line(rows, 2).endswith("learnt b, 20.0 -> 70.0 %; mean of the 2 seen: 75.0 %")


class Calibrator:
    """Notes what is asked of it."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, packs: tuple[str, ...], soon: bool = False) -> None:
        self.said.append(f"begin {len(packs)}{' soon' * soon}")

    def wait(self, show: Callable[[int, int], None]) -> None:
        show(0, 1)
        self.said.append("wait")


def test_tests_and_calibrations_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side they would need a second worker: on a small machine its start takes longer than what is left."""
    said: list[str] = []
    row = Row("a", {"a": [1]}, {"a": [2]})
    evaluator = SimpleNamespace(
        evaluation=SimpleNamespace(tests=()), row=lambda packs, learnt: said.append(f"test {learnt}") or row
    )
    fakes: dict[str, Any] = {
        "plan_tasks": lambda *_: ("a", "b"),
        "fit_all_classes": lambda *_: {},
        "plan_evaluation": lambda *_: None,
        "plan_fit": lambda *_: None,
        "write_tests": lambda *_: None,
        "keep_known": lambda *_: None,
        "Evaluator": lambda *_: evaluator,
        "Calibrator": lambda *_: Calibrator(said),
        "_start_training": lambda *_: "training",
        "learn": lambda *_: iter([("zero-shot", ()), ("a", ("one",)), ("b", ("one", "two"))]),
        "finish": lambda *_: "done",
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    run: Any = SimpleNamespace(
        packs=(),
        store=SimpleNamespace(write=lambda *_: None),
        model_store=SimpleNamespace(uri="model"),
        lease=SimpleNamespace(check=lambda: None),
    )
    stream: Any = SimpleNamespace(domains=())
    tracker: Any = SimpleNamespace(sync=lambda: None, tracker=SimpleNamespace(seconds=0.0))
    done: Any = learn_and_test(stream, run, None, SimpleNamespace(seconds={}), tracker, Console(quiet=True))  # type: ignore[arg-type]
    assert done == ("done", "training")
    turns = [f"wait, test {learnt}, begin {i} soon" for i, learnt in enumerate(["zero-shot", "a", "b"])]
    assert ", ".join(said) == ", ".join(["begin 0", *turns, "wait"])


def test_a_run_that_was_taken_over_waits_for_nothing() -> None:
    def lost() -> None:
        raise LostLease("taken over")

    run: Any = SimpleNamespace(lease=SimpleNamespace(check=lost))
    calibrator: Any = Calibrator([])
    with pytest.raises(LostLease, match="taken over"):
        wait_for_calibration(calibrator, run, Console(quiet=True))
    assert calibrator.said == []


def test_an_error_at_the_end_of_training_costs_nothing() -> None:
    def fail() -> None:
        raise LadaError("training failed: a worker would not end")

    console, training = Console(quiet=True), SimpleNamespace(join=fail)
    stop(training, console)  # type: ignore[arg-type]
    assert console.notes == [
        "everything is learnt, tested and reported, but at its end training failed: a worker would not end"
    ]
    assert "stop training" in console.seconds
