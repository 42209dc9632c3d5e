"""Many runs as one in MLflow: a parent, and a nested run per cell of a comparison or trial of a sweep.

What is to be logged is kept until it is logged, so what an outage of MLflow held up is logged once it is over.
What a process could not log, the next start logs by making the same calls again: a nested run that is FINISHED
is left alone, and to others only what they lack is added.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lada_ray.config import BLANK, hide_password
from lada_ray.errors import LadaError, LostLease
from lada_ray.lease import Owner
from lada_ray.tracking.connection import UPLOAD_TIMEOUT_S, connect, quiet_client
from lada_ray.tracking.points import metric_name, milliseconds, points
from lada_ray.tracking.stream_run import ROLE_TAG, RUN_TAG, Abandoned, Target
from lada_ray.tracking.uri import hide_passwords_in

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

CHILD_TAG = "lada_ray.child"  # the nested run's key within its group
CHILD_ROLES = {"comparison": "cell", "sweep": "trial"}
NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 5000  # what MLflow and its databases take
METRICS_PER_BATCH, TEXTS_PER_BATCH = 800, 100  # 800 metrics, 100 params and 100 tags: 1000 in all

Kind = Literal["comparison", "sweep"]
Status = Literal["FINISHED", "FAILED", "KILLED"]
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class _Step:
    """Metrics at a step, and when they were measured (ms)."""

    values: Values
    step: int
    moment: int


@dataclass(frozen=True)
class _End:
    """How a run ended, and when (ms)."""

    status: str
    moment: int
    metrics: Values
    tags: Mapping[str, str]


@dataclass
class _Child:
    """A nested run as it shall be; `steps` are those that are not logged yet."""

    name: str
    params: Mapping[str, Any]
    started: int
    steps: list[_Step] = field(default_factory=list)
    end: _End | None = None

    @property
    def finished(self) -> bool:
        return self.end is not None and self.end.status == "FINISHED"


@dataclass
class _Logged:
    """A run as it is in MLflow; `unread` are the metrics whose points are there, but not in `metrics` yet."""

    run_id: str
    status: str
    params: set[str] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    metrics: dict[tuple[str, int], float] = field(default_factory=dict)

    @classmethod
    def found(cls, run: Run) -> _Logged:
        return cls(run.info.run_id, run.info.status, set(run.data.params), list(run.data.metrics))


class _GroupRuns:
    """The parent and its nested runs in one MLflow. Calls may raise whatever MLflow raises.

    Args:
        target: where they are logged, and as what; experiment and database are created when they are missing.
        kind: what the group is.
        abandoned: once set, every call raises Abandoned before it reaches MLflow.
    """

    def __init__(self, target: Target, kind: Kind, abandoned: threading.Event) -> None:
        self._target, self._kind, self._abandoned = target, kind, abandoned
        self._client, self._experiment_id = connect(target.uri, target.experiment)
        self._parent = _Logged("", "")
        self._children: dict[str, _Logged] = {}

    @property
    def client(self) -> MlflowClient:
        """The way to MLflow, as long as the group is ours."""
        if self._abandoned.is_set():
            raise Abandoned
        return self._client

    def open(self, params: Mapping[str, Any], alive: Collection[str]) -> None:
        """Open the parent, creating what is missing, and find out what is logged already.

        Args:
            params: of the parent.
            alive: keys of nested runs that this process has begun; others that are RUNNING are closed as KILLED.
        """
        runs = sorted(self._search(), key=lambda run: run.info.start_time)
        parents = [run for run in runs if run.data.tags.get(ROLE_TAG) == self._kind]
        self._open_parent(parents[0] if parents else None, params)
        nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == self._parent.run_id]
        self._adopt([run for run in nested if CHILD_TAG in run.data.tags], alive)

    def _search(self) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            wanted = f"tags.`{RUN_TAG}` = '{self._target.run}'"
            page = self.client.search_runs([self._experiment_id], wanted, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _open_parent(self, found: Run | None, params: Mapping[str, Any]) -> None:
        if found is None:
            self._parent = self._create(self._target.name, {ROLE_TAG: self._kind})
        else:
            self._parent = _Logged.found(found)
            self._reopen(self._parent, self._target.name)
        self._log(self._parent, params)

    def _adopt(self, runs: Iterable[Run], alive: Collection[str]) -> None:
        """Take nested runs as they are; of two with one key, which a lost answer may leave, one that is whole."""
        for run in sorted(runs, key=lambda run: run.info.status != "FINISHED"):
            key, logged = run.data.tags[CHILD_TAG], _Logged.found(run)
            chosen = self._children.setdefault(key, logged)
            if run.info.status == "RUNNING" and (key not in alive or chosen is not logged):
                self._close(logged, "KILLED")

    def _create(self, name: str, tags: Mapping[str, str], started: int | None = None) -> _Logged:
        user = Owner.this_process(0).user
        tags = {RUN_TAG: self._target.run, "mlflow.source.name": "lada_ray", "mlflow.user": user, **tags}
        run = self.client.create_run(
            self._experiment_id, started or milliseconds(None), tags, _cut(name, NAME_LENGTH)
        )
        return _Logged(run.info.run_id, "RUNNING")

    def _reopen(self, logged: _Logged, name: str) -> None:
        self.client.update_run(logged.run_id, status="RUNNING", name=_cut(name, NAME_LENGTH))
        logged.status = "RUNNING"

    def _close(self, logged: _Logged, status: str, moment: int | None = None) -> None:
        if logged.status != status:
            self.client.set_terminated(logged.run_id, status, moment)
            logged.status = status

    def log_child(self, key: str, child: _Child) -> None:
        """Log what a nested run lacks, and close it when it has ended; one that is FINISHED is left alone."""
        logged = self._children.get(key)
        if logged is None:
            tags = {ROLE_TAG: CHILD_ROLES[self._kind], "mlflow.parentRunId": self._parent.run_id}
            logged = self._create(child.name, {**tags, CHILD_TAG: key}, child.started)
            self._children[key] = logged
        if logged.status == "FINISHED":
            return
        if child.end is None and logged.status != "RUNNING":
            self._reopen(logged, child.name)
        self._log(logged, child.params, child.steps, child.end)
        if child.end:
            self._close(logged, child.end.status, child.end.moment)

    def finish(self, end: _End, files: Mapping[str, bytes]) -> None:
        """Log metrics, tags and files on the parent, and close it, even where its files cannot be stored."""
        self._log(self._parent, end=end)
        try:
            if files:
                self._upload(files)
        finally:
            self._close(self._parent, end.status, end.moment)

    def _upload(self, files: Mapping[str, bytes]) -> None:
        with quiet_client(UPLOAD_TIMEOUT_S), tempfile.TemporaryDirectory(prefix="lada_ray_") as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.client.log_artifacts(self._parent.run_id, folder)

    def _log(
        self,
        logged: _Logged,
        params: Mapping[str, Any] | None = None,
        steps: Iterable[_Step] = (),
        end: _End | None = None,
    ) -> None:
        """Log in batches of MLflow's limits what is not there already; params are immutable in MLflow."""
        from mlflow.entities import Param, RunTag

        texts = self._texts(params or {}, PARAM_LENGTH)
        new = [Param(name, text) for name, text in texts.items() if name not in logged.params]
        tags = [RunTag(*tag) for tag in self._texts(end.tags if end else {}, TAG_LENGTH).items()]
        metrics = self._new_points(logged, steps, end)
        parts = (
            _parts(metrics, METRICS_PER_BATCH),
            _parts(new, TEXTS_PER_BATCH),
            _parts(tags, TEXTS_PER_BATCH),
        )
        for batch in zip_longest(*parts, fillvalue=()):
            self.client.log_batch(logged.run_id, *batch)
        logged.params |= texts.keys()
        logged.metrics |= {(point.key, point.step): point.value for point in metrics}

    def _texts(self, values: Mapping[str, Any], length: int) -> dict[str, str]:
        return {
            _name(name): _cut(without_passwords(str(value), self._target.uri), length)
            for name, value in values.items()
        }

    def _new_points(self, logged: _Logged, steps: Iterable[_Step], end: _End | None) -> list[Metric]:
        """Points that are not there yet: one per name and step; the end's at the last step, if they differ."""
        wanted: dict[tuple[str, int], Metric] = {}
        for one in steps:
            for point in points(_named(one.values), one.moment, one.step):
                wanted.setdefault((point.key, point.step), point)
        if not wanted and not (end and end.metrics):
            return []
        there = self._points_there(logged)
        new = [point for at, point in wanted.items() if at not in there]
        if end:
            last = max((step for _, step in [*there, *wanted]), default=0)
            values = {at: point.value for at, point in wanted.items()} | there
            final = points(_named(end.metrics), end.moment, last)
            new += [point for point in final if values.get((point.key, last)) != point.value]
        return new

    def _points_there(self, logged: _Logged) -> dict[tuple[str, int], float]:
        for name in logged.unread:
            history = self.client.get_metric_history(logged.run_id, name)
            in_order = sorted(history, key=lambda point: point.timestamp)
            logged.metrics |= {(point.key, point.step): point.value for point in in_order}
        logged.unread = []
        return logged.metrics


class Group:
    """A parent run with nested runs in MLflow, such as the cells of a comparison or the trials of a sweep.

    Every call returns at once, except `finish` and `abandon`; one thread makes them, in order, and never raises
    because of MLflow. Only one process may log a group: hold its lease, and let no task or trial log to it.

    Args:
        uri: a tracking URI (`config.mlflow_uri`).
        experiment: the experiment's name, created when missing.
        id: the group's id; a later start with the same one continues the same parent.
        name: the parent's name.
        kind: "comparison" (of cells) or "sweep" (of trials).
        params: of the parent: flat name -> value.
        say: told, once, that MLflow cannot be reached, and what to do.
        retry: the command to start again, for that message.
        retry_after: seconds in which MLflow is left alone after a call failed.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        id: str,
        name: str,
        kind: Kind,
        params: Mapping[str, Any],
        say: Callable[[str], None],
        retry: str | None = None,
        retry_after: float = 120.0,
    ) -> None:
        self._target, self._kind, self._params = Target(uri, experiment, id, name), kind, dict(params)
        self._say, self._retry, self._retry_after = say, retry, retry_after
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._changes: deque[Callable[[], None]] = deque()  # of what is below, which the thread alone touches
        self._children: dict[str, _Child] = {}
        self._unlogged: dict[str, None] = {}  # keys of children that are not logged as they are, in order
        self._runs: _GroupRuns | None = None
        self._failed_at: float | None = None
        self._warned = self._closed = False
        self._abandoned = threading.Event()

    def open(self) -> None:
        """Open the parent, or continue it; close as KILLED the nested runs that a killed process left RUNNING."""
        self._later(lambda: None)

    def begin(self, key: str, name: str, params: Mapping[str, Any], when: float | None = None) -> None:
        """Show a nested run as RUNNING; the one with this key is continued, and left alone if it is FINISHED.

        Args:
            key: tells nested runs of the group apart, in every start of it.
            name: what MLflow shows.
            params: flat name -> value.
            when: unix seconds; the present when there is none.
        """
        begun = _Child(name, dict(params), milliseconds(when))

        def change() -> None:
            before = self._children.get(key)
            if not (before and before.finished):
                begun.steps = before.steps if before else []
                self._put(key, begun)

        self._later(change)

    def log(self, key: str, metrics: Values, step: int, when: float | None = None) -> None:
        """Log metrics of a nested run; a metric that has a value at this step keeps it.

        Args:
            key: of a nested run that was begun.
            metrics: name -> value; slashes group names; None, NaN and infinities are left out.
            step: such as the epoch.
            when: unix seconds; the present when there is none.
        """
        measured = _Step(dict(metrics), step, milliseconds(when))

        def change() -> None:
            child = self._child(key)
            if not child.finished:
                child.steps.append(measured)
                self._put(key, child)

        self._later(change)

    def end(
        self,
        key: str,
        status: Status,
        metrics: Values | None = None,
        tags: Mapping[str, str] | None = None,
        when: float | None = None,
    ) -> None:
        """Close a nested run, unless it is FINISHED.

        Args:
            key: of a nested run that was begun.
            status: FINISHED, FAILED or KILLED; other than FINISHED, it may begin again.
            metrics: results, logged at the nested run's last step.
            tags: name -> text.
            when: unix seconds; the present when there is none.
        """
        ended = _End(status, milliseconds(when), dict(metrics or {}), dict(tags or {}))

        def change() -> None:
            child = self._child(key)
            if not child.finished:
                child.end = ended
                self._put(key, child)

        self._later(change)

    def finish(
        self,
        status: Status,
        metrics: Values | None = None,
        tags: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Log everything that is missing, and close the parent; tries even after failures. The last call.

        Args:
            status: nested runs that have not ended become FAILED with FAILED, else KILLED.
            metrics: of the parent, at step 0.
            tags: of the parent.
            files: small artifacts of the parent: relative path -> content.

        Returns:
            whether all of it is logged.
        """
        if self._closed:
            return False
        self._closed = True
        end = _End(status, milliseconds(None), dict(metrics or {}), dict(tags or {}))
        done = self._thread.submit(self._finish, end, dict(files or {})).result()
        self._thread.shutdown()
        return done

    def abandon(self) -> None:
        """Leave MLflow alone from now on: another process has taken the group over. Drops what is queued.

        Waits for a request to MLflow that is on its way. The last call.
        """
        self._closed = True
        self._abandoned.set()
        self._thread.shutdown(cancel_futures=True)

    def _later(self, change: Callable[[], None]) -> None:
        if not self._closed:
            self._changes.append(change)
            with suppress(RuntimeError):  # the thread was shut down meanwhile
                self._thread.submit(self._work)

    def _child(self, key: str) -> _Child:
        return self._children.get(key) or _Child(key, {}, milliseconds(None))

    def _put(self, key: str, child: _Child) -> None:
        self._children[key] = child
        self._unlogged[key] = None

    def _work(self) -> None:
        """Log all changes up to now together: an MLflow that is slow gets fewer and larger requests."""
        if self._changes:
            self._change()
            self._attempt(self._log_children)

    def _change(self) -> None:
        while self._changes:
            self._changes.popleft()()

    def _finish(self, end: _End, files: Mapping[str, bytes]) -> bool:
        self._change()
        left = _End("FAILED" if end.status == "FAILED" else "KILLED", end.moment, {}, {})
        for key, child in self._children.items():
            if child.end is None:
                child.end = left
                self._unlogged[key] = None

        def complete(runs: _GroupRuns) -> None:
            refused = self._log_refusable(runs)
            runs.finish(end, files)
            if refused:
                raise refused

        return self._attempt(complete, last=True)

    def _log_children(self, runs: _GroupRuns) -> None:
        if refused := self._log_refusable(runs):
            raise refused

    def _log_refusable(self, runs: _GroupRuns) -> Exception | None:
        """Log every child that lacks something; one that MLflow refuses, as it was deleted, holds up no other.

        Returns:
            why the first was refused.
        """
        from mlflow.exceptions import MlflowException

        refused = None
        for key in list(self._unlogged):
            child = self._children[key]
            try:
                runs.log_child(key, child)
            except MlflowException as error:
                if not 400 <= error.get_http_status_code() < 500:
                    raise
                refused = refused or error
            else:
                child.steps.clear()
                del self._unlogged[key]
        return refused

    def _attempt(self, action: Callable[[_GroupRuns], None], last: bool = False) -> bool:
        failed_lately = self._failed_at is not None and time.monotonic() - self._failed_at < self._retry_after
        if self._abandoned.is_set() or (failed_lately and not last):
            return False
        try:
            with quiet_client():
                action(self._opened())
        # Whatever goes wrong in MLflow, its database, or the network must not cost what the group is about.
        except Exception as error:
            self._failed_at = time.monotonic()
            self._runs = None  # a request without an answer may have been obeyed: look what is there
            self._warn(error, last)
            return False
        self._failed_at = None
        if last and self._warned:
            self._say("MLflow can be reached again, and everything is logged.")
        return True

    def _opened(self) -> _GroupRuns:
        if self._runs is None:
            runs = _GroupRuns(self._target, self._kind, self._abandoned)
            runs.open(self._params, self._children)
            self._runs = runs
        return self._runs

    def _warn(self, error: Exception, last: bool) -> None:
        if self._warned or self._abandoned.is_set():
            return
        self._warned = True
        uri = self._target.uri
        cause = without_passwords(str(error), uri).rpartition("Caused by")[2]  # where requests tells it
        reason = _cut(" ".join(cause.split()), 300)
        what = f"Not all of the {self._kind} is logged in MLflow"
        if not last:
            what = f"Cannot log to MLflow; the {self._kind} goes on without"
        command = f":\n  {without_passwords(self._retry, uri)}" if self._retry else "."
        self._say(
            f"{what} ({hide_password(uri)}): {type(error).__name__}: {reason}\n"
            f"No result is lost. To log what is missing, once it can be reached, start the same command again{command}"
        )


def without_passwords(text: str, uri: str) -> str:
    """Blank the passwords of all URIs in a text.

    Args:
        text: any text.
        uri: one that the text may hold in part, such as the tracking URI.
    """
    return re.sub(r"(://[^/\s:@]*):[^/\s@]+@", rf"\1:{BLANK}@", hide_passwords_in(text, uri))


def _name(name: str) -> str:
    """A name that MLflow accepts, with the slashes it has."""
    return metric_name(*filter(None, name.split("/"))) or "_"


def _named(values: Mapping[str, Any]) -> dict[str, float]:
    # NumPy's float32 is no float, and `points` takes only those.
    return {_name(name): float(value) for name, value in values.items() if isinstance(value, Real)}


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _parts(items: list[Any], length: int) -> list[list[Any]]:
    return [items[start : start + length] for start in range(0, len(items), length)]


@contextmanager
def tracked(group: Group) -> Iterator[Group]:
    """Open a group for a block that calls its `finish` at the end, and close it in the way that fits any other end.

    Args:
        group: not opened yet.
    """
    group.open()
    try:
        yield group
    except LostLease:
        group.abandon()  # the new owner has the same MLflow runs open
        raise
    except BaseException as error:
        group.finish("FAILED" if isinstance(error, LadaError) else "KILLED")
        raise
