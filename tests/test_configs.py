"""Every configuration that ships loads, and says in its first line how it is run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from jobs.run_stream import Flags
from lada_ray import StreamConfig
from lada_ray.command_line import parse_command_line

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


def test_configurations_ship():
    assert "demo" in [file.stem for file in SHIPPED]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_loads_and_round_trips(file, tmp_path):
    config = StreamConfig.from_yaml(file)
    assert config.name == file.stem
    assert len(config.domains) > 0
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert StreamConfig.from_yaml(again) == config
    assert StreamConfig.from_yaml(file.stem) == config  # by its bare name


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_first_line_runs_it(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    python, job, *arguments = shlex.split(file.read_text().splitlines()[0].removeprefix("# "))
    assert (python, job) == ("python", "jobs/run_stream.py")
    config, flags = parse_command_line(arguments, Flags)
    assert flags.config == f"configs/{file.name}"
    assert config == StreamConfig.from_yaml(file)
