"""MLflow as a projection of the run folder: against real SQLite stores and a real server on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lada_ray import tracking
from lada_ray.errors import ConfigError, InputError, LeaseHeld
from lada_ray.lease import Lease
from lada_ray.store import open_store
from lada_ray.tracking import BackgroundTracker, Tracker, log_run
from tests.processes import MlflowServer

DOMAINS = ("digits", "road-signs", "shapes")
LOG_RUN = Path(__file__).resolve().parents[1] / "jobs" / "log_run.py"


class RunFolder:
    """A made-up run folder that grows as a stream would grow it."""

    def __init__(self, root: Path, domains: tuple[str, ...] = DOMAINS) -> None:
        self.store = open_store(root)
        self.domains = domains
        self.digests: list[str] = []
        self.write("start.json", {"run": "first", "epoch": 1})
        self.write("config.yaml", f"name: demo\nstorage: {root.parent}\ndomains:\n" + self._domain_lines())
        self._row("zero_shot", "zero-shot", 4)

    def _domain_lines(self) -> str:
        return "".join(f"  - name: {domain}\n" for domain in self.domains)

    def write(self, key: str, content: Any) -> None:
        """Write text or JSON."""
        text = content if isinstance(content, str) else json.dumps(content)
        self.store.write(key, text.encode())

    def _row(self, digest: str, learnt: str, correct: int, width: str = "s1") -> None:
        row = {
            "correct": {d: [correct, 5] for d in self.domains},
            "total": {d: [10, 10] for d in self.domains},
        }
        self.write(f"rows/{digest}-{width}.json", {"learnt": learnt, **row})

    def learn(self, position: int) -> None:
        """Commit one task."""
        digest = f"{position:02d}{'ab' * 31}"
        self.write(f"model/packs/{digest}/pack.json", {"domain": self.domains[position]})
        self.write(f"model/packs/{digest}/tensors.safetensors", "tensors" * 100)
        self.digests.append(digest)
        self.write("model/model.json", {"epoch": 1, "packs": self.digests})
        record = {
            "digest": digest,
            "domain": self.domains[position],
            "position": position,
            "started": f"2026-11-20T10:0{position}:00+00:00",
            "finished": f"2026-11-20T10:0{position}:30+00:00",
            "timings": {"fit": 7.5, "k-means": 1.5},
            "loss": [2.0, 1.0, 0.5],
            "counts": {"classes": 2, "train_images": 32},
            "params": {"epochs": 3, "method.beta": 1.0},
        }
        self.write(f"tasks/{digest}.json", record)
        self._row(digest, self.domains[position], 5 + position)

    def append(self, domain: str) -> None:
        """Add a domain: the configuration and all rows get wider."""
        self.domains = (*self.domains, domain)
        self.write("config.yaml", self.store.read("config.yaml").decode() + f"  - name: {domain}\n")
        self._row("zero_shot", "zero-shot", 4, "s2")
        for position, digest in enumerate(self.digests):
            self._row(digest, self.domains[position], 5 + position, "s2")

    def finish(self) -> None:
        """Write the results."""
        lines = [",".join(["learnt", *self.domains])]
        lines += [",".join([domain, *["50.0"] * len(self.domains)]) for domain in self.domains]
        self.write("accuracy_matrix.csv", "\n".join(lines) + "\n")
        zero_shot = dict.fromkeys(self.domains, 45.0)
        means = {"transfer": 44.0, "average": 50.0, "last": 60.0, "forgetting": None, "images_encoded": 96}
        self.write("metrics.json", {**means, "zero_shot": 45.0, "zero_shot_per_domain": zero_shot})
        self.write("report.html", "<!DOCTYPE html>")

    def start_over(self) -> None:
        """What `--fresh` does: another id, and nothing learnt; `tracking.json` stays."""
        for entry in [entry for entry in self.store.list() if entry.key != "tracking.json"]:
            self.store.delete(entry.key)
        self.__init__(Path(self.store.uri), self.domains)  # type: ignore[misc]
        self.write("start.json", {"run": "second", "epoch": 2})

    def tracker(self, uri: str, said: list[str] | None = None, **options: Any) -> Tracker:
        """Make a tracker of this folder."""
        say = said.append if said is not None else pytest.fail
        return Tracker(self.store, uri, "lada", "demo", {"method.beta": 1.0, "seed": 0}, say, **options)


class Found:
    """What an MLflow holds of an experiment."""

    def __init__(self, uri: str, experiment: str = "lada") -> None:
        self.client = MlflowClient(uri)
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None
        runs = list(self.client.search_runs([found.experiment_id], max_results=1000))
        self.parents = [run for run in runs if run.data.tags.get("lada_ray.role") == "stream"]
        nested = [run for run in runs if run.data.tags.get("lada_ray.role") == "task"]
        self.tasks = sorted(nested, key=lambda run: (run.info.run_name, run.info.start_time))

    @property
    def parent(self) -> Run:
        """The only parent run."""
        assert len(self.parents) == 1
        return self.parents[0]

    def statuses(self) -> list[str]:
        """Statuses of the nested runs, in order of tasks."""
        return [run.info.status for run in self.tasks]

    def files(self, run: Run, folder: str | None = None) -> set[str]:
        """Paths of all artifacts of a run."""
        infos = self.client.list_artifacts(run.info.run_id, folder)
        below = set().union(*(self.files(run, info.path) for info in infos if info.is_dir))
        return {info.path for info in infos if not info.is_dir} | below

    def history(self, run: Run, key: str) -> list[tuple[int, float]]:
        """All (step, value) of a metric."""
        return [(m.step, round(m.value, 6)) for m in self.client.get_metric_history(run.info.run_id, key)]

    def everything(self) -> dict[str, Any]:
        """All metric points and statuses, to see that nothing was logged twice."""
        return {
            run.info.run_id: (
                run.info.status,
                {k: self.history(run, k) for k in run.data.metrics},
                run.data.params,
            )
            for run in [*self.parents, *self.tasks]
        }


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised SQLite store, copied by tests that need one quickly."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with tracking.quiet_client():
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    """SQLite beside the run folder, as by default."""
    (tmp_path / "storage").mkdir(exist_ok=True)
    shutil.copy(empty_database, tmp_path / "storage" / "mlflow.db")
    return f"sqlite:///{tmp_path}/storage/mlflow.db"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder in which nothing is learnt yet."""
    return RunFolder(tmp_path / "storage" / "demo")


def learn_all(folder: RunFolder, tracker: Tracker | BackgroundTracker) -> None:
    """Do what the stream does."""
    tracker.open()
    for position, domain in enumerate(folder.domains):
        tracker.start_task(domain, position)
        folder.learn(position)
        tracker.sync()
    folder.finish()


def test_a_stream_becomes_one_parent_and_a_nested_run_per_task(folder: RunFolder, uri: str) -> None:
    tracker = folder.tracker(uri)
    learn_all(folder, tracker)
    assert tracker.finish()
    found = Found(uri)
    assert found.parent.info.status == "FINISHED"
    assert found.parent.info.run_name == "demo"
    assert found.parent.data.params == {"method.beta": "1.0", "seed": "0"}
    metrics = found.parent.data.metrics
    assert (metrics["last"], metrics["zero_shot"], metrics["images_encoded"]) == (60.0, 45.0, 96.0)
    assert "forgetting" not in metrics
    assert found.history(found.parent, "accuracy/digits") == [(0, 45.0), (1, 50.0), (2, 55.0), (3, 60.0)]
    assert found.history(found.parent, "unseen_accuracy") == [(1, 50.0), (2, 55.0)]
    packs = {
        f"model/packs/{d}/{name}" for d in folder.digests for name in ("pack.json", "tensors.safetensors")
    }
    small = {"config.yaml", "metrics.json", "accuracy_matrix.csv", "report.html", "accuracy_matrix.png"}
    assert found.files(found.parent) == packs | small | {"model/model.json"}
    assert found.statuses() == ["FINISHED"] * 3
    task = found.tasks[1]
    assert task.info.run_name == "02 road-signs"
    assert task.data.tags["mlflow.parentRunId"] == found.parent.info.run_id
    assert task.data.tags["lada_ray.pack"] == folder.digests[1]
    assert task.data.params == {"domain": "road-signs", "position": "2", "epochs": "3", "method.beta": "1.0"}
    assert found.history(task, "loss") == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert {
        "time/fit": 7.5,
        "count/classes": 2.0,
        "accuracy/shapes": 55.0,
    }.items() <= task.data.metrics.items()
    assert found.files(task) == {"pack/pack.json", "pack/tensors.safetensors"}
    assert 0 < tracker.seconds < 30


def test_artifacts_lie_beside_the_database(folder: RunFolder, uri: str, tmp_path: Path) -> None:
    folder.tracker(uri).finish()
    run_id = Found(uri).parent.info.run_id
    assert (tmp_path / "storage" / "mlartifacts" / run_id / "artifacts" / "config.yaml").is_file()


def test_while_a_task_is_learnt_its_run_is_running(folder: RunFolder, uri: str) -> None:
    tracker = folder.tracker(uri)
    tracker.open()
    tracker.start_task("digits", 0)
    found = Found(uri)
    assert (found.parent.info.status, found.statuses()) == ("RUNNING", ["RUNNING"])


def test_logging_again_logs_nothing_twice(folder: RunFolder, uri: str) -> None:
    tracker = folder.tracker(uri)
    learn_all(folder, tracker)
    tracker.sync()
    tracker.finish()
    before = Found(uri).everything()
    again = folder.tracker(uri)
    again.open()
    again.sync()
    assert again.finish()
    assert Found(uri).everything() == before
    assert len(before) == 4


def test_tasks_that_wait_for_their_row_are_logged_once(
    folder: RunFolder, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation may be many tasks behind: what is logged with each sync must not grow with how many wait."""
    tracker = folder.tracker(uri)
    tracker.open()
    folder.learn(0)
    folder.store.delete(f"rows/{folder.digests[0]}-s1.json")
    assert tracker.sync()
    logged: list[str] = []
    log_batch = MlflowClient.log_batch

    def spy(client: MlflowClient, run_id: str, *arguments: Any, **more: Any) -> Any:
        logged.append(run_id)
        return log_batch(client, run_id, *arguments, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", spy)
    assert tracker.sync()
    assert logged == []
    folder._row(folder.digests[0], "digits", 5)
    assert tracker.sync()
    assert logged
    (task,) = Found(uri).tasks
    assert task.data.metrics["accuracy/shapes"] == 50.0
    assert task.info.status == "FINISHED"


def test_a_task_that_could_not_be_logged_is_tried_again_before_its_row_is_there(
    folder: RunFolder, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tracker = folder.tracker(uri, said, retry_after=0.0)
    tracker.open()
    folder.learn(0)
    folder.store.delete(f"rows/{folder.digests[0]}-s1.json")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("locked")))
        assert not tracker.sync()
    assert tracker.sync()
    (task,) = Found(uri).tasks
    assert task.data.tags["lada_ray.pack"] == folder.digests[0]
    assert task.data.params["epochs"] == "3"


def test_a_killed_run_is_closed_and_continued_in_the_same_parent(folder: RunFolder, uri: str) -> None:
    killed = folder.tracker(uri)
    killed.open()
    killed.start_task("digits", 0)
    folder.learn(0)
    killed.sync()
    killed.start_task("road-signs", 1)  # and here its process dies
    parent = killed.run_id
    other = MlflowClient(uri)
    experiment = other.get_experiment_by_name("lada")
    assert experiment is not None
    alive = other.create_run(
        experiment.experiment_id, tags={"lada_ray.run": "another", "lada_ray.role": "task"}
    )

    folder.learn(1)
    resumed = folder.tracker(uri)
    resumed.open()
    found = Found(uri)
    assert found.parent.info.run_id == parent
    assert found.parent.info.status == "RUNNING"
    assert found.parent.data.tags["lada_ray.killed"] == "1"
    assert other.get_run(alive.info.run_id).info.status == "RUNNING"
    resumed.sync()
    resumed.finish("FAILED")
    found = Found(uri)
    assert found.parent.info.status == "FAILED"
    mine = [run for run in found.tasks if run.info.run_id != alive.info.run_id]
    assert sorted((run.info.run_name, run.info.status) for run in mine) == [
        ("01 digits", "FINISHED"),
        ("02 road-signs", "FINISHED"),
        ("02 road-signs", "KILLED"),
    ]
    assert other.get_run(alive.info.run_id).info.status == "RUNNING"


def test_a_kill_between_logging_and_closing_is_repaired(folder: RunFolder, uri: str) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    tracker = folder.tracker(uri, upload=cut_off)
    tracker.open()
    folder.learn(0)
    with pytest.raises(KeyboardInterrupt):  # the pack's upload is cut off: metrics are there, the run is open
        tracker.sync()
    assert folder.tracker(uri).finish("KILLED")
    found = Found(uri)
    assert found.statuses() == ["FINISHED"]
    assert found.history(found.tasks[0], "loss") == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert found.history(found.parent, "mean_accuracy") == [(0, 45.0), (1, 50.0)]


def test_appended_domains_add_new_rows_to_the_same_runs(folder: RunFolder, uri: str) -> None:
    tracker = folder.tracker(uri)
    learn_all(folder, tracker)
    tracker.finish()
    folder.append("textures")
    longer = folder.tracker(uri)
    longer.open()
    longer.start_task("textures", 3)
    folder.learn(3)
    longer.sync()
    folder.finish()
    assert longer.finish()
    found = Found(uri)
    assert found.statuses() == ["FINISHED"] * 4
    assert found.history(found.tasks[0], "mean_accuracy") == [(3, 50.0), (4, 50.0)]
    assert found.history(found.tasks[0], "loss") == [(1, 2.0), (2, 1.0), (3, 0.5)]
    points = [(0, 45.0), (1, 50.0), (2, 55.0), (3, 60.0), (4, 65.0)]
    assert found.history(found.parent, "accuracy/textures") == points
    assert {(0, 45.0), (4, 65.0)} <= set(found.history(found.parent, "accuracy/digits"))
    assert f"model/packs/{folder.digests[3]}/pack.json" in found.files(found.parent)


def test_figures_that_are_measured_later_are_added(folder: RunFolder, uri: str) -> None:
    folder.learn(0)
    tracker = folder.tracker(uri)
    tracker.sync()
    key = f"tasks/{folder.digests[0]}.json"
    record = json.loads(folder.store.read(key))
    folder.write(key, record | {"timings": {"fit": 7.5, "evaluate": 0.25}})
    tracker.sync()
    found = Found(uri)
    assert found.history(found.tasks[0], "time/evaluate") == [(0, 0.25)]
    assert found.history(found.tasks[0], "time/fit") == [(0, 7.5)]
    assert found.history(found.parent, "mean_accuracy") == [(0, 45.0), (1, 50.0)]


def test_changed_params_are_left_as_they_were(folder: RunFolder, uri: str) -> None:
    folder.tracker(uri).finish("KILLED")
    changed = Tracker(folder.store, uri, "lada", "demo", {"seed": 1, "new": "x"}, pytest.fail)
    assert changed.finish("KILLED")
    assert Found(uri).parent.data.params == {"method.beta": "1.0", "seed": "0", "new": "x"}


def test_packs_that_are_not_in_the_model_are_not_logged(folder: RunFolder, uri: str) -> None:
    folder.learn(0)
    folder.learn(1)
    folder.write("model/model.json", {"packs": [folder.digests[0]]})  # rolled back
    folder.finish()
    assert folder.tracker(uri).finish()
    found = Found(uri)
    assert [run.info.run_name for run in found.tasks] == ["01 digits"]
    assert not any(folder.digests[1] in path for path in found.files(found.parent))


def test_background_tracker_logs_the_same(folder: RunFolder, uri: str) -> None:
    tracker = BackgroundTracker(folder.tracker(uri))
    learn_all(folder, tracker)  # far quicker than MLflow, so calls come late
    assert tracker.finish()
    assert Found(uri).statuses() == ["FINISHED"] * 3


def test_starting_over_closes_the_runs_of_the_killed_stream(folder: RunFolder, uri: str) -> None:
    killed = folder.tracker(uri)
    killed.open()
    folder.learn(0)
    killed.sync()
    killed.start_task("road-signs", 1)  # and here its process dies
    folder.start_over()
    fresh = folder.tracker(uri)
    assert fresh.open()
    found = Found(uri)
    status = {run.data.tags["lada_ray.run"]: run.info.status for run in found.parents}
    assert status == {"first": "KILLED", "second": "RUNNING"}
    assert found.statuses() == ["FINISHED", "KILLED"]
    learn_all(folder, fresh)
    assert fresh.finish()
    found = Found(uri)
    (old,) = [run for run in found.parents if run.data.tags["lada_ray.run"] == "first"]
    assert (old.info.status, old.data.tags["lada_ray.killed"]) == ("KILLED", "1")
    assert sorted(found.statuses()) == ["FINISHED"] * 4 + ["KILLED"]


def test_started_over_twice_while_opening_leaves_nothing_open(folder: RunFolder, uri: str) -> None:
    class Dies(Exception):
        pass

    tracker = folder.tracker(uri)
    tracker.open()
    folder.start_over()
    dying = folder.tracker(uri, said=[])
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # its process dies when its parent is there, before the note of it
        patch.setattr(dying, "_params", {"method.beta": 1.0})
        patch.setattr(tracking.stream_run.StreamRun, "_log", lambda *_, **__: (_ for _ in ()).throw(Dies))
        assert not dying.open()
    folder.write("start.json", {"run": "third", "epoch": 3})
    assert folder.tracker(uri).open()
    status = {run.data.tags["lada_ray.run"]: run.info.status for run in Found(uri).parents}
    assert status == {"first": "KILLED", "second": "KILLED", "third": "RUNNING"}


def test_another_experiment_closes_the_run_in_the_former_one(folder: RunFolder, uri: str) -> None:
    folder.tracker(uri).open()
    assert Tracker(folder.store, uri, "other", "demo", say=pytest.fail).open()
    assert Found(uri).parent.info.status == "KILLED"
    assert Found(uri, "other").parent.info.status == "RUNNING"


# Taken over


def test_an_abandoned_tracker_leaves_the_new_owners_runs_alone(folder: RunFolder, uri: str) -> None:
    uploading, taken_over = threading.Event(), threading.Event()

    def upload(*given: Any) -> None:
        uploading.set()
        assert taken_over.wait(60)
        tracking.upload_artifacts(*given)

    said: list[str] = []
    old = BackgroundTracker(folder.tracker(uri, said, upload=upload))
    old.open()
    folder.learn(0)
    in_progress = old.sync()
    assert uploading.wait(60)
    folder.learn(1)
    queued = [old.start_task("shapes", 2), old.sync()]
    new = folder.tracker(uri)
    assert new.sync()
    new.start_task("shapes", 2)
    before = Found(uri).everything()
    threading.Timer(0.5, taken_over.set).start()
    old.abandon()
    assert taken_over.is_set()  # waited for the request on its way
    assert in_progress.result() is False
    assert all(future.cancelled() for future in queued)
    assert not old._thread._threads or not any(thread.is_alive() for thread in old._thread._threads)
    assert Found(uri).everything() == before
    assert Found(uri).parent.info.status == "RUNNING"
    assert said == []
    folder.learn(2)
    folder.finish()
    assert new.finish()
    assert Found(uri).parent.info.status == "FINISHED"


def test_calls_after_abandoning_ask_nothing(folder: RunFolder, uri: str) -> None:
    old = folder.tracker(uri)
    old.open()
    before = Found(uri).everything()
    old.abandon()
    folder.learn(0)
    assert not any([old.open(), old.start_task("digits", 0), old.sync(), old.finish("FAILED")])
    assert Found(uri).everything() == before
    never_opened = folder.tracker(uri)
    never_opened.abandon()
    assert not never_opened.finish("FAILED")
    assert Found(uri).everything() == before


def test_two_first_starts_at_once_share_one_fresh_database(tmp_path: Path) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[3])
from lada_ray.store import open_store
from lada_ray.tracking import Tracker
sys.exit(0 if Tracker(open_store(sys.argv[1]), sys.argv[2], "lada", "x").finish("KILLED") else 1)
"""
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    root = str(LOG_RUN.parents[1])
    for i in range(2):
        open_store(tmp_path / f"run{i}").write("start.json", json.dumps({"run": f"id{i}"}).encode())
    starts = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / f"run{i}"), uri, root])
        for i in range(2)
    ]
    assert [start.wait(60) for start in starts] == [0, 0]
    assert len(Found(uri).parents) == 2


# Where MLflow is


def test_passwords_are_not_shown() -> None:
    assert tracking.hide_password("http://me:secret@host:5000/x") == "http://me:***@host:5000/x"
    assert (
        tracking.how_to_open("sqlite:////a/mlflow.db")
        == "mlflow ui --backend-store-uri sqlite:////a/mlflow.db"
    )


@pytest.mark.parametrize(
    "uri", ["http://me:s%23cret@127.0.0.1:9", "postgresql://me:s%23cret@127.0.0.1:9/mlflow"]
)
def test_passwords_are_told_to_nobody(folder: RunFolder, uri: str) -> None:
    said: list[str] = []
    assert not folder.tracker(uri, said).finish("KILLED")
    files = [folder.store.read(entry.key).decode() for entry in folder.store.list()]
    for text in [*said, *files]:
        assert "s%23cret" not in text
        assert "s#cret" not in text
    assert "***" in said[0]


def test_passwords_in_errors_are_hidden() -> None:
    uri = "postgresql://me:s%23@host/x"
    hidden = "postgresql://me:***@host/x"
    assert tracking.hide_password(uri) == hidden
    told = tracking.uri.hide_passwords_in(f"cannot reach {uri} as me:s#@host, me:s%23@host", uri)
    assert told == f"cannot reach {hidden} as me:***@host, me:***@host"


def test_tracking_json_has_no_password(folder: RunFolder, server: MlflowServer) -> None:
    with_password = server.uri.replace("//", "//me:secret@")
    assert folder.tracker(with_password).finish("KILLED")
    noted = folder.store.read("tracking.json").decode()
    assert "secret" not in noted
    assert json.loads(noted)["uri"] == server.uri.replace("//", "//me:***@")


def test_a_blanked_password_is_asked_for(
    folder: RunFolder, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("config.yaml", "name: demo\ntracking: {uri: 'http://me:***@127.0.0.1:9'}\n")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="pass --tracking_uri, or set MLFLOW_TRACKING_URI"):
        log_run(folder.store.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert log_run(folder.store.uri, experiment="lada", say=[].append)
    assert Found(uri).parent.info.run_name == "demo"


def test_metric_names_are_ones_that_mlflow_takes() -> None:
    assert tracking.metric_name("accuracy", "a/b%c") == "accuracy/a_b_c"
    assert tracking.metric_name("accuracy", "..") == "accuracy/__"


def test_upload_function_travels() -> None:
    assert pickle.loads(pickle.dumps(tracking.upload_artifacts)) is tracking.upload_artifacts


def test_the_users_own_settings_and_log_levels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with tracking.quiet_client():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"


def test_a_client_elsewhere_gets_credentials_and_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    own = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with tracking.quiet_client():
        assert tracking.client_environment() == own


def test_uploads_have_the_writers_credentials_and_more_time(
    folder: RunFolder, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}
    real = MlflowClient.log_artifact

    def look(*given: Any) -> None:
        seen.update(os.environ)
        real(*given)

    monkeypatch.setattr(MlflowClient, "log_artifact", look)
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    tracker = folder.tracker(uri)
    tracker.open()
    files = {"config.yaml": "config.yaml"}
    with tracking.quiet_client():
        environment = {"MLFLOW_TRACKING_TOKEN": "t"}
        tracking.upload_artifacts(uri, str(tracker.run_id), folder.store.uri, files, environment)
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert (seen["MLFLOW_TRACKING_TOKEN"], seen["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == ("t", "120")
    assert not {"MLFLOW_TRACKING_TOKEN", "MLFLOW_HTTP_REQUEST_TIMEOUT"} & set(os.environ)


# Loading a model


@pytest.fixture
def registered(learnt_run: tuple[Any, str], uri: str) -> tuple[str, Tracker, list[str]]:
    """A learnt run, logged as a registered model: its MLflow, tracker, the digests of its packs."""
    store = open_store(learnt_run[1])
    tracker = Tracker(store, uri, "lada", "learnt", say=pytest.fail, registered_model="tiny")
    assert tracker.finish()
    packs = json.loads(store.read("model/model.json"))["packs"]
    return uri, tracker, packs


@pytest.mark.parametrize("elsewhere", [None, "sqlite:///{}/other.db"])
def test_a_model_is_loaded_from_the_mlflow_that_is_named(
    registered: tuple[str, Tracker, list[str]],
    elsewhere: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, tracker, packs = registered
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if elsewhere:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere.format(tmp_path))
    MlflowClient(uri, registry_uri=uri).set_registered_model_alias("tiny", "champion", "1")
    for name in ("models:/tiny/1", "models:/tiny@champion", f"runs:/{tracker.run_id}/model"):
        assert [pack.digest for pack in tracking.load(name, tracking_uri=uri).packs] == packs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert [pack.digest for pack in tracking.load("models:/tiny@champion").packs] == packs
    assert not list(tmp_path.glob("*.db"))


def test_a_model_that_nobody_knows(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(MlflowException, match="tiny"):
        tracking.load("models:/tiny/1", tracking_uri=uri)
    with pytest.raises(InputError, match="names no version"):
        tracking.load("models:/tiny", tracking_uri=uri)
    with pytest.raises(InputError, match="set MLFLOW_TRACKING_URI"):
        tracking.load("models:/tiny/1")
    assert not (tmp_path / "mlflow.db").exists()


# A server that comes and goes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[MlflowServer]:
    """One server for this file; a test that kills it starts it again."""
    root = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, root / "server.db")
    one = MlflowServer(root)
    one.start()
    yield one
    one.stop()


def test_server_gets_everything_and_an_outage_costs_only_a_warning(
    folder: RunFolder, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tracker = folder.tracker(server.uri, said)
    tracker.open()
    tracker.start_task("digits", 0)
    folder.learn(0)
    assert tracker.sync()
    server.stop()
    started = time.monotonic()
    assert not tracker.start_task("road-signs", 1)
    assert time.monotonic() - started < 60  # MLflow's own retries of a dead server take minutes
    folder.learn(1)
    folder.learn(2)
    folder.finish()
    tried: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "_sync", tried.append)
        assert not tracker.sync()
    assert tried == []  # so soon after a failure nothing is asked
    assert len(said) == 1
    assert "the run goes on without" in said[0]
    assert "refused" in said[0].splitlines()[0]
    assert f"jobs/log_run.py {folder.store.uri}" in said[0]
    assert not tracker.finish()
    assert len(said) == 2

    server.start()
    told: list[str] = []
    assert log_run(folder.store.uri, server.uri, "lada", told.append)
    assert server.uri in told[-1]
    found = Found(server.uri)
    assert found.parent.info.status == "FINISHED"
    assert found.parent.data.tags["lada_ray.killed"] == "1"
    assert found.statuses() == ["FINISHED"] * 3
    assert found.parent.data.metrics["last"] == 60.0
    assert found.history(found.parent, "mean_accuracy") == [(0, 45.0), (1, 50.0), (2, 55.0), (3, 60.0)]
    assert "pack/tensors.safetensors" in found.files(found.tasks[2])
    before = found.everything()
    assert log_run(folder.store.uri, server.uri, "lada", told.append)
    assert Found(server.uri).everything() == before


def test_the_last_call_tries_again_after_an_outage(folder: RunFolder, server: MlflowServer, uri: str) -> None:
    said: list[str] = []
    tracker = folder.tracker("http://127.0.0.1:9", said)
    assert not tracker.open()
    folder.learn(0)
    folder.finish()
    tracker._target = replace(tracker._target, uri=uri)  # as if the server had come back
    assert tracker.finish()
    assert len(said) == 2
    assert "everything is logged" in said[1]
    assert Found(uri).statuses() == ["FINISHED"]


# jobs/log_run.py


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """The job's main function; it quiets libraries for its whole process, which is this one here."""
    spec = importlib.util.spec_from_file_location("log_run", LOG_RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("lada_ray.job.quiet_libraries", lambda: None)
    main: Callable[[list[str]], int] = module.main
    return main


def test_job_logs_a_run_that_was_never_logged(
    folder: RunFolder, uri: str, job: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder.learn(0)
    folder.learn(1)
    assert job([folder.store.uri]) == 0
    found = Found(uri, "lada_ray")
    assert found.parent.info.status == "KILLED"  # a third domain is still to be learnt
    assert found.statuses() == ["FINISHED"] * 2
    assert found.parent.data.params == {"name": "demo", "domains": "digits, road-signs, shapes"}
    folder.learn(2)
    folder.finish()
    assert job([folder.store.uri]) == 0
    assert Found(uri, "lada_ray").parent.info.status == "FINISHED"
    assert len(Found(uri, "lada_ray").tasks) == 3


def test_job_refuses_what_is_no_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"no config\.yaml"):
        log_run(str(tmp_path))


def test_job_leaves_a_live_run_alone(
    folder: RunFolder,
    uri: str,
    job: Callable[[list[str]], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def held(*_: Any, **__: Any) -> Lease:
        raise LeaseHeld("held by somebody else")

    monkeypatch.setattr(Lease, "acquire", held)
    with pytest.raises(LeaseHeld):
        log_run(folder.store.uri, uri)
    assert job([folder.store.uri, "--tracking_uri", uri]) == 75
    assert "held by somebody else" in capsys.readouterr().err


def test_job_tells_what_is_wrong_with_its_command_line(
    tmp_path: Path, job: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job([str(tmp_path), "--tracking.uri", "http://x"]) == 1
    assert "did you mean --tracking_uri" in capsys.readouterr().err
    assert job([str(tmp_path)]) == 1
    assert "no config.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        job(["--help"])
    assert stopped.value.code == 0


def test_mlflow_is_imported_ahead_without_telemetry(tmp_path: Path) -> None:
    """MLflow decides at its import, and notes an installation in the home folder."""
    code = (
        "import lada_ray.tracking.ahead\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "assert get_telemetry_client() is None\n"
    )
    public = {
        k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_ACTIONS", "MLFLOW_DISABLE_TELEMETRY")
    }
    subprocess.run([sys.executable, "-c", code], env={**public, "HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*telemetry*"))
