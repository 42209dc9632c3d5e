"""A folder of predictions of another kind, or of other things, is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lada_ray.errors import InputError, IntegrityError
from lada_ray.model import LadaModel
from lada_ray.prediction.asked import Options, model_digest
from tests.prediction.conftest import Predict, Streamed, parts, png, table


def test_other_predictions_are_refused_and_replaced_when_asked(
    predict: Predict, streamed: Streamed, model: LadaModel, out: Path, tmp_path: Path
) -> None:
    predict(Options(("zebra",)))
    before = parts(out)
    shorter = LadaModel(replace(model.file, packs=model.file.packs[:1]), model.packs[:1])
    with pytest.raises(InputError, match="holds other predictions") as refused:
        predict(Options(("zebra", "okapi"), 3, 0.5), model=shorter)
    assert [line.partition(" (")[0] for line in refused.value.problems] == [
        "model: another one, which had learnt pets, wild; now pets",
        "classes: was zebra, now zebra, okapi",
        "top_k: was 1, now 3",
        "unknown: was none, now 0.5",
        "--fresh removes them and starts over; another --out keeps them",
    ]
    assert parts(out) == before
    assert (out / "summary.json").exists()
    result = predict(Options(("zebra", "okapi"), 3, 0.5), model=shorter, fresh=True)
    assert result.summary["of"]["model"] == model_digest(shorter.file)
    assert set(table(result)["domain"].dropna()) <= {"pets"}
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "x.png").write_bytes(png(1))
    with pytest.raises(InputError, match=r"images: was .*images, now .*others"):
        predict(Options(("zebra", "okapi"), 3, 0.5), model=shorter, images=str(tmp_path / "others"))


def test_a_folder_with_other_files_is_left_alone(predict: Predict, out: Path, ray_local: None) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
            predict(fresh=fresh)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_damaged_note_is_told(predict: Predict, streamed: Streamed, out: Path) -> None:
    predict()
    (out / "_meta.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"_meta.json is damaged"):
        predict()
