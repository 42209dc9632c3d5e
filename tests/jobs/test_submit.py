"""`ray job submit` against a cluster with token authentication, end to end, as README.md shows it."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from lada_ray import LadaModel
from tests.clusters import ROOT, answers, cluster, cluster_environment, submit

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}


def draw(folder):
    """Four classes of coloured noise, in two domains."""
    rng = np.random.default_rng(0)
    for i, (name, colour) in enumerate(COLOURS.items()):
        for split, count in (("train", 3), ("test", 2)):
            place = folder / f"domain{i // 2}" / split / name
            place.mkdir(parents=True)
            for k in range(count):
                pixels = np.clip(rng.normal(colour, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{k}.png")


def configuration(folder):
    """A stream of seconds, named like the README's."""
    domains = [{"name": f"domain{i}", "kind": "folder", "root": f"domain{i}"} for i in range(2)]
    config = {
        "name": "demo",
        "storage": str(folder / "runs"),
        "encoder": {"model": "demo-clip", "pretrained": "demo"},
        "views": 1,
        "method": {"epochs": 2, "memory_per_class": 2, "mixture_components": 2},
        "domains": domains,
    }
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return file


@pytest.mark.timeout(900)
def test_submitted_job_learns_and_its_model_outlives_the_cluster(tmp_path, monkeypatch, capsys):
    draw(tmp_path)
    config = configuration(tmp_path)
    environment = cluster_environment()

    with cluster(environment, tmp_path / "ray.log") as (address, session):
        assert answers(f"{address}/api/jobs/", None) == 401
        done = submit(["jobs/run_stream.py", "--config", str(config)], address, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "task 2 of 2: learnt domain1" in done.stdout
        # The code came with the working folder, and neither it nor the tests' own things went anywhere else.
        (package,) = session.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/lada_ray")
        assert not (package.parent / "tests").exists()
        assert not (package.parent / ".venv").exists()
        # 4 classes, (3 training images x (1 + 1 view) + 2 test images) each
        assert json.loads((tmp_path / "runs/demo/metrics.json").read_text())["images_encoded"] == 4 * 8
        lines = (tmp_path / "runs/demo/accuracy_matrix.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == ["learnt", "domain0", "domain1"]

    assert not session.exists()
    model = LadaModel.load(tmp_path / "runs/demo/model")
    assert [label.name for label in model.class_names] == ["green", "red", "blue", "yellow"]
    ask_as_the_readme_does(tmp_path, monkeypatch, capsys)


@pytest.mark.accept
@pytest.mark.timeout(900)
def test_a_submitted_sweep_leaves_its_winner(tmp_path):
    """A sweep of a shipped space; that its job works at all is tested in test_tune_stream.py."""
    draw(tmp_path)
    environment = cluster_environment()
    options = ["--space", "tune_spaces/beta.yaml", "--samples", "2", "--method.epochs", "1"]
    with cluster(environment, tmp_path / "ray.log") as (address, _):
        config = str(configuration(tmp_path))
        done = submit(["jobs/tune_stream.py", "--config", config, *options], address, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 2 of 2 " in done.stdout
    # 4 classes, 3 training images x (1 + 1 view) each; the 2 test images of each for the winner alone
    assert f"the search has encoded {4 * 6} image views" in done.stdout
    noise = [
        line for line in done.stdout.splitlines() if "Traceback" in line or "[I 20" in line or "╭" in line
    ]
    assert noise == []
    folder = tmp_path / "runs/demo.sweep"
    assert len(list((folder / "trials").glob("*.json"))) == 2
    (best,) = (tmp_path / "runs").glob("demo.best-*")
    assert f"name: {best.name}" in (folder / "best.yaml").read_text()
    assert json.loads((best / "metrics.json").read_text())["images_encoded"] == 4 * 2


def ask_as_the_readme_does(folder, monkeypatch, capsys):
    """Run README.md's Python in a folder that has the run and the picture it speaks of."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    shutil.copy(folder / "domain0/test/red/0.png", folder / "photo.png")
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "name='blue'" in printed
    assert re.search(r"domain +class +score", printed)
