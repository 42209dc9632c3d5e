"""Requests to a model: the same answers as `LadaModel.predict`, and nothing that a request can harm."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lada_ray.encoder import load_encoder
from lada_ray.errors import InputError
from lada_ray.head import Prediction
from lada_ray.model import LadaModel, ModelFile
from lada_ray.pack import TaskPack
from lada_ray.serving import COLUMNS, Limits, Service

if TYPE_CHECKING:
    from pathlib import Path

    from lada_ray.encoder import EncoderSpec

LABELS = [("pets", "cat"), ("pets", "dog"), ("pets", "red fox"), ("pets", "hen")]
EXTRA = ["zebra crossing", "tram", "lighthouse"]


@pytest.fixture(scope="module")
def model(tiny_encoder: EncoderSpec) -> LadaModel:
    """A model of one pack whose text lies such that the gate takes some images for seen, some for unseen."""
    encoder = load_encoder(tiny_encoder, "cpu")
    info = encoder.info()
    file = ModelFile(
        {"spec": tiny_encoder.to_json(), "fingerprint": info.fingerprint, "prompt": "a photo of a {}."},
        Prediction(100.0, 1.0, 5.5, "gated"),
    )
    unit = normalised(LadaModel(file, [], encoder).encode(pictures(40)))
    mean = unit.mean(axis=0)
    along = np.linalg.svd(unit - mean)[2][0]
    along -= along @ mean / (mean @ mean) * mean  # as many images on this side as on that
    extra = normalised(encoder.encode_text([f"a photo of a {name}." for name in EXTRA])).mean(axis=0)
    noise = np.random.default_rng(0).normal(size=(len(LABELS), info.width))
    text = extra + 2 * along + 0.01 * noise
    memory = unit[: len(LABELS) * 2].reshape(len(LABELS), 2, -1)
    tensors = {
        "text": text.astype(np.float32),
        "memory": memory,
        "mask": np.ones((len(LABELS), 2), np.uint8),
    }
    identity = {"labels": [list(label) for label in LABELS], "config": {}, "samples": []}
    return LadaModel(file, [TaskPack.build(identity, None, tensors)], encoder)


@pytest.fixture(scope="module")
def service(model: LadaModel) -> Service:
    return Service(model)


def normalised(features: Any) -> Any:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def pictures(number: int, seed: int = 1) -> list[bytes]:
    rng = np.random.default_rng(seed)
    colours = rng.uniform(0, 255, (number, 1, 1, 3)) * rng.uniform(0, 1, (number, 40, 48, 1))
    return [encoded(Image.fromarray(pixels.astype(np.uint8))) for pixels in colours]


def test_answers_are_those_of_predict(service: Service, model: LadaModel) -> None:
    images = pictures(150)  # three chunks
    for extra in ((), EXTRA):
        found = service.predict(images, extra)
        expected = model.predict(images, extra)
        assert list(found.columns) == list(COLUMNS)
        assert list(found["image"]) == list(range(150))
        assert set(found["rank"]) == {1}
        assert list(found["class"]) == list(expected["class"])
        assert [d if isinstance(d, str) else None for d in expected["domain"]] == list(found["domain"])
        np.testing.assert_array_equal(found["score"].astype(np.float32), expected["score"])
    sides = found["domain"].isna()
    assert 0 < sides.sum() < 150  # both sides of the gate were taken


def test_the_best_k_stand_on_the_chosen_side_of_the_gate(service: Service, model: LadaModel) -> None:
    images = pictures(40)
    found = service.predict(images, EXTRA, top_k=4)
    text = model.encoder.encode_text([f"a photo of a {name}." for name in EXTRA])
    features = model.encode(images)
    logits = model.logits(features, text).astype(np.float64)
    chosen = model.predict_features(features, text)
    names = [name for _, name in LABELS] + EXTRA
    for i in range(40):
        group = found[found["image"] == i]
        side = slice(0, 4) if chosen[i] < 4 else slice(4, 7)
        own = logits[i, side]
        order = np.argsort(-own)
        probability = np.exp(own - own.max()) / np.exp(own - own.max()).sum()
        assert list(group["class"]) == [names[side][j] for j in order]
        assert list(group["rank"]) == list(range(1, len(own) + 1))
        np.testing.assert_allclose(group["score"].astype(float), probability[order], rtol=1e-5)
    assert set(found.groupby("image").size()) == {3, 4}
    first = service.predict(images, EXTRA)
    assert list(found[found["rank"] == 1]["class"]) == list(first["class"])


@pytest.mark.parametrize(("fusion", "kind"), [("additive", "lada"), ("gated", "zero_shot")])
def test_without_a_gate_the_best_k_are_those_of_all_classes(model: LadaModel, fusion: Any, kind: str) -> None:
    prediction = Prediction(100.0, 1.0, 5.5, fusion, kind)
    other = LadaModel(ModelFile(model.file.encoder, prediction), model.packs, model.encoder)
    found = Service(other).predict(pictures(3), EXTRA, top_k=100)
    assert list(found.groupby("image").size()) == [7] * 3
    assert list(found.groupby("image")["score"].sum()) == pytest.approx([1.0] * 3, abs=1e-5)


def bomb() -> bytes:
    return encoded(Image.new("1", (20_000, 20_000)))


def postscript() -> bytes:
    return encoded(Image.new("RGB", (9, 9)), "EPS")


BAD: list[tuple[str, Callable[[], Any], str]] = [
    ("nothing", lambda: b"", "not an image of these formats: JPEG, PNG"),
    ("noise", lambda: b"x" * 999, "not an image of these formats"),
    ("cut short", lambda: pictures(1)[0][:2000], "truncated|OSError|SyntaxError"),
    ("too many pixels", bomb, r"too large"),
    ("too many bytes", lambda: b"x" * 20_000_001, "too large: 20000001 bytes, at most 20000000 are taken"),
    ("too long a text", lambda: "x" * 30_000_001, "too large: 30000001 bytes"),
    ("elongated", lambda: encoded(Image.new("L", (5000, 5))), "too elongated"),
    ("runs Ghostscript", postscript, "not an image of these formats"),
    ("a path", lambda: __file__, "not base64: .* paths and URIs are not opened"),
    ("a URI", lambda: "file:///etc/hosts", "not base64"),
    ("a path of bytes", lambda: __file__.encode(), "not an image of these formats"),
    ("a path that is base64", lambda: "/etc/hosts/x", "not an image of these formats"),
    ("missing", lambda: None, "nor base64 of them, but NoneType"),
    ("a number", lambda: 3.5, "but float"),
]


@pytest.mark.parametrize(("make", "why"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_image_costs_its_row_alone(service: Service, make: Callable[[], Any], why: str) -> None:
    good = pictures(2)
    found = service.predict([good[0], make(), good[1]], top_k=2)
    assert list(found["image"]) == [0, 0, 1, 2, 2]
    bad = found.iloc[2]
    assert (bad["rank"], bad["domain"], bad["class"], bad["score"]) == (1, None, None, None)
    assert re.search(why, bad["error"]), bad["error"]
    assert list(found["error"]) == [None, None, bad["error"], None, None]
    alone = service.predict(good, top_k=2)
    assert list(alone["class"]) == list(found["class"].dropna())
    json.dumps(found.to_dict(orient="records"), allow_nan=False)


def test_no_bytes_but_those_of_the_request_are_read(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(pictures(1)[0])
    asked = [str(secret), f"file://{secret}", str(secret).encode(), secret]
    with monkeypatch.context() as patch:
        patch.setattr("lada_ray.model.read_bytes", pytest.fail)
        found = service.predict(asked)
    assert found["class"].isna().all()


def test_missing_calibration_is_told(model: LadaModel) -> None:
    with pytest.warns(UserWarning, match="1 of the model's 1 packs are not calibrated"):
        Service(model)
    with pytest.warns(UserWarning, match="scores are at temperature 1"):
        model.predict(pictures(1))


def test_base64_with_line_breaks_is_read(service: Service) -> None:
    image = pictures(1)[0]
    texts = [base64.b64encode(image).decode(), base64.encodebytes(image).decode()]
    found = service.predict([image, *texts, bytearray(image), memoryview(image)])
    assert found["error"].isna().all()
    assert found["score"].nunique() == 1


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_usual_formats_are_read(service: Service, kind: str) -> None:
    assert service.predict([encoded(Image.new("RGB", (40, 30), "teal"), kind)])["error"][0] is None


def test_sixteen_bits_are_read_as_in_training(service: Service, model: LadaModel) -> None:
    grey = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    image = encoded(Image.fromarray(grey))
    assert service.predict([image])["score"][0] == np.float32(model.predict([image])["score"][0])


def test_requests_beyond_the_limits_are_refused_with_all_problems(model: LadaModel) -> None:
    strict = Service(model, Limits(images=2, extra_classes=2, name_length=5, top_k=3))
    with pytest.raises(InputError) as refused:
        strict.predict(pictures(3), ["a", "bcdefg", " "], top_k=0)
    text = str(refused.value)
    for part in (
        "3 images: send at most 2",
        "3 names, at most 2",
        "longer than 5",
        "top_k: 0 is not in 1..3",
    ):
        assert part in text
    assert len(strict.predict(pictures(2), top_k=3)) == 6


def test_no_images_give_no_rows(service: Service) -> None:
    found = service.predict([])
    assert (len(found), list(found.columns)) == (0, list(COLUMNS))


def test_without_packs_extra_classes_are_needed(model: LadaModel) -> None:
    empty = Service(LadaModel(model.file, [], model.encoder))
    with pytest.raises(InputError, match="nothing is learnt yet"):
        empty.predict(pictures(1))
    assert set(empty.predict(pictures(2), ["cat"])["class"]) == {"cat"}


def test_requests_from_many_threads_are_answered_one_at_a_time(model: LadaModel) -> None:
    service, images, inside = Service(model), pictures(6), []
    real = service._encoder.encode_pixels
    lock = threading.Lock()

    class Watched:
        def encode_pixels(self, pixels: Any) -> Any:
            assert lock.acquire(blocking=False)
            inside.append(len(pixels))
            features = real(pixels)
            lock.release()
            return features

    service._encoder = Watched()  # type: ignore[assignment]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: service.predict([images[i]])["class"][0], range(6)))
    assert answers == list(model.predict(images)["class"])
    assert inside == [1] * 6


def test_text_of_extra_classes_is_encoded_once(model: LadaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    service, asked = Service(model), []
    real = model.encode_classes

    def ask(names: Any) -> Any:
        asked.append(names)
        return real(names)

    monkeypatch.setattr(model, "encode_classes", ask)
    for _ in range(3):
        service.predict(pictures(1), EXTRA)
    assert asked == [tuple(EXTRA)]
