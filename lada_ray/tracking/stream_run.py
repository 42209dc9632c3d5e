"""One stream in one MLflow: a parent run, and a nested run per task."""

from __future__ import annotations

import hashlib
import io
import posixpath
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lada_ray.lease import Owner
from lada_ray.report import matrix_figure_png
from lada_ray.tracking.connection import connect
from lada_ray.tracking.folder import LoggedRow, RunFolder, TaskResult, digest
from lada_ray.tracking.points import (
    curve_points,
    metric_name,
    milliseconds,
    points,
    task_params,
    task_points,
    zero_shot_points,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

RUN_TAG = "lada_ray.run"  # the run's id, on the parent and on every nested run
ROLE_TAG = "lada_ray.role"  # "stream" (parent) or "task" (nested)
PACK_TAG = "lada_ray.pack"  # digest of the pack that the nested run logged
ROW_TAG = "lada_ray.row"  # digest of the accuracy row and the figures that were logged last
FILES_TAG = "lada_ray.files"  # digest of the parent's artifacts
KILLED_TAG = "lada_ray.killed"  # how often the stream was killed
SMALL_FILES = ("config.yaml", "metrics.json", "accuracy_matrix.csv", "bad_images.csv", "report.html")
STREAM_METRICS = (
    "transfer", "average", "last", "forgetting", "backward_transfer", "zero_shot", "images_encoded",
)  # fmt: skip

Upload = Callable[[str, str, str, Mapping[str, str]], None]


class Abandoned(Exception):
    """Another process logs this run now: this one has to leave MLflow alone."""


@dataclass(frozen=True)
class Target:
    """Where a run is logged, and as what: MLflow, experiment, the run's id (`start.json`), its name."""

    uri: str
    experiment: str
    run: str
    name: str


@dataclass
class _TaskRun:
    """A nested run of a pack: which row it has logged, and whether it is closed as FINISHED."""

    run_id: str
    row: str | None
    """"": the pack is logged, and waits for its row; None: nothing is logged yet."""
    finished: bool


class StreamRun:
    """The stream's parent run in one MLflow, open for logging. Calls may raise whatever MLflow raises.

    Args:
        target: where it is logged, and as what; experiment and database are created when they are missing.
        folder: the run folder.
        upload: copies files of the run folder into a run's artifacts.
        abandoned: once set, every call raises Abandoned before it reaches MLflow.
    """

    def __init__(self, target: Target, folder: RunFolder, upload: Upload, abandoned: threading.Event) -> None:
        self.target, self.folder = target, folder
        self._upload, self._abandoned = upload, abandoned
        self._client, self.experiment_id = connect(target.uri, target.experiment)
        self.parent = ""
        self._zero_shot_row = ""
        self._files = ""
        self._tasks: dict[str, _TaskRun] = {}
        self._begun: dict[int, str] = {}  # position -> run id of a task that is being learnt

    @property
    def client(self) -> MlflowClient:
        """The way to MLflow, as long as the run is ours."""
        if self._abandoned.is_set():
            raise Abandoned
        return self._client

    def close_left_over(self, earlier: Mapping[str, Any]) -> None:
        """Close as KILLED: the caller holds the folder's lease, so whoever had runs of it open no longer lives.

        Args:
            earlier: "run" and "experiment_id" that the folder was logged as before; other ones than now after it
                was started over, or went on with another experiment.
        """
        experiments = dict.fromkeys([self.experiment_id, earlier.get("experiment_id", self.experiment_id)])
        for run_id in dict.fromkeys([self.target.run, earlier.get("run", self.target.run)]):
            for run in self._runs(run_id, list(experiments)):
                if run.info.status == "RUNNING":
                    self._close_killed(run)

    def _runs(self, run_id: str, experiments: list[str]) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                experiments, f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1000, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _close_killed(self, run: Run) -> None:
        self.client.set_terminated(run.info.run_id, "KILLED")
        if run.data.tags.get(ROLE_TAG) == "stream":
            times = int(run.data.tags.get(KILLED_TAG, 0)) + 1
            self.client.set_tag(run.info.run_id, KILLED_TAG, times)

    def open(self, params: Mapping[str, Any]) -> None:
        """Open the parent run, creating what is missing, and find out what is logged already."""
        runs = self._runs(self.target.run, [self.experiment_id])
        parents = [run for run in runs if run.data.tags.get(ROLE_TAG) == "stream"]
        self._open_parent(min(parents, key=lambda run: run.info.start_time) if parents else None, params)
        for run in runs:
            if pack := run.data.tags.get(PACK_TAG):
                row = run.data.tags.get(ROW_TAG, "")
                self._tasks[pack] = _TaskRun(run.info.run_id, row, run.info.status == "FINISHED")

    def _open_parent(self, found: Run | None, params: Mapping[str, Any]) -> None:
        if found is None:
            self.parent = self._create_run(self.target.name, {ROLE_TAG: "stream"})
        else:
            self.parent = found.info.run_id
            self.client.update_run(self.parent, status="RUNNING", name=self.target.name)
            self._zero_shot_row = found.data.tags.get(ROW_TAG, "")
            self._files = found.data.tags.get(FILES_TAG, "")
        known = found.data.params if found else {}
        # Params are immutable in MLflow: a value that changed since (resources may) is in config.yaml only.
        new = {key: value for key, value in params.items() if metric_name(key) not in known}
        self._log(self.parent, params=new)

    def _create_run(self, name: str, tags: Mapping[str, str], started: str | None = None) -> str:
        user = Owner.this_process(0).user
        tags = {RUN_TAG: self.target.run, "mlflow.source.name": "lada_ray", "mlflow.user": user, **tags}
        run = self.client.create_run(self.experiment_id, milliseconds(started), tags, name)
        return str(run.info.run_id)

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log in batches of MLflow's limits. Tags, which mark what is logged, go with the last batch."""
        from mlflow.entities import Param, RunTag

        flat = [Param(metric_name(key), str(value)[:6000]) for key, value in (params or {}).items()]
        for start in range(0, len(flat), 100):
            self.client.log_batch(run_id, params=flat[start : start + 100])
        batches = [metrics[start : start + 900] for start in range(0, len(metrics), 900)] or [()]
        for batch in batches[:-1]:
            self.client.log_batch(run_id, metrics=batch)
        marks = [RunTag(key, value) for key, value in (tags or {}).items()]
        if batches[-1] or marks:
            self.client.log_batch(run_id, metrics=batches[-1], tags=marks)

    def _copy(self, run_id: str, files: Mapping[str, str]) -> None:
        if self._abandoned.is_set():
            raise Abandoned
        if files:
            self._upload(self.target.uri, run_id, self.folder.store.uri, files)

    def start_task(self, domain: str, position: int) -> None:
        """Open a nested run for the task that begins; once, however often it is called."""
        if position not in self._begun:
            self._begun[position] = self._create_task_run(domain, position)

    def _create_task_run(self, domain: str, position: int, started: str | None = None) -> str:
        tags = {ROLE_TAG: "task", "mlflow.parentRunId": self.parent, "lada_ray.domain": domain}
        return self._create_run(f"{position + 1:02d} {domain}", tags, started)

    def log_zero_shot(self, row: LoggedRow | None) -> None:
        """Log the accuracies before learning as step 0 of the parent's curves."""
        if row is None or row.digest == self._zero_shot_row:
            return
        self._log(self.parent, zero_shot_points(row), tags={ROW_TAG: row.digest})
        self._zero_shot_row = row.digest

    def log_task(self, task: TaskResult, learnt: Sequence[str]) -> None:
        """Log what the task's nested run, and its point of the parent's curves, still lack."""
        run = self._tasks.get(task.digest)
        if run and run.row == task.mark and (run.finished or not task.row):
            return
        if run is None:
            run = self._tasks[task.digest] = _TaskRun(self._run_for(task), None, False)
        if task.row and run.row != task.mark:
            self._log(self.parent, curve_points(task.row, task.position, learnt))
        params = {} if run.finished else task_params(task)
        self._log(run.run_id, task_points(task), params, {PACK_TAG: task.digest, ROW_TAG: task.mark})
        run.row = task.mark
        if task.row and not run.finished:
            folder = f"model/packs/{task.digest}"
            names = ("pack.json", "tensors.safetensors")
            self._copy(run.run_id, {f"{folder}/{name}": f"pack/{name}" for name in names})
            self.client.set_terminated(run.run_id, "FINISHED", milliseconds(task.record.get("finished")))
            run.finished = True

    def _run_for(self, task: TaskResult) -> str:
        begun = self._begun.pop(task.position, None)
        return begun or self._create_task_run(task.domain, task.position, task.record.get("started"))

    def log_results(self, with_model: bool) -> None:
        """Log the stream's metrics and files on the parent, unless these very ones are there already."""
        store = self.folder.store
        contents = {name: found[0] for name in SMALL_FILES if (found := store.read_version(name))}
        model = self.folder.model_files() if with_model else []
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        files = digest([digests, sorted(model)])
        if files == self._files:
            return
        results = self.folder.optional_json("metrics.json")
        values = {name: results.get(name) for name in STREAM_METRICS}
        self._copy(self.parent, {key: key for key in [*contents, *self._not_uploaded(model)]})
        if matrix := contents.get("accuracy_matrix.csv"):
            self._log_picture(matrix, results.get("zero_shot_per_domain"))
        written = milliseconds(self.folder.written("metrics.json"))
        metrics = points(values, written, step=len(self.folder.packs()))
        self._log(self.parent, metrics, tags={FILES_TAG: files})
        self._files = files

    def _not_uploaded(self, keys: Sequence[str]) -> list[str]:
        """Leave out packs that are among the artifacts: they are immutable."""
        there: set[str] = set()
        for folder in {posixpath.dirname(key) for key in keys if key.startswith("model/packs/")}:
            there |= {info.path for info in self.client.list_artifacts(self.parent, folder)}
        return [key for key in keys if key not in there]

    def _log_picture(self, matrix: bytes, zero_shot: Mapping[str, float] | None) -> None:
        accuracy = pd.read_csv(io.BytesIO(matrix), index_col="learnt")
        with tempfile.TemporaryDirectory(prefix="lada_ray_") as folder:
            path = Path(folder) / "accuracy_matrix.png"
            path.write_bytes(matrix_figure_png(accuracy, zero_shot))
            self.client.log_artifact(self.parent, str(path))

    def register(self, name: str) -> None:
        """Make the uploaded model a version of a registered model, unless the one with this newest pack is there."""
        from mlflow.exceptions import MlflowException

        newest = self.folder.packs()[-1]
        try:
            self.client.get_registered_model(name)
        except MlflowException:
            self.client.create_registered_model(name)
        versions = self.client.search_model_versions(f"name = '{name}'")
        if all(version.tags.get(PACK_TAG) != newest for version in versions):
            source = f"{self.client.get_run(self.parent).info.artifact_uri}/model"
            self.client.create_model_version(name, source, self.parent, tags={PACK_TAG: newest})

    def close(self, status: str, ended: float | None) -> None:
        """Close the parent, and as KILLED or FAILED a task that was begun and not finished (unix s)."""
        unfinished = [run.run_id for run in self._tasks.values() if not run.finished]
        for run_id in [*unfinished, *self._begun.values()]:
            self.client.set_terminated(run_id, "FAILED" if status == "FAILED" else "KILLED")
        self._begun.clear()
        self.client.set_terminated(self.parent, status, milliseconds(ended))
