"""Rendering and encoding gaps: what an unusable image costs, and what a kill costs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from PIL import Image
from safetensors.numpy import load_file, save_file

from lada_ray.domains import Domain
from lada_ray.encoder import EncoderSpec, load_encoder
from lada_ray.encoder.clip import BATCH
from lada_ray.errors import InputError, IntegrityError, LadaError
from lada_ray.features import extract as module
from lada_ray.features.bank import FeatureBank
from lada_ray.features.extract import (
    CPU_VIEWS,
    MOST_VIEWS,
    EncodeViews,
    Extraction,
    Gap,
    Pool,
    RenderViews,
    encode_views,
    extract,
)
from lada_ray.features.parts import Part, PartTable
from lada_ray.store import join, open_store
from lada_ray.views import Preprocess, decode, render

VIEWS = ("test", "crop_flip/0", "crop_flip/1")


def gap(path: str | Path, views: tuple[str, ...] = VIEWS) -> Gap:
    return Gap(str(path), hashlib.sha256(Path(path).read_bytes()).hexdigest(), views)


def batch(gaps: list[Gap]) -> dict[str, np.ndarray]:
    return {
        "uri": np.array([g.uri for g in gaps]),
        "sha256": np.array([g.sha256 for g in gaps]),
        "views": np.array([" ".join(g.views) for g in gaps]),
    }


def rendered(gaps: list[Gap], spec: EncoderSpec) -> dict[str, np.ndarray]:
    return RenderViews(spec.preprocess)(batch(gaps))


def draw(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_every_missing_view_is_rendered_as_uint8(tmp_path: Path, tiny_encoder: EncoderSpec) -> None:
    g = gap(draw(tmp_path / "a.png", 0))
    rows = rendered([g], tiny_encoder)
    assert (rows["pixels"].shape, rows["pixels"].dtype) == ((3, 32, 32, 3), np.uint8)
    assert rows["view"].tolist() == list(VIEWS)
    image = decode(Path(g.uri).read_bytes())
    for view, pixels in zip(VIEWS, rows["pixels"], strict=True):
        assert np.array_equal(pixels, render(image, g.sha256, view, tiny_encoder.preprocess))


def test_an_image_that_cannot_be_used_costs_one_row_with_its_reason(
    tmp_path: Path, tiny_encoder: EncoderSpec
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    changed, gone = draw(tmp_path / "changed.png", 0), draw(tmp_path / "gone.png", 1)
    gaps = [gap(tmp_path / "text.png"), gap(changed), gap(gone), gap(draw(tmp_path / "good.png", 2))]
    draw(changed, 3)
    gone.unlink()
    rows = rendered(gaps, tiny_encoder)
    assert rows["sha256"].tolist() == [gaps[0].sha256, gaps[1].sha256, gaps[2].sha256, *[gaps[3].sha256] * 3]
    assert rows["reason"].tolist() == ["not an image that Pillow can read", *[""] * 5]
    unread = rows["unread"].tolist()
    assert unread[1] == "cannot be read: the file changed while the run was reading it; start again"
    assert unread[2].startswith("cannot be read: [Errno 2]")
    assert [unread[0], *unread[3:]] == [""] * 4


@pytest.fixture
def bank(tmp_path: Path, tiny_key: str) -> FeatureBank:
    return FeatureBank(open_store(tmp_path / "features"), tiny_key, 32)


def test_the_actor_writes_a_part_and_says_so(
    tmp_path: Path, tiny_encoder: EncoderSpec, bank: FeatureBank
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    bad, good = gap(tmp_path / "text.png"), gap(draw(tmp_path / "good.png", 0))
    lost = Gap(str(tmp_path / "gone.png"), "0" * 64, VIEWS)
    actor = EncodeViews(tiny_encoder, bank, "r", threads=1)
    (line,) = actor(rendered([bad, good, lost], tiny_encoder))["row"]
    row = json.loads(line)
    assert list(row["bad"]) == [bad.sha256]
    assert list(row["unread"]) == [lost.uri]
    assert row["images"] == 5
    bank.table.enter([Part(**row["part"])])
    pixels = rendered([good], tiny_encoder)["pixels"]
    expected = load_encoder(tiny_encoder, "cpu").encode_pixels(pixels)
    assert np.array_equal(bank.fetch([good.sha256], VIEWS)[0], expected)


def test_features_that_are_not_finite_are_this_runs_bad_images(
    tmp_path: Path, tiny_encoder: EncoderSpec, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = EncodeViews(tiny_encoder, bank, "r", threads=1)
    a, b = gap(draw(tmp_path / "a.png", 0), VIEWS[:1]), gap(draw(tmp_path / "b.png", 1), VIEWS[:1])
    features = np.array([[np.nan] * 32, [1.0] * 32], np.float32)
    monkeypatch.setattr(actor.encoder, "encode_pixels", lambda pixels: features)
    row = json.loads(actor(rendered([a, b], tiny_encoder))["row"][0])
    # Another encoder may well make something of these bytes.
    assert (row["bad"], row["unread"]) == ({}, {a.uri: "the encoder gives NaN or infinite features"})
    assert row["part"]["rows"] == 1


def test_the_same_batch_again_is_the_same_part(
    tmp_path: Path, tiny_encoder: EncoderSpec, bank: FeatureBank
) -> None:
    rows = rendered([gap(draw(tmp_path / "a.png", 0))], tiny_encoder)
    actor = EncodeViews(tiny_encoder, bank, "r", threads=1)
    parts = [json.loads(actor(rows)["row"][0])["part"] for _ in range(2)]
    assert parts[0] == parts[1]


def test_without_gaps_nothing_starts(tiny_encoder: EncoderSpec, bank: FeatureBank) -> None:
    assert extract([], tiny_encoder, bank, Pool(1, 1, 0), "r", lambda a, b: None) == Extraction()


def encoder_actors() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_read_tasks_are_of_whole_images_and_at_most_so_many_views() -> None:
    gaps = [Gap(f"{i:03}", f"sha-{i}", tuple(f"crop_flip/{v}" for v in range(9))) for i in range(100)]
    gaps.append(Gap("alone", "sha-alone", tuple(f"crop_flip/{v}" for v in range(300))))
    tasks = module._read_tasks(gaps[::-1], 256)
    assert [sum(len(views.split()) for views in task["views"]) for task in tasks] == [252, 252, 252, 144, 300]
    assert [uri for task in tasks for uri in task["uri"]] == [gap.uri for gap in gaps]


def test_calls_are_of_fewer_large_images_on_a_cpu() -> None:
    assert [encode_views("cpu", size) for size in (32, 64, 96, 112, 224, 448)] == [512, 512, 192, 128, 64, 64]
    assert encode_views("cuda", 224) == 512
    # None of them leaves a part of the encoder's batch empty.
    assert (CPU_VIEWS % BATCH["cpu"], MOST_VIEWS % BATCH["cuda"]) == (0, 0)


def test_a_killed_encoder_loses_and_doubles_nothing(
    tiny_domains: tuple[Domain, ...],
    tiny_encoder: EncoderSpec,
    tiny_key: str,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    ray_local: None,
) -> None:
    bank = FeatureBank(open_store(join(s3, "killed")), tiny_key, 32)
    monkeypatch.setattr(module, "encode_views", lambda device, size: 8)
    gaps = [gap(sample.uri, ("test", "crop_flip/0")) for domain in tiny_domains for sample in domain.train]
    told: list[tuple[int, int]] = []
    killed: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if not killed:
            for process in encoder_actors():
                os.kill(process.pid, signal.SIGKILL)
                killed.append((process.pid, done))

    result = extract(gaps, tiny_encoder, bank, Pool(1, 1, 0), "r", progress)
    assert len(killed) == 1
    assert killed[0][1] < 108
    assert (result.added, result.bad, result.unread) == (108, {}, {})
    assert told[-1] == (108, 108)
    assert bank.table.added_by("r") == 108
    features = bank.fetch([g.sha256 for g in gaps], ["test", "crop_flip/0"])
    assert np.isfinite(features).all()
    # What the dead actor had written but not reported is the same part as its successor's.
    assert bank.table.adopt() == 0
    assert set(result.seconds) == {"read", "decode", "encode"}
    assert min(result.seconds.values()) > 0


def test_what_is_decoded_while_encoders_start_is_no_start_up(
    monkeypatch: pytest.MonkeyPatch, ray_local: None, tmp_path: Path
) -> None:
    def row(began: float, rendered: float, decode: float) -> dict[str, Any]:
        seconds = {"read": 0.1, "decode": decode, "encode": 1.0}
        return {"part": None, "bad": {}, "unread": {}, "seconds": seconds, "images": 1, "began": began,
                "rendered": rendered}  # fmt: skip

    now = time.time()
    # The first encoder begins after 10 s; by then one of three batches is decoded and one is being: 3 s of a core.
    rows = [row(now + 10, now + 4, 1.9), row(now + 10.6, now + 10.5, 0.9), row(now + 12, now + 11, 0.4)]
    monkeypatch.setattr(module, "_pipeline", lambda *_: iter(rows))
    bank = FeatureBank(open_store(tmp_path), "key", 8)
    anything: Any = None
    gaps = [Gap(f"{i}.png", f"{i}", ("test",)) for i in range(3)]
    done = extract(gaps, anything, bank, Pool(1, 1, 0), "r", lambda done, total: None)
    assert done.start_s == pytest.approx(10 - 3 / ray.cluster_resources()["CPU"], abs=0.5)
    assert done.seconds == pytest.approx({"read": 0.3, "decode": 3.2, "encode": 3.0})


def test_waiting_for_a_file_that_cannot_be_read_is_reading(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: EncoderSpec
) -> None:
    def fail(uri: str) -> bytes:
        time.sleep(0.1)
        raise OSError("gone")

    monkeypatch.setattr(module, "read_image", fail)
    made = module.render_image("a.png", ["test"], tiny_encoder.preprocess)
    assert "gone" in made.unread
    assert made.read_s >= 0.1 > made.decode_s


def test_whatever_rendering_stumbles_over_costs_the_image(
    tmp_path: Path, tiny_encoder: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = gap(draw(tmp_path / "bad.png", 0)), gap(draw(tmp_path / "good.png", 1))

    def stumbling(image: Image.Image, sha: str, view: str, preprocess: Preprocess) -> np.ndarray:
        if sha == bad.sha256 and view == VIEWS[1]:
            raise SystemError("tile cannot extend outside image")
        return render(image, sha, view, preprocess)

    monkeypatch.setattr(module, "render", stumbling)
    rows = rendered([bad, good], tiny_encoder)
    assert rows["sha256"].tolist() == [bad.sha256, *[good.sha256] * 3]
    said = "cannot be rendered: SystemError: tile cannot extend outside image"
    assert rows["unread"].tolist() == [said, "", "", ""]
    assert rows["reason"].tolist() == [""] * 4

    def no_room(data: bytes) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(module, "decode", no_room)
    assert rendered([good], tiny_encoder)["unread"].tolist() == ["cannot be rendered: MemoryError: "]


def test_an_object_that_storage_does_not_give_costs_the_image(
    tmp_path: Path, tiny_encoder: EncoderSpec, s3: str
) -> None:
    good = gap(draw(tmp_path / "good.png", 1), VIEWS[:1])
    odd = Gap(f"{s3}/a//b.png", "0" * 64, VIEWS)
    nowhere = Gap("s3://there-is-no-such-bucket/a.png", "0" * 64, VIEWS)
    rows = rendered([odd, nowhere, good], tiny_encoder)
    assert [said.partition(":")[0] for said in rows["unread"].tolist()] == ["cannot be read"] * 2 + [""]
    assert "no such bucket" in rows["unread"][1]


def other_weights(tiny_encoder: EncoderSpec, folder: Path) -> EncoderSpec:
    tensors = load_file(tiny_encoder.pretrained)
    save_file(
        {name: 2 * t if name == "visual.proj" else t for name, t in tensors.items()}, folder / "w.safetensors"
    )
    return replace(tiny_encoder, pretrained=str(folder / "w.safetensors"))


def test_a_node_with_other_weights_adds_nothing_and_is_named(
    tmp_path: Path, tiny_encoder: EncoderSpec, bank: FeatureBank, ray_local: None
) -> None:
    gaps = [gap(draw(tmp_path / "a.png", 0))]
    spec = other_weights(tiny_encoder, tmp_path)
    with pytest.raises(IntegrityError, match=r"on the node .*w\.safetensors is another encoder") as error:
        extract(gaps, spec, bank, Pool(1, 1, 0), "r", lambda a, b: None)
    assert type(error.value) is IntegrityError
    assert list(bank.store.list()) == []


def test_an_encoder_that_cannot_be_loaded_says_so_itself(
    tmp_path: Path, tiny_encoder: EncoderSpec, bank: FeatureBank
) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    spec = replace(tiny_encoder, pretrained=str(tmp_path / "w.safetensors"))
    actor = EncodeViews(spec, bank, "r", threads=1)
    row = json.loads(actor(rendered([gap(draw(tmp_path / "a.png", 0))], tiny_encoder))["row"][0])
    with pytest.raises(InputError) as error:
        module.raise_stated(row)
    assert error.value.heading == "The encoder cannot be loaded"
    assert str(tmp_path / "w.safetensors") in error.value.problems[0]


def test_a_bank_that_cannot_be_written_says_so_itself(
    tmp_path: Path, tiny_encoder: EncoderSpec, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Part:
        raise LadaError("/features cannot be written: No space left on device")

    monkeypatch.setattr(FeatureBank, "write", full)
    actor = EncodeViews(tiny_encoder, bank, "r", threads=1)
    row = json.loads(actor(rendered([gap(draw(tmp_path / "a.png", 0))], tiny_encoder))["row"][0])
    with pytest.raises(LadaError, match=r"^/features cannot be written: No space left on device$"):
        module.raise_stated(row)


def test_the_encoder_is_on_the_device_that_was_given(
    tiny_encoder: EncoderSpec, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encoder = load_encoder(tiny_encoder, "cpu")
    monkeypatch.setattr(module, "load_encoder", lambda spec, device: asked.append(device) or encoder)
    EncodeViews(tiny_encoder, bank, "r", 1)
    EncodeViews(tiny_encoder, bank, "r", 1, "cuda")
    assert asked == ["cpu", "cuda"]


@pytest.mark.parametrize("broken", [False, True])
def test_the_manifest_is_written_now_and_then_and_at_the_end(
    tiny_encoder: EncoderSpec, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def pipeline(*_: object) -> Iterator[dict[str, object]]:
        for i in range(20):
            now[0] += 0.1
            part = bank.write([f"{i}"], ["test"], np.full((1, 32), i, np.float32), "r")
            said = {"bad": {}, "unread": {}, "seconds": {"read": 0.0, "decode": 0.0}, "images": 1}
            yield {**said, "part": asdict(part), "began": 0.0, "rendered": 0.0}
        if broken:
            raise KeyboardInterrupt

    written: list[int] = []
    enter = PartTable.enter
    monkeypatch.setattr(
        PartTable, "enter", lambda self, parts: (written.append(len(parts)), enter(self, parts))[1]
    )
    monkeypatch.setattr(module, "_pipeline", pipeline)
    gaps = [Gap("/x", "x", VIEWS)]
    if broken:
        with pytest.raises(KeyboardInterrupt):
            extract(gaps, tiny_encoder, bank, Pool(1, 1, 0), "r", lambda a, b: None)
    else:
        extract(gaps, tiny_encoder, bank, Pool(1, 1, 0), "r", lambda a, b: None)
    assert len(written) <= 4
    assert sum(written) == bank.size().views == 20


@pytest.mark.accept
def test_neither_pixels_nor_features_pass_through_the_driver(
    tmp_path: Path,
    tiny_encoder: EncoderSpec,
    bank: FeatureBank,
    monkeypatch: pytest.MonkeyPatch,
    ray_local: None,
) -> None:
    """What it handles grows by an image's names alone: a view has 3 072 bytes of pixels and 128 of features."""
    from ray import cloudpickle

    handled = [0]
    fetch, put = ray.get, ray.put

    def counted(value: Any) -> Any:
        handled[0] += len(cloudpickle.dumps(value))
        return value

    monkeypatch.setattr(ray, "get", lambda *a, **k: counted(fetch(*a, **k)))
    monkeypatch.setattr(ray, "put", lambda value, *a, **k: put(counted(value), *a, **k))

    def volume(images: int, views: tuple[str, ...]) -> int:
        handled[0] = 0
        gaps = [gap(draw(tmp_path / f"{images}-{len(views)}-{i}.png", i), views) for i in range(images)]
        extract(gaps, tiny_encoder, bank, Pool(1, 0.5, 0), "r", lambda done, total: None)
        return handled[0]

    few, more, wide = volume(32, VIEWS[:1]), volume(256, VIEWS[:1]), volume(256, VIEWS)
    assert 0 < more - few < 224 * 400
    assert 0 < wide - more < 2 * 256 * 40
