"""Groups of nested runs: against real SQLite stores, and an MLflow that is away."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from lada_ray.tracking import group as module
from lada_ray.tracking.group import Group, without_passwords

CELLS = {"lada-0": 80.0, "lada-1": 82.0, "zero-shot-0": 60.0}
ACCURACY = "accuracy/road signs"


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that a group created, copied by tests that need one quickly."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    first = Group(f"sqlite:///{path}", "another", "id", "first", "sweep", {}, pytest.fail)
    assert first.finish("FINISHED")
    return path


@pytest.fixture
def uri(tmp_path: Path, fresh_database: Path) -> str:
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def groups() -> Iterator[Callable[..., Group]]:
    """Make groups of one id, and end their threads."""
    made: list[Group] = []

    def make(uri: str, said: list[str] | None = None, **options: Any) -> Group:
        say = pytest.fail if said is None else said.append
        params = {"method.beta": 1.0, "seeds": [0, 1]}
        made.append(Group(uri, "lada", "c0ffee", "who wins", "comparison", params, say, **options))
        return made[-1]

    yield make
    for one in made:
        one.abandon()


def play(group: Group, cells: dict[str, float] = CELLS, when: float | None = None) -> None:
    """Log whole cells, as each start of a comparison does."""
    for key, last in cells.items():
        group.begin(key, f"cell {key}", {"method.kind": key.rpartition("-")[0], "shots": None}, when)
        for step in (1, 2, 3):
            group.log(key, {"loss": 1 / step, ACCURACY: last - 3 + step, "forgetting": None}, step, when)
        group.end(key, "FINISHED", {"last": last, ACCURACY: last}, {"pack": f"digest of {key}"}, when)


class Found:
    """What an MLflow holds of the groups in an experiment."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name("lada")
        runs = list(self.client.search_runs([experiment.experiment_id])) if experiment else []
        self.parents = [run for run in runs if run.data.tags.get("lada_ray.role") == "comparison"]
        nested = [run for run in runs if "lada_ray.child" in run.data.tags]
        self.cells = {run.data.tags["lada_ray.child"]: run for run in nested}
        assert len(self.cells) == len(nested)  # none is there twice
        assert len(runs) == len(nested) + len(self.parents)

    @property
    def parent(self) -> Run:
        assert len(self.parents) == 1
        return self.parents[0]

    def statuses(self) -> dict[str, str]:
        return {key: run.info.status for key, run in self.cells.items()}

    def history(self, run: Run, name: str) -> list[tuple[int, float]]:
        return sorted((m.step, m.value) for m in self.client.get_metric_history(run.info.run_id, name))

    def everything(self) -> dict[str, Any]:
        return {
            run.info.run_id: (
                run.info.status,
                run.info.start_time,
                {name: self.history(run, name) for name in run.data.metrics},
                run.data.params,
                run.data.tags,
            )
            for run in [*self.parents, *self.cells.values()]
        }


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_group_is_one_parent_and_a_nested_run_per_cell(
    groups: Callable[..., Group], uri: str, tmp_path: Path
) -> None:
    group = groups(uri)
    group.open()
    play(group, when=1e9)
    files = {"report.html": b"<!DOCTYPE html>", "tables/last.csv": b"method,last\nlada,81\n"}
    assert group.finish("FINISHED", {"last/lada": 81.0, "p": None}, {"lada_ray.best": "lada"}, files)
    found = Found(uri)
    parent = found.parent
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "who wins")
    assert parent.data.params == {"method.beta": "1.0", "seeds": "[0, 1]"}
    assert parent.data.metrics == {"last/lada": 81.0}
    assert parent.data.tags["lada_ray.run"] == "c0ffee"
    assert parent.data.tags["lada_ray.best"] == "lada"
    artifacts = tmp_path / "mlartifacts" / parent.info.run_id / "artifacts"
    assert {name: (artifacts / name).read_bytes() for name in files} == files
    assert found.statuses() == dict.fromkeys(CELLS, "FINISHED")
    cell = found.cells["lada-1"]
    assert cell.info.run_name == "cell lada-1"
    assert (cell.info.start_time, cell.info.end_time) == (10**12, 10**12)
    assert cell.data.params == {"method.kind": "lada", "shots": "None"}
    tags = {"mlflow.parentRunId": parent.info.run_id, "lada_ray.role": "cell", "pack": "digest of lada-1"}
    assert tags.items() <= cell.data.tags.items()
    assert cell.data.metrics == {"loss": 1 / 3, ACCURACY: 82.0, "last": 82.0}
    assert found.history(cell, ACCURACY) == [(1, 80.0), (2, 81.0), (3, 82.0)]
    assert found.history(cell, "last") == [(3, 82.0)]


def test_replaying_a_group_logs_nothing_twice(groups: Callable[..., Group], uri: str) -> None:
    def start() -> dict[str, Any]:
        group = groups(uri)
        group.open()
        play(group)
        group.end("lada-0", "FAILED", {"last": 0.0})  # what is FINISHED stays so
        assert group.finish("FINISHED", {"last/lada": 81.0})
        return Found(uri).everything()

    once = start()
    assert start() == once
    assert len(once) == 4


def test_a_killed_group_is_continued_in_the_same_parent(groups: Callable[..., Group], uri: str) -> None:
    killed = groups(uri)
    play(killed, {"lada-0": 80.0})
    for key in ("lada-1", "zero-shot-0"):
        killed.begin(key, f"cell {key}", {"method.kind": "lada"})
        killed.log(key, {"loss": 1.0, ACCURACY: 80.0}, 1)
    wait_for(lambda: len(Found(uri).cells) == 3 and "loss" in Found(uri).cells["zero-shot-0"].data.metrics)
    killed.abandon()  # stands for a kill: nothing is closed
    before = Found(uri)
    assert Counter(before.statuses().values()) == {"FINISHED": 1, "RUNNING": 2}

    second = groups(uri)
    second.open()
    wait_for(lambda: Found(uri).statuses()["lada-1"] == Found(uri).statuses()["zero-shot-0"] == "KILLED")
    assert Found(uri).parent.info.status == "RUNNING"
    second.begin("lada-1", "cell lada-1", {})
    wait_for(lambda: Found(uri).statuses()["lada-1"] == "RUNNING")
    play(second)
    assert second.finish("FINISHED")
    after = Found(uri)
    assert after.statuses() == dict.fromkeys(CELLS, "FINISHED")
    assert {key: run.info.run_id for key, run in after.cells.items()} == {
        key: run.info.run_id for key, run in before.cells.items()
    }
    for key in ("lada-1", "zero-shot-0"):
        assert after.history(after.cells[key], "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    whole = before.cells["lada-0"].info.run_id
    assert after.everything()[whole] == before.everything()[whole]


def test_cells_that_did_not_finish_may_begin_again(groups: Callable[..., Group], uri: str) -> None:
    first = groups(uri)
    first.begin("lada-0", "cell", {"shots": 16})
    first.end("lada-0", "FAILED", tags={"error": "out of memory"})
    first.begin("lada-1", "cell", {})
    assert first.finish("KILLED")
    assert Found(uri).statuses() == {"lada-0": "FAILED", "lada-1": "KILLED"}
    assert Found(uri).parent.info.status == "KILLED"
    second = groups(uri)
    play(second, {"lada-0": 80.0})
    second.begin("lada-2", "cell", {})
    assert second.finish("FAILED")
    found = Found(uri)
    assert found.statuses() == {"lada-0": "FINISHED", "lada-1": "KILLED", "lada-2": "FAILED"}
    assert found.cells["lada-0"].data.params["shots"] == "16"  # params are immutable in MLflow


def test_an_mlflow_that_is_away_is_said_once(
    groups: Callable[..., Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    retry = "python jobs/compare.py --tracking.uri http://me:secret@127.0.0.1:9"
    group = groups("http://me:secret@127.0.0.1:9", said, retry=retry)
    group.open()
    play(group)
    wait_for(lambda: bool(said))
    assert not group.finish("FINISHED", {"last": 81.0}, files={"report.html": b"x"})
    group.begin("late", "calls after the last do nothing", {})
    assert not group.finish("FINISHED")
    (message,) = said
    assert "Cannot log to MLflow; the comparison goes on without (http://me:***@127.0.0.1:9)" in message
    assert "start the same command again:\n  python jobs/compare.py --tracking.uri http://me:***@" in message
    assert "secret" not in message


def test_what_an_outage_held_up_is_logged_after_it(
    groups: Callable[..., Group], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = threading.Event()
    away.set()
    said: list[str] = []
    connect = module.connect

    def fail(*target: str) -> Any:
        if away.is_set():
            raise ConnectionError("no route to host")
        return connect(*target)

    monkeypatch.setattr(module, "connect", fail)
    group = groups(uri, said)
    play(group, {"lada-0": 80.0})
    wait_for(lambda: bool(said))
    away.clear()
    play(group)
    assert group.finish("FINISHED")
    assert Found(uri).statuses() == dict.fromkeys(CELLS, "FINISHED")
    assert said == [
        f"Cannot log to MLflow; the comparison goes on without ({uri}): ConnectionError: no route to host\n"
        "No result is lost. To log what is missing, once it can be reached, start the same command again.",
        "MLflow can be reached again, and everything is logged.",
    ]


@pytest.mark.parametrize("lost", ["create_run", "log_batch", "set_terminated"])
def test_requests_whose_answers_are_lost_are_not_made_twice(
    groups: Callable[..., Group], uri: str, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    request, calls = getattr(MlflowClient, lost), Counter[str]()

    def lose(client: MlflowClient, *args: Any, **options: Any) -> Any:
        answer = request(client, *args, **options)
        calls[lost] += 1
        if calls[lost] <= 2:
            raise MlflowException("timed out")
        return answer

    monkeypatch.setattr(MlflowClient, lost, lose)
    said: list[str] = []
    group = groups(uri, said, retry_after=0.0)
    group.open()
    play(group)
    group.finish("FINISHED")  # may fail: then the next start logs what is missing
    again = groups(uri, said)
    play(again)
    assert again.finish("FINISHED")
    found = Found(uri)
    assert found.statuses() == dict.fromkeys(CELLS, "FINISHED")
    for cell in found.cells.values():
        assert found.history(cell, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        assert len(found.history(cell, "last")) == 1


def test_a_cell_that_mlflow_refuses_holds_up_no_other(
    groups: Callable[..., Group], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = MlflowClient.log_batch

    def refuse(client: MlflowClient, run_id: str, metrics: Any = (), *rest: Any) -> None:
        if any(point.value == 78.0 for point in metrics):  # of lada-0
            raise MlflowException("the run must be active", INVALID_PARAMETER_VALUE)
        request(client, run_id, metrics, *rest)

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    said: list[str] = []
    group = groups(uri, said)
    play(group)
    assert not group.finish("FINISHED")
    statuses = Found(uri).statuses()
    assert statuses.pop("lada-0") != "FINISHED"
    assert list(statuses.values()) == ["FINISHED", "FINISHED"]
    assert Found(uri).parent.info.status == "FINISHED"
    assert len(said) == 1


def test_a_cell_that_was_deleted_is_made_again(groups: Callable[..., Group], uri: str) -> None:
    first = groups(uri)
    play(first)
    assert first.finish("FINISHED")
    found = Found(uri)
    found.client.delete_run(found.cells["lada-0"].info.run_id)
    again = groups(uri)
    play(again)
    assert again.finish("FINISHED")
    after = Found(uri)
    assert after.statuses() == dict.fromkeys(CELLS, "FINISHED")
    assert after.cells["lada-0"].info.run_id != found.cells["lada-0"].info.run_id
    assert after.cells["lada-1"].info.run_id == found.cells["lada-1"].info.run_id


def test_calls_do_not_wait_and_are_logged_together(
    groups: Callable[..., Group], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, requests = threading.Event(), Counter[str]()
    connect = module.connect

    def slow(*target: str) -> Any:
        assert reached.wait(60)
        return connect(*target)

    def count(name: str) -> None:
        request = getattr(MlflowClient, name)

        def counted(client: MlflowClient, *args: Any, **options: Any) -> Any:
            requests[name] += 1
            return request(client, *args, **options)

        monkeypatch.setattr(MlflowClient, name, counted)

    monkeypatch.setattr(module, "connect", slow)
    for name in ("create_run", "log_batch", "set_terminated", "update_run", "get_metric_history"):
        count(name)
    group = groups(uri)
    group.open()
    time.sleep(0.1)
    play(group)  # would wait for ever
    reached.set()
    assert group.finish("FINISHED")
    assert requests == {"create_run": 4, "log_batch": 4, "set_terminated": 4}


def test_what_is_too_long_or_no_number_is_cut_or_left_out(groups: Callable[..., Group], uri: str) -> None:
    group = groups(uri)
    params = {f"p{i}": i for i in range(150)} | {"long": "x" * 7000, "k?y": 1, "n" * 300: 2}
    group.begin("a", "b" * 300, params)
    for step in range(900):
        group.log("a", {"loss": np.float32(0.5), "seen//accuracy%": step}, step)  # type: ignore[dict-item]
    group.log("a", {"nan": math.nan, "inf": math.inf, "none": None, "text": "5"}, 0)  # type: ignore[dict-item]
    group.end("a", "FINISHED", {"last": np.float64(7.0)}, {"error": "e" * 9000})
    assert group.finish("FINISHED")
    cell = Found(uri).cells["a"]
    assert len(cell.data.params) == 153
    assert cell.data.params["long"] == "x" * 5999 + "…"
    assert (cell.data.params["k_y"], cell.data.params["n" * 250]) == ("1", "2")
    assert cell.data.metrics == {"loss": 0.5, "seen/accuracy_": 899.0, "last": 7.0}
    assert len(cell.data.tags["error"]) == 5000
    assert cell.info.run_name == "b" * 249 + "…"


def test_passwords_are_not_logged(groups: Callable[..., Group], uri: str) -> None:
    group = groups(uri)
    group.begin("a", "cell", {"storage": "s3://key:secret@host/bucket"})
    group.end("a", "FAILED", tags={"error": "cannot read s3://key:secret@host/bucket/x"})
    assert group.finish("FAILED", tags={"source": "http://me:secret@host"})
    found = Found(uri)
    assert found.cells["a"].data.params["storage"] == "s3://key:***@host/bucket"
    assert "secret" not in str(found.everything())
    assert without_passwords("'me:a/b@db'", "postgresql://me:a%2Fb@db/x") == "'me:***@db'"


def test_files_that_cannot_be_stored_leave_no_parent_open(
    groups: Callable[..., Group], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no credentials")

    monkeypatch.setattr(MlflowClient, "log_artifacts", refuse)
    said: list[str] = []
    assert not groups(uri, said).finish("FINISHED", files={"report.html": b"x"})
    assert Found(uri).parent.info.status == "FINISHED"
    assert len(said) == 1
    assert said[0].startswith("Not all of the comparison is logged in MLflow")
