"""What a person sees: timed stages, bars on a terminal, a line now and then without one."""

from __future__ import annotations

import io
import logging
import os
import time
import warnings
from contextlib import suppress

import pytest
from rich.console import Console as RichConsole

from lada_ray import console as module
from lada_ray.console import Console, quiet_libraries


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def console(terminal: bool = False, quiet: bool = False) -> tuple[Console, io.StringIO]:
    sink = io.StringIO()
    rich = RichConsole(file=sink, force_terminal=terminal, width=60, highlight=False)
    return Console(quiet=quiet, started=1000.0, rich=rich), sink


def test_stages_add_up(clock: Clock) -> None:
    shown, _ = console()
    for seconds in (2.0, 3.0):
        with shown.stage("learn"):
            clock.now += seconds
    with suppress(KeyError), shown.stage("encode"):
        clock.now += 1.0
        raise KeyError
    assert shown.seconds == {"learn": 5.0, "encode": 1.0}
    assert shown.wall_seconds == 6.0


def test_lines_are_printed_as_they_are(clock: Clock) -> None:
    shown, sink = console()
    long = "[bold] 50 % of s3://bucket/" + "x" * 100
    shown.say(long)
    assert sink.getvalue() == long + "\n"


def test_without_a_terminal_progress_is_a_line_now_and_then(clock: Clock) -> None:
    shown, sink = console()
    with shown.stage("encode images"):
        for done in range(25):
            shown.progress("encode", done, 100)
            clock.now += 1.0
    lines = sink.getvalue().splitlines()
    # The first after a moment, then every ten seconds; done at one a second.
    assert lines == [
        "  encode: 1 of 100, about 99 s left",
        "  encode: 12 of 100, about 88 s left",
        "  encode: 23 of 100, about 77 s left",
    ]


def test_what_is_over_at_once_is_not_shown(clock: Clock) -> None:
    shown, sink = console()
    for _ in range(3):
        with shown.stage("hash images"):
            shown.progress("hash", 0, 10)
            clock.now += 0.5
            shown.progress("hash", 10, 10)
        clock.now += 60
    assert sink.getvalue() == ""


def test_nothing_done_yet_has_no_estimate(clock: Clock) -> None:
    shown, sink = console()
    shown.progress("encode", 0, 100)
    clock.now += 1
    shown.progress("encode", 0, 100)
    assert sink.getvalue() == "  encode: 0 of 100\n"


def test_on_a_terminal_there_are_bars_until_the_stage_ends(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BAR_AFTER_S", -1.0)
    shown, sink = console(terminal=True)
    with shown.stage("encode images"):
        shown.progress("hash", 1, 3)
        shown.progress("encode", 7, 9)
        shown.say("a line above")
        assert shown._bar is not None
        assert [(task.completed, task.total) for task in shown._bar.tasks] == [(1, 3), (7, 9)]
    assert shown._bar is None
    assert "a line above" in sink.getvalue()


def test_quiet_says_nothing(clock: Clock) -> None:
    shown, sink = console(quiet=True)
    shown.say("hello")
    with shown.stage("learn"):
        clock.now += 20
        shown.progress("learn", 1, 2)
        clock.now += 20
        shown.progress("learn", 2, 2)
    assert (sink.getvalue(), shown.seconds) == ("", {"learn": 40.0})


def test_libraries_are_quiet_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("", "ray", "ray.data", "ray.train", "ray.tune", "mlflow", "alembic", "open_clip")
    levels = {name: logging.getLogger(name).level for name in names}
    monkeypatch.setattr(os, "environ", {"RAY_DEDUP_LOGS": "0"})
    try:
        with warnings.catch_warnings():
            quiet_libraries()
        assert os.environ["RAY_DEDUP_LOGS"] == "0"
        assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "fatal"
        assert {logging.getLogger(name).level for name in names} == {logging.ERROR}
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def test_the_clock_runs() -> None:
    shown = Console(quiet=True)
    with shown.stage("sleep"):
        time.sleep(0.01)
    assert 0.01 <= shown.seconds["sleep"] < 5


def test_part_of_a_stage_may_turn_out_to_be_another() -> None:
    console = Console(quiet=True, seconds={"encode images": 10.0})
    console.move(4.0, "encode images", "start encoders")
    console.move(-1.0, "encode images", "start encoders")
    console.move(99.0, "nothing", "start encoders")
    assert console.seconds == {"encode images": 6.0, "start encoders": 4.0}
    console.move(99.0, "encode images", "start encoders")
    assert console.seconds == {"encode images": 0.0, "start encoders": 10.0}


def test_the_clock_of_a_job_starts_with_its_process() -> None:
    console = Console.of_process()
    assert console.seconds["imports"] > 0
    assert console.wall_seconds == pytest.approx(console.seconds["imports"], abs=1)
