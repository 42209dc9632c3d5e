"""The history's job, whole: told, shown, gone back, forgotten everywhere, taken along, verified."""

from __future__ import annotations

import importlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lada_ray.config import StreamConfig
from lada_ray.model import cached_pack

job = importlib.import_module("jobs.model")


@pytest.fixture
def folder(learnt_three: Path, tmp_path: Path) -> Path:
    """A copy of the folder with storage and MLflow, artifacts too."""
    folder = Path(shutil.copytree(learnt_three, tmp_path / "learnt"))
    with sqlite3.connect(folder / "mlflow.db") as database:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(change, (str(learnt_three), str(folder)))
    return folder


def call(folder: Path, *arguments: str) -> int:
    uri = f"sqlite:///{folder}/mlflow.db"
    more = ["--tracking.uri", uri] if arguments[0] in ("rollback", "forget") else []
    return int(job.main([*arguments, "--model", "lada", "--storage", str(folder / "storage"), *more]))


def artifacts(folder: Path) -> dict[str, list[str]]:
    """Paths of the files of each live run, by the run's name."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    found = {}
    for run in runs:
        root = Path(run.info.artifact_uri.removeprefix("file://"))
        found[str(run.info.run_name)] = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
    return found


def test_the_whole_path(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert call(folder, "log") == 1
    assert "has no history yet" in capsys.readouterr().err
    before = artifacts(folder)
    assert "report.html" in before["lada"]
    assert any(path.startswith("pack/") for path in before["02 flags"])

    # Nothing to go back from: the first change alone starts the history.
    assert call(folder, "rollback", "1") == 0
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert client.get_model_version_by_alias("lada", "champion").tags["lada_ray.version"] == "1"
    upload = folder / "mlartifacts"
    assert len(list(upload.rglob("MLmodel"))) == 1

    forget = ("forget", "flags", "--reason", "asked for", "--gate.max_drop", "100")
    with monkeypatch.context() as without_mlflow:
        without_mlflow.setattr("lada_ray.forget.forgetting.withdraw", lambda *_: False)
        assert call(folder, *forget) == 75
    assert "not everything is deleted yet" in capsys.readouterr().out
    assert call(folder, *forget) == 0
    assert "flags is forgotten; the champion is version 2" in capsys.readouterr().out
    found = client.search_model_versions("name = 'lada'")
    assert [entry.tags["lada_ray.version"] for entry in found] == ["2"]
    assert client.get_model_version_by_alias("lada", "champion").tags["lada_ray.version"] == "2"
    after = artifacts(folder)
    assert set(after) == {"lada", "01 fruit", "02 flags", "03 toys", "lada version 2"}
    assert set(after["lada"]) == {"config.yaml", "metrics.json"}
    assert after["01 fruit"] == before["01 fruit"]
    assert after["02 flags"] == after["03 toys"] == []
    assert len(list(upload.rglob("MLmodel"))) == 1

    assert call(folder, "log") == 0
    newest, oldest = capsys.readouterr().out.strip().splitlines()
    assert newest.split()[0] == "2"
    assert newest.endswith("2 packs  (champion)")
    assert oldest.endswith("3 packs  (forgotten)")
    assert call(folder, "show") == 0
    shown = capsys.readouterr().out
    assert "forget flags" in shown
    page = (folder / "storage" / "lada" / "history.html").read_text()
    assert "trained beside it, and not again since: toys" in page
    assert call(folder, "show", "--version", "2") == 0
    shown = capsys.readouterr().out
    assert "forgotten: flags (asked for)" in shown
    assert "toys (max_drop): " in shown
    assert call(folder, "rollback", "1") == 1
    assert "version 1 consists of was forgotten" in capsys.readouterr().err

    assert call(folder, "show", "--yaml", str(folder / "again.yaml")) == 0
    again = StreamConfig.from_yaml(folder / "again.yaml", overrides={"name": "lada-2"})
    assert [spec.name for spec in again.domains] == ["fruit", "toys"]
    assert again.method == StreamConfig.from_yaml(folder / "storage" / "lada" / "config.yaml").method


def test_an_export_needs_neither_mlflow_nor_ray(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "export", str(folder / "taken")) == 0
    code = """
import sys
sys.modules["ray"] = sys.modules["mlflow"] = None
from lada_ray import LadaModel
model = LadaModel.load(sys.argv[1])
print(model.domains, model.file.history, model.predict(sys.argv[2]).shape)
"""
    image = str(folder / "fruit" / "test" / "class_0" / "0.png")
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "taken"), image],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("() (1, 3)")
    assert call(folder, "export", str(folder / "taken")) == 1
    assert "is not empty" in capsys.readouterr().err


def test_verify_tells_what_differs_from_what_cannot_be_told(
    folder: Path, tmp_path: Path, capsys: Any
) -> None:
    assert call(folder, "rollback", "1") == 0  # the first change starts the history
    capsys.readouterr()
    assert call(folder, "verify") == 0
    assert "is whole; all" in capsys.readouterr().out
    copy = Path(shutil.copytree(folder / "storage", tmp_path / "storage"))
    path = copy / "lada" / "model" / "model.json"
    file = json.loads(path.read_text())
    file["history"][-1]["accuracy"]["toys"] += 4.5
    path.write_text(json.dumps(file))
    assert call(tmp_path, "verify") == 1
    assert "toys" in capsys.readouterr().out
    tensors = copy / "lada" / "model" / "packs" / file["packs"][-1] / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    cached_pack.cache_clear()
    assert call(tmp_path, "verify") == 2
    assert "was changed or cut short" in capsys.readouterr().out


def test_the_command_line_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["forgt", "pets"]) == 1
    assert "one of log, show, rollback, forget, export, verify comes first" in capsys.readouterr().err
    assert job.main(["forget", "--model", "lada"]) == 1
    assert "domain" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        job.main(["forget", "--help"])
    assert "--relearn" in capsys.readouterr().out
