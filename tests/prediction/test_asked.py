"""What cannot be asked is told at once, and a model has a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lada_ray.errors import InputError
from lada_ray.model import LadaModel
from lada_ray.prediction import asked
from lada_ray.prediction.asked import Options, load_model, model_digest
from tests.prediction.conftest import IMAGES, Predict, Streamed


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, out: Path, predict: Predict) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    with pytest.raises(InputError) as refused:
        predict(Options((" ",), 0), model=str(tmp_path), images=str(tmp_path / "empty"))
    assert refused.value.problems == [
        "classes: a name is empty",
        "top_k: must be at least 1 (got 0)",
        f"images: there is no image in {tmp_path}/empty; it has 1 other files (a.txt)",
        f"model: no model at {tmp_path}: it has no model.json",
    ]
    with pytest.raises(InputError, match="images: no folder"):
        predict(images=str(tmp_path / "nowhere"))
    assert not out.exists()


def test_without_classes_there_is_nothing_to_predict(
    predict: Predict, streamed: Streamed, model: LadaModel
) -> None:
    empty = LadaModel(replace(model.file, packs=()), [])
    with pytest.raises(InputError, match="nothing is learnt yet: give --classes"):
        predict(model=empty)
    result = predict(Options(("cat", "dog")), model=empty)
    assert (result.summary["unseen"], result.summary["domains"]) == (IMAGES, {})


def test_a_model_that_mlflow_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="nothing says in which"):
        load_model("models:/lada@champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")

    def unknown(uri: str) -> LadaModel:
        raise KeyError(f"http://me:secret@127.0.0.1:9 has no {uri}")

    monkeypatch.setattr(asked, "load", unknown)
    with pytest.raises(InputError, match="models:/lada@champion cannot be loaded") as refused:
        load_model("models:/lada@champion")
    assert "secret" not in str(refused.value)


def test_what_the_model_predicts_has_a_name(model: LadaModel) -> None:
    digest = model_digest(model.file)
    assert digest == model_digest(replace(model.file, run="other", epoch=9))
    beta = replace(model.file.prediction, beta=model.file.prediction.beta + 1)
    prompt = {**model.file.encoder, "prompt": "one {}."}
    for other in (
        replace(model.file, packs=model.file.packs[:1]),
        replace(model.file, prediction=beta),
        replace(model.file, encoder=prompt),
    ):
        assert model_digest(other) != digest
