"""A cluster of cluster.yaml's shape really grows from nothing for lada_ray's work, and shrinks when there is none.

Ray's fake provider starts a raylet where a cloud would start a machine; the autoscaler, its demands and its timeouts
are those of `ray up`. The work runs in a process of its own (`main`), as other tests hold a cluster in this one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# What the fake provider calls the node that it did not start, and its type.
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
IDLE_S = 6


# --- The cluster ---


def fake_cluster(gcs: str) -> dict[str, Any]:
    """cluster.yaml's node types with fewer cores, on the fake provider, impatient."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    head = cluster["head_node_type"]
    types = {name: fake_type(t) for name, t in cluster["available_node_types"].items() if name != head}
    types[HEAD_TYPE] = {**fake_type(cluster["available_node_types"][head]), "max_workers": 0}
    provider = {
        # As "fake_multinode" Ray would look for a file that its wheels lack.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": gcs,
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    return {
        "cluster_name": cluster["cluster_name"],
        "max_workers": cluster["max_workers"],
        "upscaling_speed": cluster["upscaling_speed"],
        "idle_timeout_minutes": IDLE_S / 60,
        "head_node_type": HEAD_TYPE,
        "available_node_types": types,
        "provider": provider,
        # Read without a look whether they are there.
        **{f"{what}setup_commands": [] for what in ("", "head_", "worker_")},
        "initialization_commands": [],
        "cluster_synced_files": [],
        "file_mounts": {},
    }


def fake_type(node_type: dict[str, Any]) -> dict[str, Any]:
    """Limits as they are, at most two cores, and little shared memory."""
    resources = {**node_type["resources"], "CPU": min(2, node_type["resources"]["CPU"])}
    resources["object_store_memory"] = 80_000_000
    limits: dict[str, Any] = {k: node_type[k] for k in ("min_workers", "max_workers") if k in node_type}
    return {"resources": resources, "node_config": {}, **limits}


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """Start a head of our own, with a port and a token of its own; yields it and the environment that finds it."""
    import ray._private.services as services

    port = free_port()
    address = f"{services.get_node_ip_address()}:{port}"
    (folder / "cluster.json").write_text(json.dumps(fake_cluster(address)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Not Ray's own AutoscalingCluster: it stops every other cluster of this machine first, and wants port 6379.
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(
            head_command(folder, port),
            env=environment | FAKE,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_head(head, folder)
        yield head, environment | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    finally:
        end_session(head)


# What `ray up` sets on a head of its own since its autoscaler is version 2, and what the fake provider wants.
FAKE = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def head_command(folder: Path, port: int) -> list[str]:
    return [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", "--num-cpus=0", "--disable-usage-stats"),
        *("--include-dashboard=false", "--include-log-monitor=false"),
        f"--autoscaling-config={folder}/cluster.json",
        f"--temp-dir={folder}/ray",
        "--object-store-memory=80000000",
        # Ports that nobody else has: the defaults belong to whichever cluster came first.
        *(f"--port={port}", f"--ray-client-server-port={free_port()}"),
        *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
    ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
    return port


def wait_for_head(head: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + 90
    while not (folder / "ray" / "ray_current_cluster").exists():
        output = (folder / "log").read_text(errors="replace")
        assert head.poll() is None, f"the head did not start: {output}"
        assert time.monotonic() < until, f"the head does not start: {output}"
        time.sleep(0.1)


def run_work(head: subprocess.Popen[bytes], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run `main` on the cluster, as long as that is there; returns what it saw."""
    command = [sys.executable, __file__, str(folder)]
    with (folder / "work").open("wb") as output:
        work = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 280
        while work.poll() is None and head.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        logs = (folder / "work", folder / "log", folder / "ray" / "session_latest" / "logs" / "monitor.log")
        told = "\n".join(log.read_text(errors="replace")[-5000:] for log in logs if log.exists())
        assert work.poll() == 0, f"work: {work.poll()}, head: {head.poll()}\n{told}"
    finally:
        work.kill()
        work.wait()
    seen: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return seen


def end_session(head: subprocess.Popen[bytes]) -> None:
    """Kill all that the head started, fake machines and what they started too: they share its session for ever."""
    until = time.monotonic() + 30
    while (alive := session(head.pid)) and time.monotonic() < until:
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=2)
        head.poll()
    assert session(head.pid) == []


def session(leader: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# --- The work ---


def main(folder: Path) -> None:
    """Encode a domain's images and fit its classes, then take a GPU, then rest; writes which machines there were."""
    import ray

    ray.init(log_to_driver=False)
    seen: dict[str, Any] = {"at first": workers()}
    with watched() as seen["at work"]:
        seen["encoded"], images, bank = encode(folder)
        seen["fitted"] = fit(bank, images)
    with watched() as seen["with a GPU"]:
        share = ray.remote(num_cpus=1, num_gpus=1)(lambda: ray.get_runtime_context().get_assigned_resources())
        seen["an encoder's share"] = ray.get(share.remote())
    while workers():
        time.sleep(0.5)
    seen["at last"] = workers()
    (folder / "seen.json").write_text(json.dumps(seen))


def workers() -> list[dict[str, float]]:
    """Cores and GPUs of each machine that the autoscaler added and that is alive."""
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != HEAD_ID]
    return [{k: r[k] for k in ("CPU", "GPU") if k in r} for r in nodes]


@contextmanager
def watched() -> Iterator[list[dict[str, float]]]:
    """The kinds of machines that are there at some time during the block: one may be gone when it ends."""
    kinds: list[dict[str, float]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            kinds.extend(kind for kind in workers() if kind not in kinds)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield kinds
    finally:
        done.set()
        thread.join()


def encode(folder: Path) -> tuple[int, Any, Any]:
    """Fill a bank with the features of 18 training images: views added, the images by class, the bank."""
    import hashlib

    from lada_ray.config import EncoderConfig
    from lada_ray.domains import FolderSpec
    from lada_ray.encoder import load_encoder, resolve_encoder
    from lada_ray.features.bank import FeatureBank
    from lada_ray.features.extract import Gap, Pool, extract
    from lada_ray.fit.classes import ClassImages
    from lada_ray.store import open_store
    from tests.conftest import draw_domain, write_tiny_clip

    architecture, weights = write_tiny_clip(folder)
    config = EncoderConfig(model="tiny", pretrained=str(weights), architecture=str(architecture))
    spec = resolve_encoder(config, "fp32")
    info = load_encoder(spec, "cpu").info()
    bank = FeatureBank(open_store(folder / "features"), info.feature_key, info.width)
    draw_domain(folder / "fruit", hue=0.1)
    samples = FolderSpec(name="fruit", root=str(folder / "fruit")).load("").train
    shas = [hashlib.sha256(Path(s.uri).read_bytes()).hexdigest() for s in samples]
    gaps = [Gap(s.uri, sha, ("test",)) for s, sha in zip(samples, shas, strict=True)]
    done = extract(gaps, spec, bank, Pool(1, 1, 0), "autoscaled", lambda *_: None)
    return done.added, ClassImages.of(shas, np.array([s.label for s in samples])), bank


def fit(bank: Any, images: Any) -> list[list[int]]:
    """Fit the classes on as many machines as come; the shapes of memory and of the mixtures' means."""
    from lada_ray.fit.classes import fit_classes, read_memory, read_mixtures

    fit_classes(bank, [images], 2, 2, lambda *_: None)
    return [list(read_memory(bank, images, 2).memory.shape), list(read_mixtures(bank, images, 2).means.shape)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: Ray's sockets are in it, whose paths may have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="lada-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


# 86 s on 2 cores that nine other processes kept busy; minutes where forty do.
@pytest.mark.timeout(400)
def test_machines_come_with_the_work_and_go_without_it(folder: Path) -> None:
    with started(folder) as (head, environment):
        seen = run_work(head, folder, environment)
    assert seen["at first"] == []
    assert (seen["encoded"], seen["fitted"]) == (18, [[3, 2, 32], [6, 32]])
    # Work without a GPU leaves the machines that have one alone.
    assert seen["at work"] == [{"CPU": 2}]
    assert seen["an encoder's share"] == {"CPU": 1, "GPU": 1}
    assert {"CPU": 2, "GPU": 1} in seen["with a GPU"]
    assert seen["at last"] == []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
