"""MLflow: a projection of the run folder, made by the driver.

One parent run per stream, one nested run per task. Whatever is logged comes from the run folder (`tasks/`,
`rows/`, `model/model.json`, `metrics.json` and the files beside it), and tags say what is logged already. So
logging while the stream runs, repairing after a kill, and `jobs/log_run.py` long afterwards are one thing:
log what is missing. An MLflow that cannot be reached never costs learning: the run goes on with a warning.

This file and the pyfunc wrapper are the only ones that import mlflow, and they do so when it is first needed:
importing it takes a second or two, a fresh SQLite database about two more. `BackgroundTracker` hides both.
"""

from __future__ import annotations

import getpass
import hashlib
import io
import json
import logging
import math
import os
import posixpath
import re
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import pandas as pd
import yaml
from filelock import FileLock

from lada_ray.config import mlflow_uri
from lada_ray.errors import InputError
from lada_ray.lease import Lease
from lada_ray.model import LadaModel
from lada_ray.report import matrix_figure_png
from lada_ray.store import Store, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

RUN_TAG = "lada_ray.run"  # the run folder's identity, on the parent and on every nested run
ROLE_TAG = "lada_ray.role"  # "stream" (parent) or "task" (nested)
PACK_TAG = "lada_ray.pack"  # digest of the pack that the nested run logged
ROW_TAG = "lada_ray.row"  # digest of the accuracy row and the figures that were logged last
FILES_TAG = "lada_ray.files"  # digest of the parent's artifacts
KILLED_TAG = "lada_ray.killed"  # how often the stream was killed
IDENTITY = "tracking.json"
SMALL_FILES = ("config.yaml", "metrics.json", "accuracy_matrix.csv", "bad_images.csv", "report.html")
STREAM_METRICS = (
    "transfer", "average", "last", "forgetting", "backward_transfer", "zero_shot", "images_encoded",
)  # fmt: skip
CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

Say = Callable[[str], None]
Upload = Callable[[str, str, str, Mapping[str, str]], None]


# How to say where


def how_to_open(uri: str) -> str:
    """Say how to look at the results.

    Args:
        uri: a tracking URI.

    Returns:
        the server's address, or the command that serves a database.
    """
    if uri.startswith(("http://", "https://", "databricks")):
        return hide_password(uri)
    return shlex.join(["mlflow", "ui", "--backend-store-uri", hide_password(uri)])


def hide_password(uri: str) -> str:
    """Blank the password of a URI, for messages and files.

    Args:
        uri: any URI.

    Returns:
        the URI with `***` for its password, if it has one.
    """
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


# What there is to log


@dataclass(frozen=True)
class Row:
    """One accuracy row: % per domain, when it was written (unix s), and a digest of its content."""

    accuracy: dict[str, float]
    written: float
    digest: str


@dataclass(frozen=True)
class TaskResult:
    """One committed task as the run folder tells it; `record` is its `tasks/<digest>.json`."""

    digest: str
    domain: str
    position: int
    record: dict[str, Any]
    row: Row | None

    @property
    def mark(self) -> str:
        """A digest of what changes when the task is evaluated or measured again; "" before evaluation."""
        figures = [self.record.get(key) for key in ("timings", "counts", "loss")]
        return _digest([self.row.digest, figures]) if self.row else ""


@dataclass
class RunFolder:
    """Reads what there is to log from a run folder, each object once per version.

    Attributes:
        store: the run folder.
    """

    store: Store
    _parsed: dict[tuple[str, str], Any] = field(default_factory=dict)

    def packs(self) -> list[str]:
        """List the digests of the model's packs, in order; [] before the first commit."""
        found = self.store.read_version("model/model.json")
        return list(json.loads(found[0])["packs"]) if found else []

    def tasks(self) -> list[TaskResult]:
        """List the committed tasks in order, without those whose task record is not written yet."""
        records = {record["digest"]: record for record, _ in self._read("tasks/").values()}
        rows = self._rows()
        return [
            TaskResult(digest, records[digest]["domain"], position, records[digest], rows.get(digest))
            for position, digest in enumerate(self.packs())
            if digest in records
        ]

    def zero_shot(self) -> Row | None:
        """Return the zero-shot row, if there is one."""
        return self._rows().get("zero_shot")

    def optional_json(self, key: str) -> dict[str, Any]:
        """Parse a JSON object; {} when it is absent."""
        found = self.store.read_version(key)
        return dict(json.loads(found[0])) if found else {}

    def written(self, key: str) -> float | None:
        """Return when an object of the folder's top level was written (unix s); None when it is absent."""
        return next((entry.modified for entry in self.store.list() if entry.key == key), None)

    def _rows(self) -> dict[str, Row]:
        """Find the row per pack digest. After domains were appended there are several: the widest counts."""
        rows: dict[str, Row] = {}
        for key, (content, written) in self._read("rows/").items():
            row = _row(content, written)
            name = posixpath.basename(key).rpartition("-")[0]
            current = rows.get(name)
            if current is None or (len(row.accuracy), written) >= (len(current.accuracy), current.written):
                rows[name] = row
        return rows

    def _read(self, prefix: str) -> dict[str, tuple[Any, float]]:
        entries = [entry for entry in self.store.list(prefix) if entry.key.endswith(".json")]
        for entry in entries:
            if (entry.key, entry.version) not in self._parsed:
                self._parsed[entry.key, entry.version] = json.loads(self.store.read(entry.key))
        return {entry.key: (self._parsed[entry.key, entry.version], entry.modified) for entry in entries}


def _row(content: Mapping[str, Any], written: float) -> Row:
    accuracy = {
        domain: 100 * sum(correct) / sum(content["total"][domain])
        for domain, correct in content["correct"].items()
        if sum(content["total"][domain])
    }
    return Row(accuracy, written, _digest([content["correct"], content["total"]]))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# Talking to MLflow


def upload_artifacts(tracking_uri: str, run_id: str, store_uri: str, files: Mapping[str, str]) -> None:
    """Copy objects from storage into a run's artifacts. Stands alone, so that a task near the data can do it.

    Args:
        tracking_uri: the MLflow that has the run.
        run_id: the run.
        store_uri: where the objects are.
        files: key in the store -> path among the artifacts.

    Raises:
        FileNotFoundError: an object is missing.
        mlflow.exceptions.MlflowException: MLflow cannot take the files.
    """
    store = open_store(store_uri)
    with quiet_client(timeout=120), tempfile.TemporaryDirectory(prefix="lada_ray_") as folder:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri)
        for key, target in files.items():
            local = Path(folder) / posixpath.basename(target)
            with store.open(key) as source, local.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            client.log_artifact(run_id, str(local), posixpath.dirname(target) or None)
            local.unlink()


@contextmanager
def quiet_client(timeout: int = 10) -> Iterator[None]:
    """Let MLflow give up within seconds and keep quiet, except where the user's environment says otherwise.

    Without this a dead server costs minutes per call (7 retries of 120 s), and every retry prints a warning.

    Args:
        timeout: seconds to wait for an answer; uploads need longer, as the server may pass them on first.
    """
    ours = CLIENT_ENVIRONMENT | {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout)}
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    levels = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "urllib3.connectionpool": logging.ERROR}
    os.environ.update(ours)
    with ExitStack() as after:
        after.callback(lambda: [os.environ.pop(name, None) for name in ours])
        _import_mlflow()  # it sets its logger's level
        for name, level in levels.items():
            logger = logging.getLogger(name)
            after.callback(logger.setLevel, logger.level)
            logger.setLevel(max(level, logger.level))
        yield


def _import_mlflow() -> None:
    import mlflow  # noqa: F401


def metric_name(*parts: str) -> str:
    """Make a metric's name that MLflow accepts.

    Args:
        parts: such as "accuracy" and a domain's name.

    Returns:
        the parts joined by slashes; characters other than letters, digits and `_-.: ` become `_`.
    """
    cleaned = [re.sub(r"[^\w\-.: ]", "_", part) for part in parts]
    return "/".join("_" * len(part) if part in (".", "..") else part for part in cleaned)[:250]


def _milliseconds(moment: str | float | None) -> int:
    """Read an ISO time or unix seconds; the present when there is none."""
    if not moment:
        return round(time.time() * 1000)
    seconds = datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else moment
    return round(seconds * 1000)


def _metrics(values: Mapping[str, Any], timestamp: int, step: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), timestamp, step)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


@dataclass
class _TaskRun:
    """A nested run: which pack and row it has logged, and whether it is closed as FINISHED."""

    run_id: str
    row: str
    finished: bool


class _Stream:
    """The stream's parent run in one MLflow, open for logging. Calls may raise whatever MLflow raises."""

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str, identity: str) -> None:
        self.client = client
        self.uri = uri
        self.experiment_id = experiment_id
        self.identity = identity
        self.parent = ""
        self.zero_shot_row = ""
        self.files = ""
        self.tasks: dict[str, _TaskRun] = {}
        self.begun: dict[int, str] = {}  # position -> run id of a task that is being learnt

    @classmethod
    def open(cls, uri: str, experiment: str, identity: str, name: str, params: Mapping[str, Any]) -> _Stream:
        """Open the parent run, creating what is missing; close what a killed process of this run left."""
        with _initialised_once(uri):
            from mlflow import MlflowClient

            client = MlflowClient(uri, registry_uri=uri)
            stream = cls(client, uri, _experiment_id(client, uri, experiment), identity)
        runs = stream._own_runs()
        stream._close_left_over(runs)
        parents = [run for run in runs if run.data.tags.get(ROLE_TAG) == "stream"]
        stream._open_parent(
            min(parents, key=lambda run: run.info.start_time) if parents else None, name, params
        )
        for run in runs:
            if pack := run.data.tags.get(PACK_TAG):
                row = run.data.tags.get(ROW_TAG, "")
                stream.tasks[pack] = _TaskRun(run.info.run_id, row, run.info.status == "FINISHED")
        return stream

    def _own_runs(self) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{RUN_TAG}` = '{self.identity}'",
                max_results=1000,
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _close_left_over(self, runs: Sequence[Run]) -> None:
        """Close as KILLED: the caller holds this run's lease, so whoever had them open no longer lives."""
        for run in runs:
            if run.info.status != "RUNNING":
                continue
            self.client.set_terminated(run.info.run_id, "KILLED")
            if run.data.tags.get(ROLE_TAG) == "stream":
                times = int(run.data.tags.get(KILLED_TAG, 0)) + 1
                self.client.set_tag(run.info.run_id, KILLED_TAG, times)

    def _open_parent(self, found: Run | None, name: str, params: Mapping[str, Any]) -> None:
        if found is None:
            self.parent = self._create_run(name, {ROLE_TAG: "stream"})
        else:
            self.parent = found.info.run_id
            self.client.update_run(self.parent, status="RUNNING", name=name)
            self.zero_shot_row = found.data.tags.get(ROW_TAG, "")
            self.files = found.data.tags.get(FILES_TAG, "")
        known = found.data.params if found else {}
        # Params are immutable in MLflow: a value that changed since (resources may) is in config.yaml only.
        self._log(
            self.parent, params={key: value for key, value in params.items() if metric_name(key) not in known}
        )

    def _create_run(self, name: str, tags: Mapping[str, str], started: str | None = None) -> str:
        tags = {RUN_TAG: self.identity, "mlflow.source.name": "lada_ray", "mlflow.user": _user(), **tags}
        run = self.client.create_run(self.experiment_id, _milliseconds(started), tags, name)
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

    def start_task(self, domain: str, position: int) -> None:
        """Open a nested run for the task that begins; once, however often it is called."""
        if position not in self.begun:
            self.begun[position] = self._create_task_run(domain, position)

    def _create_task_run(self, domain: str, position: int, started: str | None = None) -> str:
        tags = {ROLE_TAG: "task", "mlflow.parentRunId": self.parent, "lada_ray.domain": domain}
        return self._create_run(f"{position + 1:02d} {domain}", tags, started)

    def log_zero_shot(self, row: Row | None) -> None:
        """Log the accuracies before learning as step 0 of the parent's curves."""
        if row is None or row.digest == self.zero_shot_row:
            return
        metrics = _metrics(_row_metrics(row), _milliseconds(row.written), step=0)
        self._log(self.parent, metrics, tags={ROW_TAG: row.digest})
        self.zero_shot_row = row.digest

    def log_task(self, task: TaskResult, learnt: Sequence[str], store_uri: str, upload: Upload) -> None:
        """Log what the task's nested run, and its point of the parent's curves, still lack."""
        run = self.tasks.get(task.digest)
        row = task.mark
        if run and run.finished and run.row == row:
            return
        if run is None:
            run = self.tasks[task.digest] = _TaskRun(self._run_for(task), "", False)
        if task.row and run.row != row:
            self._log(self.parent, self._curve_points(task.row, task.position, learnt))
        params = {} if run.finished else _task_params(task)
        self._log(run.run_id, _task_metrics(task), params, {PACK_TAG: task.digest, ROW_TAG: row})
        run.row = row
        if task.row and not run.finished:
            folder = f"model/packs/{task.digest}"
            files = {f"{folder}/{name}": f"pack/{name}" for name in ("pack.json", "tensors.safetensors")}
            upload(self.uri, run.run_id, store_uri, files)
            self.client.set_terminated(run.run_id, "FINISHED", _milliseconds(task.record.get("finished")))
            run.finished = True

    def _run_for(self, task: TaskResult) -> str:
        begun = self.begun.pop(task.position, None)
        return begun or self._create_task_run(task.domain, task.position, task.record.get("started"))

    @staticmethod
    def _curve_points(row: Row, position: int, learnt: Sequence[str]) -> list[Metric]:
        """Metrics of the parent after a task. The row's own time makes logging it twice the same as once."""
        seen = [value for domain, value in row.accuracy.items() if domain in learnt[: position + 1]]
        unseen = [value for domain, value in row.accuracy.items() if domain not in learnt[: position + 1]]
        values = _row_metrics(row) | {"seen_accuracy": _mean(seen), "unseen_accuracy": _mean(unseen)}
        return _metrics(values, _milliseconds(row.written), step=position + 1)

    def log_results(self, folder: RunFolder, tasks: int, upload: Upload, with_model: bool) -> None:
        """Log the stream's metrics and files on the parent, unless these very ones are there already."""
        contents = {name: found[0] for name in SMALL_FILES if (found := folder.store.read_version(name))}
        models = _model_files(folder) if with_model else {}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        files = _digest([digests, sorted(models)])
        if files == self.files:
            return
        written = folder.written("metrics.json")
        results = folder.optional_json("metrics.json")
        values = {name: results.get(name) for name in STREAM_METRICS}
        missing = {name: name for name in contents} | self._not_uploaded(models)
        if missing:
            upload(self.uri, self.parent, folder.store.uri, missing)
        if matrix := contents.get("accuracy_matrix.csv"):
            self._log_picture(matrix, results.get("zero_shot_per_domain"))
        self._log(self.parent, _metrics(values, _milliseconds(written), step=tasks), tags={FILES_TAG: files})
        self.files = files

    def register(self, name: str, digest: str) -> None:
        """Make the uploaded model a version of a registered model, unless the one with this newest pack is there."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_registered_model(name)
        except MlflowException:
            self.client.create_registered_model(name)
        versions = self.client.search_model_versions(f"name = '{name}'")
        if all(version.tags.get(PACK_TAG) != digest for version in versions):
            source = f"{self.client.get_run(self.parent).info.artifact_uri}/model"
            self.client.create_model_version(name, source, self.parent, tags={PACK_TAG: digest})

    def _not_uploaded(self, files: Mapping[str, str]) -> dict[str, str]:
        """Leave out packs that are among the artifacts: they are immutable."""
        there: set[str] = set()
        for folder in {posixpath.dirname(path) for path in files.values() if path.startswith("model/packs/")}:
            there |= {info.path for info in self.client.list_artifacts(self.parent, folder)}
        return {key: path for key, path in files.items() if path not in there}

    def _log_picture(self, matrix: bytes, zero_shot: Mapping[str, float] | None) -> None:
        accuracy = pd.read_csv(io.BytesIO(matrix), index_col="learnt")
        with tempfile.TemporaryDirectory(prefix="lada_ray_") as folder:
            path = Path(folder) / "accuracy_matrix.png"
            path.write_bytes(matrix_figure_png(accuracy, zero_shot))
            self.client.log_artifact(self.parent, str(path))

    def close(self, status: str, ended: float | None) -> None:
        """Close the parent, and as KILLED or FAILED a task that was begun and not finished (unix s)."""
        open_runs = [run.run_id for run in self.tasks.values() if not run.finished]
        for run_id in [*open_runs, *self.begun.values()]:
            self.client.set_terminated(run_id, "FAILED" if status == "FAILED" else "KILLED")
        self.begun.clear()
        self.client.set_terminated(self.parent, status, _milliseconds(ended))


def _row_metrics(row: Row) -> dict[str, float]:
    accuracies = {metric_name("accuracy", domain): value for domain, value in row.accuracy.items()}
    return accuracies | {"mean_accuracy": _mean(list(row.accuracy.values()))}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _task_params(task: TaskResult) -> dict[str, Any]:
    return {"domain": task.domain, "position": task.position + 1, **task.record.get("params", {})}


def _task_metrics(task: TaskResult) -> list[Metric]:
    """Collect accuracy row, losses, timings and counts, stamped with recorded times: twice is as once."""
    started = _milliseconds(task.record.get("started"))
    finished = _milliseconds(task.record.get("finished"))
    values = {
        metric_name("time", stage): seconds for stage, seconds in task.record.get("timings", {}).items()
    }
    values |= {metric_name("count", name): count for name, count in task.record.get("counts", {}).items()}
    metrics = _metrics(values, finished, step=0)
    losses = task.record.get("loss", [])
    for epoch, loss in enumerate(losses, start=1):
        moment = started + (finished - started) * epoch // len(losses)
        metrics += _metrics({"loss": loss}, moment, step=epoch)
    if task.row:
        metrics += _metrics(
            _row_metrics(task.row), _milliseconds(task.row.written), step=len(task.row.accuracy)
        )
    return metrics


def _model_files(folder: RunFolder) -> dict[str, str]:
    """List the keys of the model: its packs and model.json, without packs that no longer belong to it."""
    packs = {f"model/packs/{digest}" for digest in folder.packs()}
    keys = [entry.key for entry in folder.store.list("model/")]
    return {key: key for key in keys if posixpath.dirname(key) in packs or not key.startswith("model/packs/")}


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:///"):  # beside the database; a server knows better where its artifacts go
            location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:
            found = client.get_experiment_by_name(name)  # another run may have been quicker
            if found is None:
                raise
    return str(found.experiment_id)


@contextmanager
def _initialised_once(uri: str) -> Iterator[None]:
    """Keep two runs of one storage from creating one SQLite database at once, which destroys it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=60):
        yield


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def run_identity(store: Store) -> str:
    """Return the run folder's identity in MLflow, written to `tracking.json` when first asked for.

    Args:
        store: the run folder.

    Returns:
        a UUID, the value of the tag `lada_ray.run` on all runs of this stream.
    """
    content = json.dumps({"run": str(uuid.uuid4())}).encode()
    if store.create(IDENTITY, content):
        return str(json.loads(content)["run"])
    return str(json.loads(store.read(IDENTITY))["run"])


# What the stream calls


class Tracker:
    """Logs one run folder to MLflow. Calls never raise because of MLflow; hold the lease before the first.

    The calls need not come from one thread, but one after another.

    Args:
        store: the run folder.
        uri: a tracking URI (`config.mlflow_uri`).
        experiment: the experiment's name, created when missing.
        name: the run's name.
        params: what to log as the parent's params: flat name -> value.
        say: told, once, that MLflow cannot be reached, and what to do.
        upload: copies artifacts (`upload_artifacts`, or a wrapper that runs it elsewhere and waits for it).
        retry_after: seconds in which calls are skipped after one failed.
        registered_model: the finished model becomes a new version of this registered model.

    Attributes:
        seconds: time spent in calls so far, for the `track` stage.
    """

    def __init__(
        self,
        store: Store,
        uri: str,
        experiment: str,
        name: str,
        params: Mapping[str, Any] | None = None,
        say: Say = print,
        upload: Upload = upload_artifacts,
        retry_after: float = 120.0,
        registered_model: str | None = None,
    ) -> None:
        self.seconds = 0.0
        self._registered_model = registered_model
        self._folder = RunFolder(store)
        self._uri, self._experiment, self._name = uri, experiment, name
        self._params = dict(params or {})
        self._say, self._upload, self._retry_after = say, upload, retry_after
        self._stream: _Stream | None = None
        self._failed_at: float | None = None
        self._warned = False

    @property
    def run_id(self) -> str | None:
        """The parent run's id, once it is open."""
        return self._stream.parent if self._stream else None

    def open(self) -> bool:
        """Open the parent run; close as KILLED what a killed process of this run left RUNNING.

        Returns:
            whether MLflow could be reached.
        """
        return self._attempt(lambda stream: None)

    def start_task(self, domain: str, position: int) -> bool:
        """Show that a task is being learnt: a nested run that is RUNNING.

        Args:
            domain: the domain's name.
            position: 0-based.

        Returns:
            whether MLflow could be reached.
        """

        def begin(stream: _Stream) -> None:
            # In the background this may come late: the task may be committed, even logged, by now.
            if len(self._folder.packs()) <= position:
                stream.start_task(domain, position)

        return self._attempt(begin)

    def sync(self) -> bool:
        """Log everything in the run folder about tasks and rows that is not logged yet.

        Returns:
            whether MLflow could be reached.
        """
        return self._attempt(self._sync)

    def finish(self, status: str = "FINISHED") -> bool:
        """Log what is missing, the results and their files, and close the parent; tries even after failures.

        Args:
            status: FINISHED, FAILED or KILLED. The model is uploaded when FINISHED.

        Returns:
            whether all of it is logged.
        """

        def complete(stream: _Stream) -> None:
            self._sync(stream)
            tasks = len(self._folder.packs())
            stream.log_results(self._folder, tasks, self._upload, with_model=status == "FINISHED")
            if self._registered_model and status == "FINISHED":
                stream.register(self._registered_model, self._folder.packs()[-1])
            stream.close(status, self._folder.written("metrics.json") if status == "FINISHED" else None)

        return self._attempt(complete, last=True)

    def _sync(self, stream: _Stream) -> None:
        stream.log_zero_shot(self._folder.zero_shot())
        tasks = self._folder.tasks()
        for task in tasks:
            stream.log_task(task, [one.domain for one in tasks], self._folder.store.uri, self._upload)

    def _attempt(self, action: Callable[[_Stream], None], last: bool = False) -> bool:
        started = time.monotonic()
        if not last and self._failed_at is not None and started - self._failed_at < self._retry_after:
            return False
        try:
            with quiet_client():
                if self._stream is None:
                    self._stream = self._open_stream()
                action(self._stream)
        # Whatever goes wrong in MLflow, its database, or the network must not cost the run what it learns.
        except Exception as error:
            self._failed_at = time.monotonic()
            self._warn(error, last)
            return False
        finally:
            self.seconds += time.monotonic() - started
        self._failed_at = None
        if last and self._warned:
            self._say("MLflow can be reached again, and everything is logged.")
        return True

    def _open_stream(self) -> _Stream:
        store = self._folder.store
        identity = run_identity(store)
        stream = _Stream.open(self._uri, self._experiment, identity, self._name, self._params)
        ids = {
            "run": identity,
            "uri": hide_password(self._uri),
            "experiment": self._experiment,
            "experiment_id": stream.experiment_id,
            "run_id": stream.parent,
        }
        store.write(IDENTITY, json.dumps(ids, indent=2).encode())
        return stream

    def _warn(self, error: Exception, last: bool) -> None:
        if self._warned and not last:
            return
        self._warned = True
        reason = " ".join(str(error).rpartition("Caused by")[2].split())  # the cause, where requests tells it
        reason = reason if len(reason) <= 300 else f"{reason[:300]}…"
        what = (
            "Not all of the run is logged in MLflow"
            if last
            else "Cannot log to MLflow; the run goes on without"
        )
        uri = hide_password(self._uri)
        command = shlex.join(["python", "jobs/log_run.py", self._folder.store.uri, "--tracking.uri", uri])
        self._say(
            f"{what} ({uri}): {type(error).__name__}: {reason}\n"
            f"Nothing learnt is lost. To log what is missing, once it can be reached:\n  {command}"
        )


class BackgroundTracker:
    """A Tracker whose calls are made by one thread, in order, so that learning never waits for MLflow.

    Args:
        tracker: makes the calls.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    def open(self) -> Future[bool]:
        """See `Tracker.open`; returns at once."""
        return self._thread.submit(self.tracker.open)

    def start_task(self, domain: str, position: int) -> Future[bool]:
        """See `Tracker.start_task`; returns at once."""
        return self._thread.submit(self.tracker.start_task, domain, position)

    def sync(self) -> Future[bool]:
        """See `Tracker.sync`; returns at once."""
        return self._thread.submit(self.tracker.sync)

    def finish(self, status: str = "FINISHED") -> bool:
        """See `Tracker.finish`; waits until everything before and this is done."""
        done = self._thread.submit(self.tracker.finish, status).result()
        self._thread.shutdown()
        return done


def load(uri: str, tracking_uri: str | None = None) -> LadaModel:
    """Load a model from a path, a storage URI, or MLflow's `models:/name@alias`, `models:/name/1`, `runs:/id/model`.

    Args:
        uri: where the model is.
        tracking_uri: the MLflow that knows it; by default MLFLOW_TRACKING_URI.

    Raises:
        FileNotFoundError: there is no model.
        IntegrityError: a pack is missing, cut short or changed.
        mlflow.exceptions.MlflowException: MLflow does not know it.
    """
    if not uri.startswith(("models:/", "runs:/")):
        return LadaModel.load(uri)
    with quiet_client(timeout=120):
        from mlflow.artifacts import download_artifacts

        return LadaModel.load(download_artifacts(uri, tracking_uri=tracking_uri, registry_uri=tracking_uri))


def log_run(folder: str, uri: str | None = None, experiment: str | None = None, say: Say = print) -> bool:
    """Log to MLflow what is missing there of a run folder: after an outage, or into another MLflow.

    Args:
        folder: the run folder, a path or URI.
        uri: a tracking URI; by default what the run's configuration says.
        experiment: the experiment; by default the configuration's.
        say: told what happens.

    Returns:
        whether everything is logged now.

    Raises:
        InputError: the folder is no run folder.
        ConfigError: no usable tracking URI.
        LeaseHeld: the run is being written right now, and so logged by its own process.
    """
    store = open_store(folder)
    found = store.read_version("config.yaml")
    if found is None:
        raise InputError([f"{store.uri} has no config.yaml: give the folder of one run, <storage>/<name>"])
    config = yaml.safe_load(found[0]) or {}
    settings = config.get("tracking") or {}
    storage = str(config.get("storage") or posixpath.dirname(store.uri.rstrip("/")))
    tracking_uri = mlflow_uri(uri or settings.get("uri"), storage, os.environ)
    chosen = experiment or settings.get("experiment") or "lada_ray"
    name = str(config.get("name") or posixpath.basename(folder.rstrip("/")))
    with Lease.acquire(store, say):
        registered = settings.get("registered_model")
        tracker = Tracker(
            store, tracking_uri, chosen, name, flat_params(config), say, registered_model=registered
        )
        logged = tracker.finish("FINISHED" if _is_complete(RunFolder(store), config) else "KILLED")
    if logged:
        say(f"All of {store.uri} is logged. To look at it: {how_to_open(tracking_uri)}")
    return logged


def _is_complete(folder: RunFolder, config: Mapping[str, Any]) -> bool:
    domains = len(config.get("domains") or ())
    return folder.store.exists("metrics.json") and len(folder.packs()) >= domains > 0


def flat_params(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration into MLflow params.

    Args:
        config: nested mappings, as `config.yaml` holds them.
        prefix: put before each name.

    Returns:
        "method.beta" -> 1.0 and so on; domains by name; without storage, resources and tracking, which say
        nothing about what was learnt.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in ("storage", "resources", "tracking"):
            continue
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{key}.")
        elif key == "domains" and not prefix:
            flat[key] = ", ".join(str(one.get("name", one)) for one in value)
        else:
            flat[f"{prefix}{key}"] = value
    return flat
