"""Predicting a folder: the rows are the model's, a bad image costs itself, and what is done is not done again."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from rich.console import Console as RichConsole
from safetensors.numpy import load_file, save_file

from lada_ray import predict as module
from lada_ray.config import ResourceConfig
from lada_ray.console import Console
from lada_ray.errors import InputError, IntegrityError, LadaError
from lada_ray.features.extract import Batch
from lada_ray.model import LadaModel
from lada_ray.predict import (
    Chunk,
    Options,
    Predicted,
    Predictor,
    RenderImages,
    Shipment,
    cut,
    list_folder,
    load_model,
    model_digest,
    predict_folder,
    read_on,
    show,
)
from lada_ray.store import Entry, LocalStore, join, open_store

if TYPE_CHECKING:
    from tests.conftest import TinyWorld

IMAGES = 30
EXTRA = ("blue_whale", "wolf")
Predict = Callable[..., Predicted]


@pytest.fixture(scope="module")
def model(learnt_run: tuple[TinyWorld, str]) -> LadaModel:
    return LadaModel.load(join(learnt_run[1], "model"))


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((48, 40)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Thirty images in two folders, and a file that is none."""
    root = tmp_path / "images"
    for i in range(IMAGES):
        path = root / f"{'ab'[i % 2]}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    (root / "notes.txt").write_text("notes")
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class Streamed:
    """`stream_rows` in this process, batches in another order; and the images of each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(
        self, table: pd.DataFrame, read: Any, actor: Any, arguments: Any, pool: Any, images: int, rows: int
    ) -> Iterator[dict[str, Any]]:
        self.calls.append([Path(uri).name for uri in table["uri"]])
        worker = actor(*arguments, 1, "cpu")
        starts = list(range(0, len(table), rows))
        random.Random(len(table)).shuffle(starts)
        for start in starts:
            some = table.iloc[start : start + rows]
            (row,) = worker(read({name: some[name].to_numpy() for name in some}))["row"]
            yield json.loads(row)


@pytest.fixture
def streamed(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> Streamed:
    """Chunks of about seven images, batches of three, and no actors."""
    streamed = Streamed()
    monkeypatch.setattr(module, "stream_rows", streamed)
    monkeypatch.setattr(module, "CHUNK_IMAGES", 7)
    monkeypatch.setattr(module, "PREDICT_IMAGES", 3)
    return streamed


@pytest.fixture
def predict(model: LadaModel, images: Path, out: Path) -> Predict:
    def run(options: Options | None = None, **changes: Any) -> Predicted:
        given = {"model": model, "images": str(images), "out": str(out), "console": Console(quiet=True)}
        return predict_folder(**{**given, "options": options, **changes})

    return run


def table(result: Predicted) -> pd.DataFrame:
    return pd.read_parquet(result.parts).sort_values("path", ignore_index=True)


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "predictions").iterdir())}


# ---------------------------------------------------------------- rows


def check_rows(rows: pd.DataFrame, model: LadaModel, root: Path, classes: tuple[str, ...] = ()) -> None:
    """The rows are what the model says of the same images, one by one."""
    expected = model.predict([root / path for path in rows["path"]], extra_classes=classes)
    assert rows["domain"].fillna("").tolist() == expected["domain"].fillna("").tolist()
    assert rows["class"].tolist() == expected["class"].tolist()
    np.testing.assert_allclose(rows["score"], expected["score"], atol=1e-6)


def test_rows_are_what_the_model_says(
    predict: Predict, streamed: Streamed, model: LadaModel, images: Path
) -> None:
    result = predict(Options(EXTRA))
    rows = table(result)
    assert list(rows.columns) == ["path", "domain", "class", "score", "seen"]
    assert rows["path"].tolist() == sorted(f"{'ab'[i % 2]}/{i:02d}.png" for i in range(IMAGES))
    check_rows(rows, model, images, EXTRA)
    assert rows["seen"].tolist() == rows["domain"].notna().tolist()
    assert len(parts(Path(result.folder))) > 1
    assert len(streamed.calls) == 1


def test_the_best_classes_and_flags(predict: Predict, streamed: Streamed, model: LadaModel) -> None:
    plain = table(predict(Options(EXTRA)))
    limit = float(np.median(plain["score"]))
    result = predict(Options(EXTRA, top_k=4, unknown_below=limit), fresh=True)
    rows = table(result)
    assert rows[list(plain.columns)].equals(plain)
    assert rows["unknown"].tolist() == (plain["score"] < limit).tolist()
    assert result.summary["flags"] == {"unknown": {"images": 15, "share": 0.5}}
    assert rows["domains"].str[0].fillna("").tolist() == plain["domain"].fillna("").tolist()
    assert rows["classes"].str[0].tolist() == plain["class"].tolist()
    for row in rows.itertuples():
        # Five classes are seen, two are not: the other side of the gate is not told.
        assert len(row.scores) == len(row.classes) == len(row.domains) == (4 if row.seen else 2)
        assert list(row.scores) == sorted(row.scores, reverse=True)
        assert sum(row.scores) <= 1 + 1e-6
        assert {domain is not None for domain in row.domains} == {row.seen}


def test_the_summary_counts(predict: Predict, streamed: Streamed, out: Path) -> None:
    result = predict(Options(EXTRA))
    rows, summary = table(result), json.loads((out / "summary.json").read_text())
    assert summary == result.summary
    assert [summary[key] for key in ("images", "predicted", "bad", "others")] == [IMAGES, IMAGES, 0, 1]
    counts = rows["domain"].value_counts()
    assert summary["domains"] == {name: int(counts.get(name, 0)) for name in ("pets", "wild")}
    assert summary["unseen"] == int(rows["domain"].isna().sum())
    assert summary["share_unseen"] == summary["unseen"] / IMAGES
    told = {(c["domain"], c["class"]): c["images"] for c in summary["classes"]}
    labels = zip(rows["domain"].where(rows["domain"].notna(), None), rows["class"], strict=True)
    assert told == pd.Series(list(labels)).value_counts().to_dict()
    assert (out / "bad_images.csv").read_text() == "path,reason\r\n"


def batch(images: Path, model: LadaModel) -> Batch:
    files = sorted(str(path) for path in images.rglob("*.png"))
    return RenderImages(model.spec.preprocess)({"image": np.arange(len(files)), "uri": np.array(files)})


def test_a_rows_bits_depend_on_that_row_alone(ray_local: None, model: LadaModel, images: Path) -> None:
    predictor = Predictor(Shipment.send(model), Options(EXTRA, top_k=3), threads=1)
    rows = batch(images, model)

    def told(which: list[int]) -> dict[int, Any]:
        row = predictor.work({name: column[which] for name, column in rows.items()})
        return dict(zip(row["images"], row["predictions"], strict=True))

    whole = told(list(range(IMAGES)))
    assert told([7]) == {7: whole[7]}
    assert told(list(range(IMAGES))[::-1]) == whole
    assert told([3, 29, 11] * 30) == {i: whole[i] for i in (3, 29, 11)}


# ---------------------------------------------------------------- bad images


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
        render = module.render_image

        def stumbling(uri: str, *rest: Any) -> Any:
            found = render(uri, *rest)
            return replace(found, unread="cannot be read: [Errno 5]") if uri.endswith("07.png") else found

        patch.setattr(module, "render_image", stumbling)
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


# ---------------------------------------------------------------- again, and again


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
    same = ("images", "predicted", "bad", "domains", "classes", "unseen", "share_unseen")
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


def test_chunks_follow_the_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(f"{i:05d}.png", 10, "1", 0.0) for i in range(20_000)]
    chunks = list(cut(entries))
    assert [e for chunk in chunks for e in chunk.entries] == entries
    sizes = [len(chunk.entries) for chunk in chunks]
    assert max(sizes) <= module.CHUNK_LIMIT
    assert 500 < np.mean(sizes) < 2000
    names = {chunk.name for chunk in chunks}
    more = sorted([*entries, Entry("07000b.png", 10, "1", 0.0)], key=lambda e: e.key)
    assert len({chunk.name for chunk in cut(more)} - names) <= 2
    touched = [replace(e, version="2") if e.key == "00003.png" else e for e in entries]
    assert len({chunk.name for chunk in cut(touched)} - names) == 1
    monkeypatch.setattr(module, "CHUNK_LIMIT", 100)
    assert max(len(chunk.entries) for chunk in cut(entries)) == 100
    assert list(cut([])) == []


# ---------------------------------------------------------------- what is refused


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
        "unknown_below: was none, now 0.5",
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

    monkeypatch.setattr(module, "load", unknown)
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


# ---------------------------------------------------------------- on the cluster


def with_own_weights(model: LadaModel, weights: Path) -> LadaModel:
    encoder = {**model.file.encoder, "spec": {**model.file.encoder["spec"], "pretrained": str(weights)}}
    return LadaModel(replace(model.file, encoder=encoder), model.packs)


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
    show(result, console)
    said = sink.getvalue()
    for line in ("pets", "unseen classes", "bad: 1 of 31 images", f"{out}/predictions"):
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


def test_weights_that_a_node_lacks_come_from_the_drivers(
    model: LadaModel, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "tiny.safetensors"
    weights.write_bytes(Path(str(model.spec.local_weights)).read_bytes())
    node = ray.get_runtime_context().get_node_id()
    assert read_on(node, weights) == weights.read_bytes()
    with pytest.raises(LadaError, match="FileNotFoundError"):
        read_on(node, tmp_path / "nowhere")

    shipment = Shipment.send(with_own_weights(model, weights))
    with shipment.received() as (spec, received):
        assert spec == shipment.spec
        assert received.class_names == model.class_names
    data = weights.read_bytes()
    weights.unlink()
    monkeypatch.setattr(module, "read_on", lambda node, file: data)
    with shipment.received() as (spec, _):
        assert Path(spec.pretrained).read_bytes() == data
        assert Path(spec.pretrained).name == "tiny.safetensors"
    assert not Path(spec.pretrained).exists()
    predictor = Predictor(shipment, Options(), threads=1)
    assert predictor.refused is None


def test_weights_that_are_nowhere_are_an_error_of_ours(
    model: LadaModel, tmp_path: Path, ray_local: None, images: Path
) -> None:
    predictor = Predictor(
        Shipment.send(with_own_weights(model, tmp_path / "gone.safetensors")), Options(), threads=1
    )
    (line,) = predictor(batch(images, model))["row"]
    assert "gone.safetensors" in json.loads(line)["error"]["arguments"][0]


def test_a_listing_reads_nothing(images: Path) -> None:
    listing = list_folder(str(images))
    assert (listing.images, listing.others, len(listing.chunks)) == (IMAGES, 1, 1)
    assert isinstance(listing.chunks[0], Chunk)
