"""Models: model.json as the truth, commits that only its owner can make, predictions against plain NumPy."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from lada_ray.errors import Conflict, InputError, IntegrityError, LostLease
from lada_ray.head import Prediction
from lada_ray.model import MODEL, LadaModel, ModelFile, commit, read_model_file
from lada_ray.pack import TaskPack
from lada_ray.store import LocalStore, Store, join, open_store

if TYPE_CHECKING:
    from conftest import TinyWorld

ENCODER = {"spec": {"pretrained": "openai"}, "fingerprint": "f", "prompt": "a {}."}
FILE = ModelFile(ENCODER, Prediction(100.0, 1.0, 5.5, "gated"), run="r", epoch=3)
D = 6


def make_pack(labels: Sequence[tuple[str, str]], parent: str | None = None, seed: int = 0) -> TaskPack:
    rng = np.random.default_rng(seed)
    classes = len(labels)
    tensors = {
        "text": rng.normal(size=(classes, D)).astype(np.float32),
        "memory": rng.normal(size=(classes, 2, D)).astype(np.float32) / 3,
        "mask": rng.integers(0, 2, (classes, 2)).astype(np.uint8) | np.array([1, 0], np.uint8),
    }
    return TaskPack.build(
        {"labels": [list(label) for label in labels], "config": {}, "samples": []}, parent, tensors
    )


# ---------------------------------------------------------------- model.json


def test_model_json_comes_back_as_it_was_written() -> None:
    file = replace(FILE, packs=("a", "b"), prompts={"pets": "größer {}."}, identity={"seed": 0})
    assert ModelFile.from_bytes(file.to_bytes(), "here") == file
    assert json.loads(file.to_bytes())["format"] == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff",
        b'{"format": 1}',
        FILE.to_bytes()[:-9],
        b'{"format": 1, "prediction": 3}',
    ],
)
def test_a_damaged_model_json_is_named(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^s3://here/model\.json is damaged: "):
        ModelFile.from_bytes(data, "s3://here/model.json")


def test_fields_of_another_version_are_refused() -> None:
    values = json.loads(FILE.to_bytes())
    with pytest.raises(IntegrityError, match="written by another version"):
        ModelFile.from_bytes(json.dumps({**values, "format": 2}).encode(), "here")
    with pytest.raises(IntegrityError, match="damaged"):
        ModelFile.from_bytes(json.dumps({**values, "surprise": 2}).encode(), "here")


def test_a_learner_of_a_newer_version_is_refused() -> None:
    values = json.loads(FILE.to_bytes())
    values["prediction"]["kind"] = "cl_lora"
    with pytest.raises(IntegrityError, match=r"^here was written by a newer version.*'cl_lora'.*; upgrade"):
        ModelFile.from_bytes(json.dumps(values).encode(), "here")
    # One of the time before there were several.
    del values["prediction"]["kind"]
    assert ModelFile.from_bytes(json.dumps(values).encode(), "here").prediction.kind == "lada"


# ---------------------------------------------------------------- commits


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> Store:
    place = tmp_path / "model" if request.param == "local" else join(s3, request.node.name)
    opened = open_store(place)
    opened.replace(MODEL, FILE.to_bytes(), None)
    return opened


FIRST = make_pack([("pets", "cat"), ("pets", "dog")])
SECOND = make_pack([("wild", "wolf")], FIRST.digest, seed=1)


def packs_of(store: Store) -> tuple[str, ...]:
    found = read_model_file(store)
    assert found is not None
    return found[0].packs


def test_commits_append(store: Store) -> None:
    commit(store, FIRST, {"pets": "a {}."}, epoch=3)
    commit(store, SECOND, {"wild": "one {}."}, epoch=3)
    found = read_model_file(store)
    assert found is not None
    assert found[0] == replace(
        FILE, packs=(FIRST.digest, SECOND.digest), prompts={"pets": "a {}.", "wild": "one {}."}
    )
    assert TaskPack.read(store, SECOND.digest).parent == FIRST.digest


def test_committing_twice_changes_nothing(store: Store) -> None:
    commit(store, FIRST, {"pets": "a {}."}, 3)
    commit(store, FIRST, {"pets": "a {}."}, 3)
    commit(store, SECOND, {"wild": "a {}."}, 3)
    commit(store, FIRST, {"pets": "a {}."}, 3)  # a worker thought dead
    assert packs_of(store) == (FIRST.digest, SECOND.digest)


@pytest.mark.parametrize("epoch", [2, 4])
def test_only_the_owner_commits(store: Store, epoch: int) -> None:
    with pytest.raises(LostLease, match=f"epoch 3, this one has {epoch}"):
        commit(store, FIRST, {"pets": "a {}."}, epoch)
    assert packs_of(store) == ()


def test_a_pack_follows_its_parent(store: Store) -> None:
    with pytest.raises(Conflict, match="the newest pack is not the parent"):
        commit(store, SECOND, {"wild": "a {}."}, 3)
    commit(store, FIRST, {"pets": "a {}."}, 3)
    with pytest.raises(Conflict, match="not the parent"):
        commit(store, make_pack([("other", "x")], None, seed=5), {"other": "a {}."}, 3)
    assert packs_of(store) == (FIRST.digest,)


def test_a_model_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="is gone"):
        commit(open_store(tmp_path), FIRST, {"pets": "a {}."}, 3)
    assert not (tmp_path / MODEL).exists()


class Intruder(LocalStore):
    """Somebody else replaces model.json between our reading and our writing it."""

    def __init__(self, root: str, theirs: ModelFile) -> None:
        super().__init__(root)
        self.theirs = theirs

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        self.write(key, self.theirs.to_bytes())
        return super().replace(key, data, expected)


def test_a_takeover_between_reading_and_writing_is_noticed(tmp_path: Path) -> None:
    open_store(tmp_path).replace(MODEL, FILE.to_bytes(), None)
    with pytest.raises(LostLease, match="epoch 4"):
        commit(Intruder(str(tmp_path), replace(FILE, epoch=4)), FIRST, {"pets": "a {}."}, 3)
    open_store(tmp_path).write(MODEL, FILE.to_bytes())
    with pytest.raises(Conflict):
        commit(Intruder(str(tmp_path), replace(FILE, packs=("other",))), FIRST, {"pets": "a {}."}, 3)


def test_a_write_whose_answer_was_lost_counts(tmp_path: Path) -> None:
    open_store(tmp_path).replace(MODEL, FILE.to_bytes(), None)
    theirs = replace(FILE, packs=(FIRST.digest,), prompts={"pets": "a {}."})
    commit(Intruder(str(tmp_path), theirs), FIRST, {"pets": "a {}."}, 3)
    assert packs_of(open_store(tmp_path)) == (FIRST.digest,)


# ---------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def model(learnt_run: tuple[TinyWorld, str]) -> LadaModel:
    return LadaModel.load(join(learnt_run[1], "model"))


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def with_own_weights(model: LadaModel, weights: Path) -> LadaModel:
    """The model with a copy of its encoder's weights elsewhere."""
    shutil.copy(str(model.spec.local_weights), weights)
    encoder = {**model.file.encoder, "spec": {**model.file.encoder["spec"], "pretrained": str(weights)}}
    return LadaModel(replace(model.file, encoder=encoder), model.packs)


def test_a_run_leaves_a_model(model: LadaModel, learnt_run: tuple[TinyWorld, str]) -> None:
    assert model.domains == ["pets", "wild"]
    expected = [("pets", "cat"), ("pets", "dog"), ("pets", "red fox"), ("wild", "dog"), ("wild", "wolf")]
    assert model.class_names == expected
    world, _ = learnt_run
    images = world.images(world.stream())
    tests = [(i, s) for i, x in enumerate(images.selections) for s in x.test]
    features = world.bank.fetch([images.hashes[s.uri] for _, s in tests], ["test"])[:, 0]
    truth = [s.label + 3 * i for i, s in tests]
    # The drawn features are far apart: a learnt model takes every image for what it is.
    assert model.predict_features(features).tolist() == truth


def test_predict_takes_paths_bytes_and_images(model: LadaModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    images: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        png(0),
        Image.open(io.BytesIO(png(0))),
        png(1),
    ]
    table = model.predict(images, extra_classes=("blue_whale",))
    assert list(table.columns) == ["domain", "class", "score"]
    assert len(table) == 5
    assert len(table.iloc[:4].drop_duplicates()) == 1
    assert ((table["score"] > 0) & (table["score"] <= 1)).all()

    features = model.encode(images)
    unseen = model.encoder.encode_text(["a photo of a blue whale."])
    names = [*model.class_names, (None, "blue_whale")]
    chosen = model.predict_features(features, unseen)
    assert list(zip(table["domain"], table["class"], strict=True)) == [names[j] for j in chosen]
    logits = model.logits(features, unseen).astype(np.float64)
    side = logits[:, :5] if chosen[0] < 5 else logits[:, 5:]
    softmax = np.exp(side - side.max(axis=1, keepdims=True))
    expected = softmax[0].max() / softmax[0].sum()
    assert table["score"][0] == pytest.approx(expected, abs=1e-6)


def test_predicting_nothing_gives_an_empty_table(model: LadaModel) -> None:
    assert model.predict([]).shape == (0, 3)


def test_every_image_that_cannot_be_read_is_listed(model: LadaModel, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(InputError) as refused:
        model.predict([png(), tmp_path / "text.png", tmp_path / "gone.png", b"", 3])  # type: ignore[list-item]
    assert len(refused.value.problems) == 4
    assert f"image 1 ({tmp_path / 'text.png'}): not an image" in str(refused.value)
    assert "image 3 (bytes): the file is empty" in str(refused.value)


def test_without_classes_there_is_nothing_to_predict(model: LadaModel) -> None:
    empty = LadaModel(replace(model.file, packs=()), [])
    with pytest.raises(InputError, match="nothing is learnt yet: give extra_classes"):
        empty.predict([png()])
    table = empty.predict([png()], extra_classes=("cat", "dog"))
    assert table["domain"].tolist() == [None]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_saved_model_needs_nothing_else(model: LadaModel, place: str, tmp_path: Path, s3: str) -> None:
    weights = tmp_path / "elsewhere.safetensors"
    own = with_own_weights(model, weights)
    target = str(tmp_path / "saved") if place == "local" else join(s3, "saved")
    own.save(target)
    weights.unlink()
    if place == "local":
        shutil.move(target, tmp_path / "moved")
        target = str(tmp_path / "moved")
    loaded = LadaModel.load(target)
    assert loaded.file.packs == model.file.packs
    assert np.array_equal(loaded.encode([png()]), model.encode([png()]))
    assert loaded.predict([png()]).equals(model.predict([png()]))
    again = tmp_path / "again"
    loaded.save(again)
    assert LadaModel.load(again).predict([png()]).equals(model.predict([png()]))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no model at {tmp_path}"):
        LadaModel.load(tmp_path)


def test_a_changed_history_is_refused(model: LadaModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    first, second = model.file.packs
    for packs in [(second, first), (second,), (first, first)]:
        (tmp_path / MODEL).write_bytes(replace(model.file, packs=packs).to_bytes())
        with pytest.raises(IntegrityError, match="does not follow the pack before it"):
            LadaModel.load(tmp_path)
    (tmp_path / MODEL).write_bytes(replace(model.file, packs=("0" * 64,)).to_bytes())
    with pytest.raises(IntegrityError, match="is incomplete"):
        LadaModel.load(tmp_path)


def test_other_weights_are_refused(model: LadaModel, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    own = with_own_weights(model, weights)
    tensors = load_file(weights)
    tensors["visual.proj"] = tensors["visual.proj"] + 1e-3
    save_file(tensors, weights)
    with pytest.raises(IntegrityError, match="is not the one this model was learnt with"):
        own.predict([png()])


class Bomb:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_nothing_that_is_loaded_can_run_code(model: LadaModel, tmp_path: Path, suffix: str) -> None:
    weights, trace = tmp_path / f"weights{suffix}", tmp_path / "trace"
    own = with_own_weights(model, weights)
    weights.write_bytes(pickle.dumps({"state_dict": Bomb(trace)}))
    own.save(tmp_path / "saved")
    packs = tmp_path / "saved" / "packs" / model.file.packs[0]
    with pytest.raises(InputError, match="weights"):
        LadaModel.load(tmp_path / "saved").predict([png()])
    (packs / "tensors.safetensors").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(IntegrityError):
        LadaModel.load(tmp_path / "saved")
    assert not trace.exists()
