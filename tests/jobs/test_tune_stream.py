"""The sweep's job as a process: interrupted, killed, and gone on with until it is done."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.tune_stream import Flags, main
from lada_ray.command_line import parse_command_line
from lada_ray.config import StreamConfig
from lada_ray.domains import Domain
from lada_ray.space import Space
from lada_ray.store import open_store
from lada_ray.trials import all_kept, best
from tests.conftest import TINY_DOMAINS, write_tiny_clip
from tests.processes import Job

SPACE = {"method.beta": {"loguniform": [0.3, 10]}}
TRIALS = 6
STOPPED = "stopped; the same command with --resume continues where it was"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, tiny_domains: tuple[Domain, ...]) -> list[str]:
    """Three tiny domains, and trials of seconds."""
    folder = tmp_path_factory.mktemp("tuned")
    architecture, weights = write_tiny_clip(folder)
    roots = [Path(d.train[0].uri).parents[2] for d in tiny_domains]
    values = {
        "name": "tiny",
        "storage": str(folder / "runs"),
        "encoder": {"model": "tiny", "pretrained": str(weights), "architecture": str(architecture)},
        "views": 1,
        "method": {"epochs": 20, "batch_size": 8, "memory_per_class": 3, "mixture_components": 2},
        "domains": [{"name": r.name, "kind": "folder", "root": str(r)} for r in roots],
        "resources": {"train_workers": 0, "cpus_per_train_worker": 1},
    }
    (folder / "tiny.yaml").write_text(json.dumps(values))
    (folder / "space.yaml").write_text(json.dumps(SPACE))
    options = ["--samples", str(TRIALS), "--scheduler", "none", "--folds", "2"]
    return ["--config", str(folder / "tiny.yaml"), "--space", str(folder / "space.yaml"), *options]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """What starts in the background of a script ignores Ctrl-C, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def moments(folder: Path) -> dict[str, int]:
    """When each trial was written."""
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "trials").glob("*.json")}


@pytest.mark.accept  # minutes
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("_interruptible")
def test_interrupted_killed_and_gone_on_with(arguments: list[str], tmp_path: Path) -> None:
    arguments = [*arguments, "--storage", str(tmp_path)]
    folder = tmp_path / "tiny.sweep"

    with Job("tune_stream.py", arguments, tmp_path / "interrupted") as job:
        assert job.wait_for(lambda: moments(folder), 400), job.output()
        job.process.send_signal(signal.SIGINT)
        assert job.wait(100) == 130, job.output()
        assert job.output().splitlines()[-1] == STOPPED
        assert noise(job.output()) == []
    first = moments(folder)
    assert 1 <= len(first) < TRIALS
    assert statuses(tmp_path)[0] == "KILLED"

    with Job("tune_stream.py", [*arguments, "--resume"], tmp_path / "killed") as job:
        assert job.wait_for(lambda: len(moments(folder)) > len(first), 400), job.output()
        job.kill()
        assert f"{len(first)} trials are known from earlier starts" in job.output()
    second = moments(folder)
    assert len(first) < len(second) < TRIALS
    # What was running then: somebody has to find out that it is not any more.
    assert statuses(tmp_path)[0] == "RUNNING"

    with Job("tune_stream.py", [*arguments, "--resume"], tmp_path / "done") as job:
        assert job.wait(400) == 0, job.output()
        output = job.output()
    third = moments(folder)
    assert len(third) == TRIALS
    assert {key: third[key] for key in second} == second
    assert {key: second[key] for key in first} == first
    check_output(output, known=len(second))
    check_results(tmp_path)


def noise(output: str) -> list[str]:
    """What libraries say beside us."""
    signs = ("warning", "traceback", "error", "[202", "[i 202", "info", "╭")
    return [line for line in output.splitlines() if any(sign in line.lower() for sign in signs)]


def statuses(storage: Path) -> list[str]:
    """Of the sweep's parent run in MLflow, and of its trials."""
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("lada_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "tiny.sweep"]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return [parent.info.status, *(run.info.status for run in nested)]


def check_output(output: str, known: int) -> None:
    assert noise(output) == []
    said = [line for line in output.splitlines() if line.startswith("  trial ")]
    assert [line.split(" scored ")[0] for line in said] == [
        f"  trial {i} of {TRIALS}" for i in range(known + 1, TRIALS + 1)
    ]
    assert output.startswith("tiny: method.beta -> ")
    for part in (f"{TRIALS} trials: {TRIALS} finished", "importance: beta 100 %", *TINY_DOMAINS, "Transfer"):
        assert part in output


def check_results(storage: Path) -> None:
    trials = all_kept(open_store(storage / "tiny.sweep"))
    winner = best(trials.values())
    assert winner is not None
    drawn = Space.from_plain(SPACE).sample(TRIALS, 0)
    assert sorted(t.values["method.beta"] for t in trials.values()) == sorted(v["method.beta"] for v in drawn)
    assert {trial.status for trial in trials.values()} == {"finished"}
    config = StreamConfig.from_yaml(storage / "tiny.sweep" / "best.yaml")
    assert config.name == f"tiny.best-{winner.key[:6]}"
    assert config.method.beta == winner.values["method.beta"]
    assert (storage / config.name / "report.html").exists()
    # Ray Tune's own state is gone; it could run code.
    assert [path for path in (storage / "tiny.sweep" / "ray").rglob("*") if path.is_file()] == []
    assert statuses(storage) == ["FINISHED"] * (TRIALS + 1)


# ---------------------------------------------------------------- the command line


def test_flags_and_their_defaults(arguments: list[str]) -> None:
    config, flags = parse_command_line([*arguments, "--method.beta", "2"], Flags, "")
    assert (config.method.beta, flags.samples, flags.folds) == (2.0, TRIALS, 2)
    _, flags = parse_command_line(["--config", "demo"], Flags, "")
    expected = {"space": "beta", "samples": 24, "metric": "average", "scheduler": "asha", "search": "random"}
    expected |= {"folds": None, "hours": None, "resume": False, "fresh": False}
    assert flags.model_dump(exclude={"config"}) == expected


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--space", "betta"], "did you mean beta?"),
        (["--samples", "0"], "samples"),
        (["--metric", "forgetting"], "metric"),
        (["--folds", "1"], "folds"),
        (["--hours", "0"], "hours"),
    ],
    ids=lambda wrong: wrong[0].removeprefix("--") if isinstance(wrong, list) else "",
)
def test_what_is_wrong_is_said_before_anything_starts(
    arguments: list[str], wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main([*arguments, *wrong]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said in capsys.readouterr().err
