"""Issue 5: domains arrive in an inbox, the champion moves or stays, and no kill costs or doubles anything."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lada_ray.store import open_store
from lada_ray.versions import history, read_production
from tests.accept.conftest import show
from tests.clusters import cluster, cluster_environment, submit
from tests.processes import Job, MlflowServer

KILLS = 10


@dataclass(frozen=True)
class Place:
    """Where a model, its inbox and their configuration lie."""

    root: Path
    shared: Path

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    def configure(self, *domains: str) -> Path:
        """A stream of shared domains, quick to learn."""
        data = self.shared / "data"
        encoder = data / "encoder" / "lab-clip-64"
        config = {
            "name": "lada",
            "storage": str(self.root / "runs"),
            "encoder": {
                "model": "lab-clip-64",
                "architecture": f"{encoder}.json",
                "pretrained": f"{encoder}.safetensors",
            },
            "views": 2,
            "method": {"beta": 5.0},
            "domains": [
                {"name": name, "kind": "folder", "root": str(data / "domains" / name)} for name in domains
            ],
        }
        self.inbox.mkdir(parents=True, exist_ok=True)
        file = self.root / "lada.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    def arrive(self, domain: str, card: str = "", shuffled: bool = False) -> Path:
        """A copy of a shared domain in the inbox, complete; `shuffled`: with the training labels drawn at random."""
        source, entry = (
            self.shared / "data" / "domains" / domain,
            self.inbox / f"{domain}{'-shuffled' * shuffled}",
        )
        for part in ("train", "test"):
            files = sorted((source / part).glob("*/*"))
            labels = [file.parent.name for file in files]
            if shuffled and part == "train":
                random.Random(0).shuffle(labels)
            for i, (file, label) in enumerate(zip(files, labels, strict=True)):
                target = entry / part / label / f"{i}{file.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
        (entry / "domain.yaml").write_text(f"name: {entry.name}\nkind: folder\naugment: none\n{card}")
        (entry / "_READY").touch()
        return entry

    @property
    def options(self) -> list[str]:
        return ["--inbox", str(self.inbox), "--model", "lada", "--storage", str(self.root / "runs")]

    def versions(self) -> list[Any]:
        return history(read_production(open_store(self.root / "runs" / "lada" / "model"))[0])


@pytest.fixture
def place(shared: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, shared)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    (tmp_path / "mlflow").mkdir()
    one = MlflowServer(tmp_path / "mlflow")
    one.start()
    yield one
    one.stop()


def aliases(uri: str) -> dict[str, str]:
    """Number in the history of the version that each alias names."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, registry_uri=uri)
    named = client.get_registered_model("lada").aliases
    return {
        alias: client.get_model_version("lada", str(version)).tags["lada_ray.version"]
        for alias, version in named.items()
    }


def registered(uri: str) -> list[str]:
    """Numbers in the history of all registry versions that were not refused."""
    from mlflow import MlflowClient

    found = MlflowClient(uri, registry_uri=uri).search_model_versions("name = 'lada'")
    return sorted(one.tags["lada_ray.version"] for one in found if "lada_ray.refused" not in one.tags)


@pytest.mark.timeout(3600)
def test_domains_arrive_one_by_one(place: Place, server: MlflowServer, tmp_path: Path) -> None:
    yaml_file = place.configure("caltech101", "dtd")
    environment = cluster_environment() | {"MLFLOW_TRACKING_URI": server.uri}
    with cluster(environment, tmp_path / "ray.log") as (address, _):
        done = submit(["jobs/run_stream.py", "--config", str(yaml_file)], address, environment)
        assert done.returncode == 0, done.stdout + done.stderr

        def tick() -> Any:
            return submit(["jobs/retrain.py", *place.options], address, environment)

        moves = []
        for number, domain in enumerate(("mnist", "rsscn7_satellite", "grocery"), 2):
            place.arrive(domain)
            done = tick()
            assert done.returncode == 0, done.stdout + done.stderr
            assert aliases(server.uri) == {"champion": str(number), "previous": str(number - 1)}
            moves.append(place.versions()[-1])
        show("champion moves", f"{len(moves)} ({', '.join(v.subject for v in moves)})", "3")
        for version in moves:
            show(f"accuracy after {version.subject}", json.dumps(version.accuracy), "told")

        shuffled = place.arrive("pacs_sketch", shuffled=True)
        damaged = place.arrive("dtd", "prompt: no place\nshotts: 3\n")
        (damaged / "test").rename(damaged / "tset")
        done = tick()
        assert done.returncode == 1, done.stdout + done.stderr
        refused = json.loads((shuffled / "_REJECTED.json").read_text())["problems"]
        show("shuffled labels", "; ".join(refused), "refused by the gate")
        assert any("BLOCKED" in line for line in refused)
        assert aliases(server.uri) == {"champion": "4", "previous": "3", "challenger": "5"}
        problems = json.loads((damaged / "_REJECTED.json").read_text())["problems"]
        show("damaged", "; ".join(problems), "all problems listed")
        assert all(any(word in line for line in problems) for word in ("prompt", "shotts", "test"))
        assert len(place.versions()) == 4

        done = tick()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "nothing new" in done.stdout


@pytest.mark.timeout(5400)
def test_kills_and_two_schedulers_double_nothing(place: Place, tmp_path: Path) -> None:
    yaml_file = place.configure("rsscn7_satellite")
    log = tmp_path / "jobs.log"
    with Job("run_stream.py", ["--config", str(yaml_file)], log) as job:
        assert job.wait(900) == 0, log.read_text()
    place.arrive("mnist")
    time.sleep(1.1)  # the order of arrival
    place.arrive("pacs_sketch")
    runs = place.root / "runs"
    shutil.copytree(runs, tmp_path / "other" / "runs")
    shutil.copytree(place.inbox, tmp_path / "other" / "inbox")
    other = Place(tmp_path / "other", place.shared)
    database = ["--tracking.uri", f"sqlite:///{tmp_path}/other/own.db"]

    started = time.monotonic()
    with Job("retrain.py", [*other.options, *database], log) as job:
        assert job.wait(900) == 0, log.read_text()
    undisturbed_s = time.monotonic() - started
    undisturbed = other.versions()[-1].state.packs
    assert [version.subject for version in other.versions()] == ["", "mnist", "pacs_sketch"]

    pristine = tmp_path / "pristine"
    shutil.copytree(runs, pristine / "runs")
    shutil.copytree(place.inbox, pristine / "inbox")
    rng, killed = random.Random(5), 0
    while killed < KILLS:
        # Later points come by themselves: what was done before a kill is not done again.
        after = rng.uniform(0.05, 0.6) * undisturbed_s
        with Job("retrain.py", place.options, log) as job:
            job.wait_for(lambda: False, after)
            running = job.process.poll() is None
            job.kill()
        killed += running
        show(f"kill {killed} after {after:.0f} s", f"versions: {len(place.versions())}", "any")
        if not running:  # it was quicker: all over again
            for name in ("runs", "inbox"):
                shutil.rmtree(place.root / name)
                shutil.copytree(pristine / name, place.root / name)

    # Two at once, where the kills left it, and a tick that is replayed.
    with Job("retrain.py", place.options, log) as one, Job("retrain.py", place.options, log) as two:
        codes = sorted([one.wait(1200), two.wait(1200)])
    assert codes in ([0, 0], [0, 75]), log.read_text()
    with Job("retrain.py", place.options, log) as job:
        assert job.wait(900) == 0, log.read_text()
    versions = place.versions()
    show("kills while it ran", str(killed), str(KILLS))
    show("exit codes of two at once", str(codes), "0 and 0 or 75")
    assert [version.subject for version in versions] == ["", "mnist", "pacs_sketch"]
    show("versions per domain", "1", "exactly one")
    assert versions[-1].state.packs == undisturbed
    show("packs", "those of the undisturbed run, to the digest", "equal")
    uri = f"sqlite:///{runs}/mlflow.db"
    assert registered(uri) == ["1", "2", "3"]
    assert aliases(uri) == {"champion": "3", "previous": "2"}


@pytest.mark.timeout(1800)
def test_two_schedulers_from_the_start(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "jobs.log"
    with Job("run_stream.py", ["--config", str(place.configure("rsscn7_satellite"))], log) as job:
        assert job.wait(900) == 0, log.read_text()
    place.arrive("mnist")
    with Job("retrain.py", place.options, log) as one, Job("retrain.py", place.options, log) as two:
        codes = sorted([one.wait(900), two.wait(900)])
    assert codes in ([0, 0], [0, 75]), log.read_text()
    assert [version.subject for version in place.versions()] == ["", "mnist"]
    assert registered(f"sqlite:///{place.root}/runs/mlflow.db") == ["1", "2"]
    show("two at once", f"exit codes {codes}; one version of mnist", "exactly one")
