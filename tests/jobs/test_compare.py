"""The comparison as a process: killed while it learns and started again, it ends with the same table."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from rich.console import Console as RichConsole

from jobs import compare as job
from lada_ray.command_line import parse_command_line
from lada_ray.console import Console
from lada_ray.domains import Domain, choose
from lada_ray.errors import InputError
from tests.conftest import write_tiny_clip
from tests.processes import Job

CELLS = [f"{method}.seed-{seed}" for method in ("lada", "ncm") for seed in (0, 1)]
SHOTS = 4
OPTIONS = ["--methods", "lada,ncm", "--seeds", "0,1"]


@pytest.fixture(scope="module")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory, tiny_domains: tuple[Domain, ...]) -> Path:
    """Two domains of three classes, a random encoder, and enough epochs to be killed in."""
    folder = tmp_path_factory.mktemp("tiny")
    architecture, weights = write_tiny_clip(folder)
    roots = [Path(d.train[0].uri).parents[2] for d in tiny_domains[:2]]
    values = {
        "name": "tiny",
        "encoder": {"model": "tiny", "pretrained": str(weights), "architecture": str(architecture)},
        "shots": SHOTS,
        "views": 1,
        "method": {"epochs": 25, "batch_size": 4, "memory_per_class": 3, "mixture_components": 2},
        "domains": [{"name": r.name, "kind": "folder", "root": str(r)} for r in roots],
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(values))
    return path


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """The job in this process: exit code and output."""
    config, flags = parse_command_line(arguments, job.Flags)
    sink = io.StringIO()
    code = job.run(config, flags, Console(rich=RichConsole(file=sink, width=140, highlight=False)))
    return code, sink.getvalue()


def table(storage: Path, name: str) -> pd.DataFrame:
    """What two comparisons have in common: all but how long it took, and where."""
    return pd.read_csv(storage / f"{name}.compare" / "comparison.csv").drop(columns=["seconds", "folder"])


def packs(storage: Path, name: str) -> list[list[str]]:
    files = [storage / f"{name}.{cell}" / "model" / "model.json" for cell in CELLS]
    return [json.loads(file.read_text())["packs"] for file in files]


@pytest.mark.accept  # minutes
@pytest.mark.timeout(600)
def test_killed_while_it_learns_it_ends_with_the_same_table(
    tiny_yaml: Path,
    tiny_domains: tuple[Domain, ...],
    tmp_path: Path,
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arguments = ["--config", str(tiny_yaml), "--storage", str(tmp_path), *OPTIONS]
    with Job("compare.py", arguments, tmp_path / "log") as first:
        assert first.wait_for(lambda: list(tmp_path.glob("tiny.lada.*/model/packs/*/pack.json")), 120), (
            first.output()
        )
        assert first.process.poll() is None
        first.kill()
    finished = [cell for cell in CELLS if (tmp_path / f"tiny.{cell}" / "metrics.json").exists()]
    assert len(finished) < len(CELLS)
    assert not (tmp_path / "tiny.compare" / "comparison.csv").exists()
    with Job("compare.py", arguments, tmp_path / "log") as again:
        assert again.wait(200) == 0, again.output()
        said = again.output()

    code, undisturbed = run([*arguments, "--name", "calm"])
    assert code == 0
    assert len(table(tmp_path, "tiny")) == len(CELLS)
    pd.testing.assert_frame_equal(table(tmp_path, "tiny"), table(tmp_path, "calm"))
    assert packs(tmp_path, "tiny") == packs(tmp_path, "calm")
    for part in (said, undisturbed):
        assert "2 variants, 1 order, 2 seeds: 4 runs" in part
        assert "Difference to lada in points" in part
    chosen = {s.uri for d in tiny_domains[:2] for seed in (0, 1) for s in choose(d, SHOTS, seed)}
    encoded = 2 * len(chosen) + 2 * 12  # shots under two views and test images, by both starts together
    assert f"the comparison has encoded {encoded} image views" in said
    assert "the comparison has encoded 0 image views" in undisturbed
    assert f"{tmp_path}/tiny.compare/comparison.html" in said
    assert [line for line in said.splitlines() if "warning" in line.lower() or "[202" in line] == []
    _check_mlflow(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"))


def _check_mlflow(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("lada_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    nested = [f"{method}, seed {seed}" for method in ("lada", "ncm") for seed in (0, 1)]
    assert sorted(run.info.run_name for run in runs) == sorted([*nested * 2, "tiny.compare", "calm.compare"])


# ---------------------------------------------------------------- the command line


@pytest.fixture
def main(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments that every command here has; `main` changes nothing of this process."""
    monkeypatch.setattr("lada_ray.job.quiet_libraries", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return ["--config", str(tiny_yaml), "--storage", str(tmp_path)]


def test_problems_of_the_grid_are_told_before_anything_is_read(
    main: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--methods", "ncm,ncm", "--seeds", "-1", "--orders", "3", "--baseline", "best"]
    assert job.main([*main, *options]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "This cannot be compared:",
        "  - methods: ncm, ncm has one of them twice",
        "  - seeds: must not be negative (got -1)",
        "  - baseline: best is not among what is compared (ncm, ncm)",
        "  - orders: 2 domains have 2 orders (got 3)",
    ]
    assert not any(tmp_path.iterdir())


def test_problems_of_the_command_line(main: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--methods", "ncm,rail", "--ablations", "no_tuner,memory", "--orders", "0", "--seed", "x"]
    assert job.main([*main, *options]) == 1
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.split(":")[0].strip(" -") for line in lines] == [
        *("methods.1", "ablations.1", "orders", "seed")
    ]


def test_what_the_command_line_asks_for_is_compared(
    main: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lada_ray import compare as module

    asked = []

    def compare(config, grid, console, fresh):  # type: ignore[no-untyped-def]
        asked.append((config.name, grid, fresh))
        raise InputError(["lada, seed 0: lost"], "1 of 1 streams failed")

    monkeypatch.setattr(module, "compare", compare)
    options = ["--methods", "ncm,lada", "--ablations", "all", "--seeds", "3,5", "--orders", "2", "--fresh"]
    assert job.main([*main, *options, "--baseline", "ungated", "--name", "other"]) == 1
    assert job.main([*main, "--ablations", "none"]) == 1
    ablations = tuple(module.ABLATIONS)
    everything = ("zero_shot", "ncm", "rail_primal", "rail_dual", "lada", "joint")
    assert asked == [
        ("other", module.Grid(("ncm", "lada"), ablations, (3, 5), 2, "ungated"), True),
        ("tiny", module.Grid(everything, (), (0, 1, 2)), False),
    ]
    printed = capsys.readouterr()
    assert printed.err.count("1 of 1 streams failed:\n  - lada, seed 0: lost") == 2
    assert "other: 28 streams of 2 domains -> " in printed.out
