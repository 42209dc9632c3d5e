"""Predicting a folder: the rows are the model's, a bad image costs itself, and what is done is not done again."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console as RichConsole
from safetensors.numpy import load_file, save_file

from lada_ray.config import ResourceConfig
from lada_ray.console import Console
from lada_ray.errors import InputError, IntegrityError
from lada_ray.method.outliers import Residuals, nearest
from lada_ray.model import LadaModel
from lada_ray.prediction import actor
from lada_ray.prediction import predict as module
from lada_ray.prediction.actor import Predictor
from lada_ray.prediction.asked import Options
from lada_ray.prediction.predict import predict_folder
from lada_ray.prediction.shipment import Shipment
from lada_ray.prediction.summary import show
from lada_ray.store import LocalStore, join, open_store
from tests.prediction.conftest import IMAGES, Predict, Streamed, batch, parts, png, table, with_own_weights

EXTRA = ("blue_whale", "wolf")


def check_rows(rows: pd.DataFrame, model: LadaModel, root: Path, classes: tuple[str, ...] = ()) -> None:
    """The rows are what the model says of the same images, one by one."""
    expected = model.predict([root / path for path in rows["path"]], extra_classes=classes)
    assert rows["domain"].fillna("").tolist() == expected["domain"].fillna("").tolist()
    assert rows["class"].tolist() == expected["class"].tolist()
    np.testing.assert_allclose(rows["score"], expected["score"], atol=1e-6)


@pytest.mark.parametrize("classes", [(), EXTRA])
def test_rows_are_what_the_model_says(
    predict: Predict, streamed: Streamed, model: LadaModel, images: Path, classes: tuple[str, ...]
) -> None:
    result = predict(Options(classes))
    rows = table(result)
    assert list(rows.columns) == ["path", "domain", "class", "score", "seen", "outlier", "distance"]
    assert rows["path"].tolist() == sorted(f"{'ab'[i % 2]}/{i:02d}.png" for i in range(IMAGES))
    check_rows(rows, model, images, classes)
    assert rows["seen"].tolist() == rows["domain"].notna().tolist()
    near = nearest(model.encode([images / path for path in rows["path"]]), model.calibration.outliers)
    assert rows["outlier"].tolist() == near.outside.tolist()
    np.testing.assert_allclose(rows["distance"], near.distance, atol=1e-6)
    assert len(parts(Path(result.folder))) > 1
    assert len(streamed.calls) == 1


def test_the_best_classes_and_flags(predict: Predict, streamed: Streamed, model: LadaModel) -> None:
    plain = table(predict(Options(EXTRA)))
    limit = float(np.median(plain["score"]))
    result = predict(Options(EXTRA, top_k=4, unknown=limit), fresh=True)
    rows = table(result)
    assert rows[list(plain.columns)].equals(plain)
    assert rows["unknown"].tolist() == (plain["score"] < limit).tolist()
    assert result.summary["unknown"] == IMAGES / 2
    assert rows["domains"].str[0].fillna("").tolist() == plain["domain"].fillna("").tolist()
    assert rows["classes"].str[0].tolist() == plain["class"].tolist()
    for row in rows.itertuples():
        # Five classes are seen, two are not: the other side of the gate is not told.
        assert len(row.scores) == len(row.classes) == len(row.domains) == (4 if row.seen else 2)
        assert list(row.scores) == sorted(row.scores, reverse=True)
        assert sum(row.scores) <= 1 + 1e-6
        assert {domain is not None for domain in row.domains} == {row.seen}


@pytest.mark.parametrize("classes", [(), EXTRA])
def test_the_summary_counts(
    predict: Predict, streamed: Streamed, out: Path, model: LadaModel, images: Path, classes: tuple[str, ...]
) -> None:
    result = predict(Options(classes))
    rows, summary = table(result), json.loads((out / "summary.json").read_text())
    assert summary == result.summary
    assert [summary[key] for key in ("images", "predicted", "bad", "others")] == [IMAGES, IMAGES, 0, 1]
    for name, counts in summary["domains"].items():
        own = rows[rows["domain"] == name]
        assert (counts["images"], counts["outliers"]) == (len(own), own["outlier"].sum())
        assert counts["share_outliers"] == (own["outlier"].mean() if len(own) else None)
    assert summary["unseen"] == int(rows["domain"].isna().sum())
    assert summary["share_unseen"] == summary["unseen"] / IMAGES
    told = {(c["domain"], c["class"]): c["images"] for c in summary["classes"]}
    domains = [domain if isinstance(domain, str) else None for domain in rows["domain"]]
    assert told == Counter(zip(domains, rows["class"], strict=True))
    assert bad_images(out) == {}
    features = model.encode([images / path for path in rows["path"]])
    packs = model.calibration.outliers
    shift = Residuals.of(features, nearest(features, packs), packs).shift
    assert summary["drift"]["outliers"] == rows["outlier"].sum()
    assert summary["drift"]["shift"] == pytest.approx(shift, rel=1e-4)


def test_a_rows_bits_depend_on_that_row_alone(ray_local: None, model: LadaModel, images: Path) -> None:
    predictor = Predictor(Shipment.send(model), Options(EXTRA, top_k=3), threads=1)
    rows = batch(images, model)

    def told(which: list[int]) -> dict[int, Any]:
        row = predictor.work({name: column[which] for name, column in rows.items()})
        return {i: tuple(one) for i, one in zip(row["images"], row["predictions"], strict=True)}

    whole = told(list(range(IMAGES)))
    assert told([7]) == {7: whole[7]}
    assert told(list(range(IMAGES))[::-1]) == whole
    assert told([3, 29, 11] * 30) == {i: whole[i] for i in (3, 29, 11)}


def bad_images(out: Path) -> dict[str, str]:
    with (out / "bad_images.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "reason"]
    return dict(rows)


def test_bad_images_cost_themselves(predict: Predict, streamed: Streamed, images: Path, out: Path) -> None:
    (images / "a" / "text.png").write_text("text")
    (images / "b" / "00.jpg").touch()
    (images / "b" / "gone.png").symlink_to(images / "nowhere")
    (images / os.fsdecode(b"caf\xe9.png")).write_bytes(png(0))
    result = predict()
    assert len(table(result)) == IMAGES
    assert [result.summary[key] for key in ("images", "predicted", "bad")] == [IMAGES + 4, IMAGES, 4]
    with (out / "bad_images.csv").open(newline="", errors="surrogateescape") as file:
        bad = dict(list(csv.reader(file))[1:])
    assert bad.pop("b/gone.png").startswith("cannot be read: [Errno 2]")
    assert bad == {
        "a/text.png": "not an image that Pillow can read",
        "b/00.jpg": "the file is empty",
        os.fsdecode(b"caf\xe9.png"): "its name is no UTF-8 text: rename it",
    }


def test_what_could_not_be_read_is_tried_again(
    predict: Predict, streamed: Streamed, images: Path, out: Path
) -> None:
    missing = images / "nowhere"
    (images / "a" / "late.png").symlink_to(missing)
    assert predict().summary["bad"] == 1
    (images / "a" / "text.png").write_text("text")
    missing.write_bytes(png(99))
    result = predict()
    assert bad_images(out) == {"a/text.png": "not an image that Pillow can read"}
    assert len(table(result)) == IMAGES + 1
    assert len(streamed.calls[1]) < IMAGES
    assert predict().summary == result.summary
    assert len(streamed.calls) == 2  # bytes that are no image never will be


def test_a_storage_that_stumbles_costs_no_image_for_good(
    predict: Predict, streamed: Streamed, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        render = actor.render_image

        def stumbling(uri: str, *rest: Any) -> Any:
            found = render(uri, *rest)
            return replace(found, unread="cannot be read: [Errno 5]") if uri.endswith("07.png") else found

        patch.setattr(actor, "render_image", stumbling)
        predict()
    assert bad_images(out) == {"b/07.png": "cannot be read: [Errno 5]"}
    assert len(table(predict())) == IMAGES
    assert bad_images(out) == {}
    assert 1 <= len(streamed.calls[1]) < IMAGES


def test_nothing_but_bad_images_is_an_error(
    model: LadaModel, streamed: Streamed, tmp_path: Path, out: Path, predict: Predict
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_text("text")
    with pytest.raises(InputError, match="None of the 3 images can be used") as refused:
        predict(images=str(folder))
    assert refused.value.problems == [f"{i}.png: not an image that Pillow can read" for i in range(3)]
    assert len(bad_images(out)) == 3


def test_features_that_are_not_finite_are_listed(
    predict: Predict, streamed: Streamed, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lada_ray.encoder import Encoder

    encode = Encoder.encode_pixels

    def broken(self: Encoder, pixels: np.ndarray) -> np.ndarray:
        features = encode(self, pixels)
        features[0] = np.nan
        return features

    monkeypatch.setattr(Encoder, "encode_pixels", broken)
    result = predict()
    assert result.summary["bad"] == IMAGES / 3
    assert set(bad_images(out).values()) == {"the encoder gives NaN or infinite features"}


class Killed(Exception):
    pass


def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(
    predict: Predict, streamed: Streamed, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images" / "a" / "text.png").write_text("text")
    calm = predict(out=str(tmp_path / "calm"))
    write, written = LocalStore.write, []

    def dying(self: LocalStore, key: str, data: bytes) -> None:
        write(self, key, data)
        if key.startswith("predictions/"):
            written.append(key)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", dying)
        for _ in range(2):
            with pytest.raises(Killed):
                predict()
    assert len(set(written)) == len(written) == 2
    assert not (out / "summary.json").exists()
    result = predict()
    assert parts(out) == parts(tmp_path / "calm")
    done = [len(pq.read_table(out / key)) for key in written]
    assert len(streamed.calls[-1]) <= IMAGES + 1 - sum(done)
    same = ("images", "predicted", "bad", "domains", "classes", "unseen", "share_unseen", "drift")
    assert [result.summary[key] for key in same] == [calm.summary[key] for key in same]
    assert bad_images(out) == bad_images(tmp_path / "calm")


def test_killed_before_the_summary_it_is_written_by_the_next_start(
    predict: Predict, streamed: Streamed, out: Path
) -> None:
    first = predict()
    (out / "summary.json").unlink()
    (out / "bad_images.csv").unlink()
    again = predict()
    assert len(streamed.calls) == 1
    assert again.summary["classes"] == first.summary["classes"]
    assert bad_images(out) == {}


def test_nothing_new_starts_nothing(
    predict: Predict, streamed: Streamed, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = predict()
    before = parts(out)
    monkeypatch.setattr(module, "join_cluster", lambda: pytest.fail("joined a cluster"))
    again = predict()
    assert (again.summary, again.new) == (first.summary, 0)
    assert (first.new, len(streamed.calls)) == (IMAGES, 1)
    assert parts(out) == before


def test_new_files_change_their_own_chunk_alone(
    predict: Predict, streamed: Streamed, images: Path, out: Path, model: LadaModel
) -> None:
    predict()
    before = parts(out)
    (images / "b" / "000.png").write_bytes(png(77))
    (images / "a" / "notes.md").write_text("no image")
    result = predict()
    after, rows = parts(out), table(result)
    assert len(streamed.calls[1]) < IMAGES / 2
    assert len(before.keys() - after.keys()) == 1
    assert len(rows) == len(set(rows["path"])) == IMAGES + 1
    check_rows(rows, model, images)
    (images / "b" / "000.png").unlink()
    predict()
    assert parts(out) == before


def test_a_file_that_changed_is_predicted_again(
    predict: Predict, streamed: Streamed, images: Path, model: LadaModel
) -> None:
    predict()
    (images / "a" / "04.png").write_bytes(png(123))
    rows = table(predict())
    assert "04.png" in streamed.calls[1]
    check_rows(rows, model, images)


def test_a_part_that_was_damaged_is_made_again(predict: Predict, streamed: Streamed, out: Path) -> None:
    predict()
    before = parts(out)
    for i, name in enumerate(before):
        (out / "predictions" / name).write_bytes((b"", b"rubble", before[name][:-9])[i % 3])
    predict()
    assert parts(out) == before


def test_on_the_cluster_from_s3_to_s3(
    model: LadaModel, images: Path, s3: str, tmp_path: Path, ray_local: None
) -> None:
    (images / "a" / "text.png").write_text("text")
    root, out = join(s3, "to predict"), join(s3, "predicted")
    for path in images.rglob("*.*"):
        open_store(root).write(str(path.relative_to(images)), path.read_bytes())
    saved = join(s3, "saved model")
    model.save(saved)
    sink = io.StringIO()
    console = Console(rich=RichConsole(file=sink, width=100))
    result = predict_folder(saved, root, out, Options(EXTRA), console=console)
    store = open_store(out)
    names = [entry.key for entry in store.list("predictions")]
    rows = pd.concat(pq.read_table(io.BytesIO(store.read(name))).to_pandas() for name in names)
    assert len(rows) == IMAGES
    check_rows(rows.sort_values("path", ignore_index=True), model, images, EXTRA)
    assert b"a/text.png,not an image" in store.read("bad_images.csv")
    assert json.loads(store.read("summary.json"))["images_per_second"] > 0
    show(result.folder, result.summary, True, console)
    said = sink.getvalue()
    for line in ("pets", "unseen classes", "bad: 1 of 31 images", f"{out}/bad_images.csv"):
        assert line in said


def test_a_node_with_another_encoder_is_named(
    model: LadaModel, predict: Predict, out: Path, tmp_path: Path, ray_local: None
) -> None:
    tensors = load_file(str(model.spec.local_weights))
    save_file({**tensors, "visual.proj": 2 * tensors["visual.proj"]}, tmp_path / "w.safetensors")
    with pytest.raises(IntegrityError, match=r"on the node .*w\.safetensors is another encoder"):
        predict(
            model=with_own_weights(model, tmp_path / "w.safetensors"), resources=ResourceConfig(encoders=1)
        )
    assert not (out / "predictions").exists()
    assert not (out / "summary.json").exists()
