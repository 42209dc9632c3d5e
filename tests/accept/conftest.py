"""What the bars share: the data they are measured on, and a line per number on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lada_ray.config import StreamConfig
from lada_ray.console import Console, quiet_libraries
from lada_ray.results import StreamResult
from lada_ray.stream import run_stream

SHARED = Path(__file__).resolve().parents[3] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a bar: `make accept` runs it, `make test` does not."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.accept)


def show(what: str, value: str, bar: str) -> None:
    """Print a measured number beside its bar."""
    print(f"\n  {what}: {value}   (bar: {bar})", flush=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images, an encoder and published figures; not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it holds the real image domains and published figures")
    return SHARED


class Streams:
    """Runs streams in this process, each once per session; their storages are shared by base configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, StreamResult] = {}

    def run(self, base: str | Path, name: str, **overrides: Any) -> StreamResult:
        """Learn a stream with Ray Train inside this process."""
        storage = str(self.storage(base))
        key = json.dumps([str(base), name, overrides], sort_keys=True)
        if key not in self._done:
            more = {"name": name, "storage": storage, "resources.train_workers": 0, **overrides}
            config = StreamConfig.from_yaml(base, overrides=more)
            self._done[key] = run_stream(config, console=Console(quiet=True))
        return self._done[key]

    def storage(self, base: str | Path) -> Path:
        """Where the runs of a base configuration lie."""
        return self.folder / Path(base).stem


@pytest.fixture(scope="session")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streams]:
    """See `Streams`."""
    import ray

    quiet_libraries()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Streams(tmp_path_factory.mktemp("streams"))
    ray.shutdown()


@pytest.fixture(scope="session")
def six_domains(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stream of shared/data/README.md, as a YAML file."""
    setup = json.loads((shared / "data" / "figures.json").read_text())
    encoder = shared / "data" / "encoder" / "lab-clip-64"
    lines = [
        "name: six",
        f"encoder: {{model: lab-clip-64, architecture: {encoder}.json, pretrained: {encoder}.safetensors}}",
        "domains:",
    ]
    for name in setup["order"]:
        augment = "none" if name in setup["augment_none"] else "crop_flip"
        root = shared / "data" / "domains" / name
        lines.append(f"  - {{name: {name}, kind: folder, root: {root}, augment: {augment}}}")
    path = tmp_path_factory.mktemp("six") / "six.yaml"
    path.write_text("\n".join(lines) + os.linesep)
    return path
