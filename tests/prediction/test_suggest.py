"""Images that the model does not know become an inbox entry that, once labelled, can be learnt."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console as RichConsole

from lada_ray.console import Console
from lada_ray.errors import InputError
from lada_ray.inbox import READY, scan, validate
from lada_ray.model import LadaModel
from lada_ray.prediction import suggest as module
from lada_ray.prediction.asked import Options
from lada_ray.prediction.drift import Drift
from lada_ray.prediction.predict import Predicted
from lada_ray.prediction.suggest import say_suggestion, strangest, suggest
from lada_ray.store import open_store
from tests.prediction.conftest import Predict, Streamed, table


@pytest.fixture
def predicted(predict: Predict, streamed: Streamed) -> Predicted:
    return predict()


def with_drift(summary: dict[str, Any], **changes: Any) -> dict[str, Any]:
    drift = {**summary["drift"], **changes}
    return {**summary, "drift": Drift.from_json(drift).to_json()}


def test_what_is_suggested_can_be_learnt_once_labelled(
    predicted: Predicted, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 24)
    inbox = tmp_path / "inbox"
    found = suggest(predicted.folder, with_drift(predicted.summary, shifted=True), str(inbox))
    assert found is not None
    assert (found.images, found.new) == (24, True)
    assert scan(inbox).incomplete == (Path(found.uri).name,)

    rows = list(csv.DictReader(io.StringIO((Path(found.uri) / "labels.csv").read_text())))
    farthest = table(predicted).sort_values(["distance", "path"], ascending=[False, True])["path"]
    assert [row["source"] for row in rows] == farthest.tolist()[:24]
    for row in rows:
        assert (Path(found.uri) / row["path"]).read_bytes() == (images / row["source"]).read_bytes()

    for i, row in enumerate(rows):
        row["label"] = f"kind {i % 2}"
        row["split"] = "skip" if i == 23 else ["train", "test"][i // 2 % 2]
    (Path(found.uri) / "labels.csv").write_text(pd.DataFrame(rows).to_csv(index=False))
    (Path(found.uri) / READY).touch()
    (entry,) = scan(inbox).entries
    domain = validate(entry, [], str(tmp_path)).domain
    assert (domain.class_names, len(domain.train), len(domain.test)) == (("kind 0", "kind 1"), 12, 11)


def test_unlabelled_it_cannot_be_learnt(predicted: Predicted, tmp_path: Path) -> None:
    found = suggest(predicted.folder, with_drift(predicted.summary, shifted=True), str(tmp_path / "inbox"))
    assert found is not None
    (Path(found.uri) / READY).touch()
    with pytest.raises(InputError, match="rows without path or label"):
        validate(scan(tmp_path / "inbox").entries[0], [], str(tmp_path))


def test_labels_that_somebody_filled_in_are_left_alone(predicted: Predicted, tmp_path: Path) -> None:
    summary = with_drift(predicted.summary, shifted=True)
    first = suggest(predicted.folder, summary, str(tmp_path / "inbox"))
    assert first is not None
    (Path(first.uri) / "labels.csv").write_text("work")
    again = suggest(predicted.folder, summary, str(tmp_path / "inbox"))
    assert again is not None
    assert (again.uri, again.new) == (first.uri, False)
    assert (Path(first.uri) / "labels.csv").read_text() == "work"


def test_other_images_of_the_same_names_are_another_suggestion(predicted: Predicted, tmp_path: Path) -> None:
    summary = with_drift(predicted.summary, shifted=True)
    first = suggest(predicted.folder, summary, str(tmp_path / "inbox"))
    assert first is not None
    april = Path(shutil.copytree(summary["of"]["images"], tmp_path / "april"))
    for of in ({"images": str(april)}, {"listing": "changed"}):
        other = suggest(predicted.folder, {**summary, "of": {**summary["of"], **of}}, str(tmp_path / "inbox"))
        assert other is not None
        assert other.new
        assert other.uri != first.uri


def test_images_that_are_gone_are_left_out(predicted: Predicted, tmp_path: Path, images: Path) -> None:
    summary, sink = with_drift(predicted.summary, shifted=True), io.StringIO()
    gone = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))[:2]
    for path in gone:
        (images / path).unlink()
    found = suggest(predicted.folder, summary, str(tmp_path / "inbox"))
    assert found is not None
    assert (found.images, found.lost) == (28, 2)
    rows = list(csv.DictReader(io.StringIO((Path(found.uri) / "labels.csv").read_text())))
    assert not {row["source"] for row in rows} & set(gone)
    for row in rows:
        assert (Path(found.uri) / row["path"]).read_bytes() == (images / row["source"]).read_bytes()
    say_suggestion(found, Console(rich=RichConsole(file=sink, width=200)))
    assert "left out: 2 images that cannot be read any more" in sink.getvalue()
    shutil.rmtree(images)
    with pytest.raises(InputError, match="none of the 30 images can be read any more"):
        suggest(predicted.folder, summary, str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_of_a_known_batch_outliers_alone_are_suggested(predicted: Predicted, tmp_path: Path) -> None:
    rows = table(predicted)
    calm = with_drift(predicted.summary, shifted=False, outliers=0)
    outliers = strangest(open_store(predicted.folder), whole=False)
    assert sorted(outliers["path"]) == rows.loc[rows["outlier"], "path"].tolist()
    found = suggest(predicted.folder, calm, str(tmp_path / "inbox"))
    assert (found.images if found else 0) == rows["outlier"].sum()


def test_to_a_bucket(predicted: Predicted, s3: str) -> None:
    found = suggest(predicted.folder, with_drift(predicted.summary, shifted=True), f"{s3}/inbox")
    assert found is not None
    keys = [entry.key for entry in open_store(found.uri).list()]
    assert len(keys) == found.images + 2
    sink = io.StringIO()
    say_suggestion(found, Console(rich=RichConsole(file=sink, width=200)))
    assert f"write an empty object {found.uri}/_READY" in sink.getvalue()


def test_without_calibration_nothing_is_told(
    predict: Predict, streamed: Streamed, model: LadaModel, out: Path, tmp_path: Path
) -> None:
    sink = io.StringIO()
    console = Console(rich=RichConsole(file=sink, width=200))
    result = predict(model=LadaModel(model.file, model.packs), console=console)
    assert "2 of the model's 2 packs are not calibrated" in sink.getvalue()
    assert json.loads((out / "summary.json").read_text())["drift"] is None
    assert list(table(result).columns) == ["path", "domain", "class", "score", "seen"]
    assert set(result.summary["domains"]["pets"]) == {"images"}
    with pytest.raises(InputError, match="nothing tells outliers"):
        suggest(result.folder, result.summary, str(tmp_path / "inbox"))
    # Other scores, other parts.
    with pytest.raises(InputError, match="its scores were calibrated otherwise"):
        predict()


def test_nothing_to_suggest_is_said() -> None:
    sink = io.StringIO()
    say_suggestion(None, Console(rich=RichConsole(file=sink, width=200)))
    assert "nothing to suggest" in sink.getvalue()


def test_images_of_unseen_classes_have_no_domain(
    predict: Predict, streamed: Streamed, tmp_path: Path
) -> None:
    result = predict(Options(("zebra", "okapi")))
    assert result.summary["images"]
    found = suggest(result.folder, with_drift(result.summary, shifted=True), str(tmp_path / "inbox"))
    assert found is not None
    rows = list(csv.DictReader(io.StringIO((Path(found.uri) / "labels.csv").read_text())))
    unseen = [row for row in rows if row["predicted_class"] in ("zebra", "okapi")]
    assert unseen
    assert {row["predicted_domain"] for row in unseen} == {""}
