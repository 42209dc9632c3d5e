"""Running a job as a process of its own, and killing it or the Ray workers it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]


class Job:
    """A job's process, in a session of its own, with everything it started; leaving its `with` block ends them all.

    Args:
        job: file name in jobs/.
        arguments: of the command line.
        log: where its output goes (appended).
    """

    def __init__(self, job: str, arguments: Sequence[str], log: Path) -> None:
        environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONUNBUFFERED": "1"}
        self.log = log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "jobs" / job), *arguments],
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.descendants()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._end_descendants()

    def descendants(self) -> list[psutil.Process]:
        """Everything the job has started so far and that still lives; remembered, so that `kill` leaves nothing."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._seen |= {process.pid: process for process in found}
        return [process for process in self._seen.values() if process.is_running()]

    def workers(self, name: str) -> list[psutil.Process]:
        """Ray workers whose title contains `name`, such as MapWorker or RayTrainWorker."""
        found = []
        for process in self.descendants():
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def wait_for(self, condition: Callable[[], object], timeout: float) -> bool:
        """Wait until the condition holds; False when the job ended or time ran out first."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if condition():
                return True
            if self.process.poll() is not None:
                return bool(condition())
            self.descendants()
            time.sleep(0.1)
        return False

    def kill(self) -> None:
        """SIGKILL the driver alone, then wait until its Ray processes have noticed."""
        self.descendants()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        psutil.wait_procs(self._seen.values(), timeout=20)
        self._end_descendants()

    def _end_descendants(self) -> None:
        for process in self._seen.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()  # psutil makes sure that the id is still this process's
        psutil.wait_procs(self._seen.values(), timeout=20)

    def wait(self, timeout: float) -> int:
        """Wait for the end; returns the exit code.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        self.wait_for(lambda: self.process.poll() is not None, timeout)
        return self.process.wait(timeout=0.1)

    def output(self) -> str:
        """Everything printed so far."""
        return self.log.read_text(errors="replace")


class MlflowServer:
    """A real MLflow server on loopback that can be killed and started again; database and artifacts below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.root}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", f"file://{self.root}/artifacts"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes fewer
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
            except OSError:
                assert self.process.poll() is None, (self.root / "server.log").read_text()
                time.sleep(0.2)
            else:
                return
        raise AssertionError((self.root / "server.log").read_text())

    def stop(self) -> None:
        """Kill it and its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
