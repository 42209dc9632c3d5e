"""Images, a calibrated model, and a stream without actors, for predicting folders."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lada_ray.calibrate import calibrate_pack
from lada_ray.calibration import Calibration
from lada_ray.console import Console
from lada_ray.features.extract import Batch
from lada_ray.model import LadaModel
from lada_ray.prediction import listing
from lada_ray.prediction import predict as module
from lada_ray.prediction.actor import RenderImages
from lada_ray.prediction.asked import Options
from lada_ray.prediction.predict import Predicted, predict_folder
from lada_ray.store import join

if TYPE_CHECKING:
    from tests.conftest import TinyWorld

IMAGES = 30
Predict = Callable[..., Predicted]


@pytest.fixture(scope="session")
def model(learnt_run: tuple[TinyWorld, str]) -> LadaModel:
    """The tiny model, calibrated."""
    world, uri = learnt_run[0], join(learnt_run[1], "model")
    plain, plan = LadaModel.load(uri), world.plan(world.config("learnt", method={"epochs": 15}))
    packs = tuple(calibrate_pack(plan, task, uri, plain.file.packs) for task in plan.tasks)
    return LadaModel(plain.file, plain.packs, calibration=Calibration(packs))


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
        self,
        tasks: Sequence[pd.DataFrame],
        read: Any,
        actor: Any,
        arguments: Any,
        pool: Any,
        rows: int,
    ) -> Iterator[dict[str, Any]]:
        table = pd.concat(tasks)
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
    monkeypatch.setattr(listing, "CHUNK_IMAGES", 7)
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


def batch(images: Path, model: LadaModel) -> Batch:
    """Rows of pixels of all images of a folder, as one chunk."""
    files = sorted(str(path) for path in images.rglob("*.png"))
    return RenderImages(model.spec.preprocess)(
        {"image": np.arange(len(files)), "chunk": np.zeros(len(files), np.int64), "uri": np.array(files)}
    )


def with_own_weights(model: LadaModel, weights: Path) -> LadaModel:
    encoder = {**model.file.encoder, "spec": {**model.file.encoder["spec"], "pretrained": str(weights)}}
    return LadaModel(replace(model.file, encoder=encoder), model.packs)
