"""How jobs end: exit codes, and what is printed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NoReturn

import pytest

from lada_ray.errors import InputError, LeaseHeld
from lada_ray.job import run_job


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("lada_ray.job.quiet_libraries", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def raising(error: BaseException) -> NoReturn:
    raise error


def test_an_error_of_ours_is_its_message_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(lambda: 3) == 3
    assert run_job(lambda: raising(InputError(["epochs: no"]))) == 1
    assert capsys.readouterr().err == "The input cannot be used:\n  - epochs: no\n"
    assert run_job(lambda: raising(InputError(["epochs: no"])), failed=2) == 2
    assert run_job(lambda: raising(LeaseHeld("another")), failed=2) == LeaseHeld.exit_code == 75


def test_any_other_error_is_a_bug_and_shows_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        run_job(lambda: 1 // 0)


def test_a_stop_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(lambda: raising(KeyboardInterrupt()), "like this:\n  python go.py") == 130
    assert capsys.readouterr().err == "stopped; like this:\n  python go.py\n"


def test_a_scheduler_ends_it_cleanly() -> None:
    done = []

    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            return 0
        finally:
            done.append("lease released")

    with pytest.raises(SystemExit) as stopped:
        run_job(work)
    assert stopped.value.code == 143
    assert done
