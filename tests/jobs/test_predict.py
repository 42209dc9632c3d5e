"""The job's command line: what it refuses, and the command that goes on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from jobs.predict import main
from lada_ray.prediction import predict, suggest, summary
from lada_ray.prediction.drift import Drift
from lada_ray.prediction.predict import Predicted

ASKED = ["--model", "models:/lada@champion", "--images", "/photos of us", "--out", "/out"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was predicted; the batch looks like a new domain."""
    calls: list[Any] = []
    drift = Drift(100, 90, 2.0, shifted=True).to_json()
    monkeypatch.setattr(summary, "show", lambda *_: None)
    monkeypatch.setattr(
        predict, "predict_folder", lambda *a: calls.append(a) or Predicted("/out", {"drift": drift}, 100)
    )
    return calls


def test_options_reach_the_prediction(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--classes", "zebra,okapi", "--top_k", "5", "--unknown", "0.5", "--fresh"]) == 0
    (model, images, out, options, _, fresh, _) = calls[0]
    assert (model, images, out, fresh) == ("models:/lada@champion", "/photos of us", "/out", True)
    assert (options.classes, options.top_k, options.unknown) == (("zebra", "okapi"), 5, 0.5)
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "--suggest" in line]
    words = shlex.split(line)
    assert words[2:8] == ASKED
    assert "--fresh" not in words
    assert words[-2:] == ["--suggest", "INBOX"]


def test_a_stop_tells_how_to_go_on(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict_folder", stopped)
    assert main([*ASKED, "--fresh"]) == 130
    assert shlex.split(capsys.readouterr().err.splitlines()[-1])[2:] == ASKED


def test_suggesting_is_asked_for(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(suggest, "suggest", lambda *a: asked.append(a))
    assert main([*ASKED, "--suggest", str(tmp_path)]) == 0
    assert asked[0][0] == "/out"
    assert asked[0][2] == str(tmp_path)
    assert "nothing to suggest" in capsys.readouterr().out


def test_what_is_missing_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--unknown", "2"]) != 0
    said = capsys.readouterr().err
    for key in ("model", "images", "out", "unknown"):
        assert key in said
