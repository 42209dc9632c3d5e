"""What the stream calls: a tracker that never costs the run what it learns."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lada_ray.config import hide_password
from lada_ray.store import Store
from lada_ray.tracking.connection import quiet_client, upload_artifacts
from lada_ray.tracking.folder import IDENTITY, RunFolder
from lada_ray.tracking.stream_run import StreamRun, Target, Upload
from lada_ray.tracking.uri import hide_passwords_in

Say = Callable[[str], None]


class Tracker:
    """Logs one run folder to MLflow. Calls never raise because of MLflow; hold the lease from before the first.

    The calls need not come from one thread, but one after another; only `abandon` may come at any time.

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

    Raises:
        InputError: the folder has no run's id.
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
        self._folder = RunFolder(store)
        # Read now, while the run is surely ours: whoever takes it over with --fresh writes another id.
        self._target = Target(uri, experiment, self._folder.run_id(), name)
        self._params = dict(params or {})
        self._say, self._upload, self._retry_after = say, upload, retry_after
        self._registered_model = registered_model
        self._stream: StreamRun | None = None
        self._abandoned = threading.Event()
        self._failed_at: float | None = None
        self._warned = False

    @property
    def run_id(self) -> str | None:
        """The parent run's id in MLflow, once it is open."""
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

        def begin(stream: StreamRun) -> None:
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

        def complete(stream: StreamRun) -> None:
            finished = status == "FINISHED"
            self._sync(stream)
            stream.log_results(with_model=finished)
            if self._registered_model and finished:
                stream.register(self._registered_model)
            stream.close(status, self._folder.written("metrics.json") if finished else None)

        return self._attempt(complete, last=True)

    def abandon(self) -> None:
        """Leave MLflow alone from now on: another process has taken the run over, and logs it in the same runs.

        A call in progress stops before its next request to MLflow; later calls do nothing and return False.
        """
        self._abandoned.set()

    def _sync(self, stream: StreamRun) -> None:
        stream.log_zero_shot(self._folder.zero_shot())
        tasks = self._folder.tasks()
        for task in tasks:
            stream.log_task(task, [one.domain for one in tasks])

    def _attempt(self, action: Callable[[StreamRun], None], last: bool = False) -> bool:
        started = time.monotonic()
        failed_lately = self._failed_at is not None and started - self._failed_at < self._retry_after
        if self._abandoned.is_set() or (failed_lately and not last):
            return False
        try:
            with quiet_client():
                if self._stream is None:
                    self._stream = self._open_stream()
                action(self._stream)
        # Whatever goes wrong in MLflow, its database, or the network must not cost the run what it learns.
        except Exception as error:
            self._failed_at = time.monotonic()
            if not self._abandoned.is_set():
                self._warn(error, last)
            return False
        finally:
            self.seconds += time.monotonic() - started
        self._failed_at = None
        if last and self._warned:
            self._say("MLflow can be reached again, and everything is logged.")
        return True

    def _open_stream(self) -> StreamRun:
        stream = StreamRun(self._target, self._folder, self._upload, self._abandoned)
        earlier = self._folder.optional_json(IDENTITY)
        stream.close_left_over(earlier)
        ids = {
            "run": self._target.run,
            "uri": hide_password(self._target.uri),
            "experiment": self._target.experiment,
            "experiment_id": stream.experiment_id,
        }
        if {**earlier, **ids} != earlier:
            # Before there is a run in MLflow: nobody could close one that no file tells of.
            self._write_ids(ids)
        stream.open(self._params)
        self._write_ids({**ids, "run_id": stream.parent})
        return stream

    def _write_ids(self, ids: Mapping[str, str]) -> None:
        if not self._abandoned.is_set():
            self._folder.store.write(IDENTITY, json.dumps(ids, indent=2).encode())

    def _warn(self, error: Exception, last: bool) -> None:
        if self._warned and not last:
            return
        self._warned = True
        told = hide_passwords_in(str(error), self._target.uri)
        reason = " ".join(told.rpartition("Caused by")[2].split())  # the cause, where requests tells it
        reason = reason if len(reason) <= 300 else f"{reason[:300]}…"
        what = (
            "Not all of the run is logged in MLflow"
            if last
            else "Cannot log to MLflow; the run goes on without"
        )
        uri = hide_password(self._target.uri)
        command = shlex.join(["python", "jobs/log_run.py", self._folder.store.uri, "--tracking_uri", uri])
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
        """See `Tracker.finish`; waits until everything before and this is done. The last call."""
        done = self._thread.submit(self.tracker.finish, status).result()
        self._thread.shutdown()
        return done

    def abandon(self) -> None:
        """See `Tracker.abandon`; drops what is queued, and waits for a request to MLflow that is on its way.

        The last call.
        """
        self.tracker.abandon()
        self._thread.shutdown(cancel_futures=True)
