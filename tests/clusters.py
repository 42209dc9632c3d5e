"""A Ray cluster with token authentication, and jobs submitted to it as README.md shows it."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def cluster_environment():
    """The environment of a cluster with a token of its own, and of those who submit to it."""
    # What `source .venv/bin/activate` does: the cluster runs `python` from its own PATH.
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "PYTHONPATH"):
        environment.pop(name, None)
    return environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def answers(url, token):
    """Status of a request to the dashboard; 0 while nobody listens."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def stop(process):
    """End a cluster: the process that started it, and all below it; `ray stop` would end others' too."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(below, timeout=3)
    for one in left:
        one.kill()
    psutil.wait_procs(left, timeout=10)
    process.kill()
    process.wait(10)


@contextmanager
def cluster(environment, log):
    """Start a head node on its own ports; yields the dashboard's address and the folder of Ray's session."""
    port, dashboard, agent, client = free_ports(4)
    session = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path has at most 107 characters
    ports = {"port": port, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
    ports["ray-client-server-port"] = client
    flags = [f"--{name}={value}" for name, value in ports.items()]
    flags += ["--head", "--block", "--include-dashboard=true", "--num-cpus=2", "--disable-usage-stats"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [BIN / "ray", "start", *flags, f"--temp-dir={session}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        until = time.monotonic() + 60
        while answers(f"{address}/api/jobs/", environment["RAY_AUTH_TOKEN"]) != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.3)
        yield address, Path(session)
    finally:
        stop(process)
        shutil.rmtree(session, ignore_errors=True)


def submit(job, address, environment):
    """`ray job submit` of one of our jobs, as README.md shows it; waits for its end."""
    options = ["--address", address, "--working-dir", ".", "--runtime-env", "runtime_env.yaml"]
    return subprocess.run(
        [BIN / "ray", "job", "submit", *options, "--", "python", *job],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
