"""A model as an MLflow pyfunc: no pickle, nothing but its own folder, and really served."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grimp
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import load_model
from PIL import Image

from lada_ray import tracking
from lada_ray.config import EncoderConfig
from lada_ray.encoder import resolve_encoder
from lada_ray.encoder.resolve import DEMO, SHIPPED, SHIPPED_MODEL
from lada_ray.head import Prediction
from lada_ray.model import LadaModel, ModelFile
from lada_ray.tracking import PublishedVersion, project
from lada_ray.tracking.pyfunc import REQUIRED, requirements, save_pyfunc

if TYPE_CHECKING:
    from tests.conftest import TinyWorld

EXTRA = ["zebra crossing", "lighthouse"]


def picture(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).uniform(0, 255, (40, 48, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def learnt(learnt_run: tuple[TinyWorld, str]) -> LadaModel:
    return LadaModel.load(f"{learnt_run[1]}/model")


@pytest.fixture(scope="module")
def folder(learnt: LadaModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pyfunc of a learnt model, made in a folder that has a project of its own."""
    here = tmp_path_factory.mktemp("somewhere")
    (here / "uv.lock").write_text("version = 1")
    (here / "pyproject.toml").write_text('[project]\nname = "another"')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        save_pyfunc(learnt.save, here / "pyfunc")
    assert {path.name for path in here.iterdir()} == {"uv.lock", "pyproject.toml", "pyfunc"}
    return here / "pyfunc"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        patch.setattr(sys, "path", list(sys.path))
        yield load_model(str(folder))


def test_the_folder_has_all_it_needs_and_no_pickle(folder: Path, learnt: LadaModel) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "served.py", "artifacts/model/model.json", "code/lada_ray/serving.py"} <= files
    assert "artifacts/model/encoder/tiny.safetensors" in files
    assert {f"artifacts/model/packs/{pack.digest}/pack.json" for pack in learnt.packs} <= files
    kinds = {path.rpartition(".")[2] for path in files}
    assert kinds == {"MLmodel", "json", "py", "safetensors", "txt", "yaml"}
    assert not [path for path in files if path.startswith("code/lada_ray/encoders/")]
    code = [path for path in files if path.startswith("code/")]
    assert len(code) < 70
    assert sum((folder / path).stat().st_size for path in code) < 500_000


def test_the_folder_has_every_module_that_serving_imports(folder: Path) -> None:
    graph = grimp.build_graph("lada_ray", cache_dir=None)
    needed = {"lada_ray", "lada_ray.serving", *graph.find_upstream_modules("lada_ray.serving")}
    for module in needed:
        path = folder / "code" / Path(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module
    assert len(needed) > 30


def test_requirements_are_pinned_to_what_runs_here(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text().split()
    assert lines == requirements()
    assert [line.partition("==")[0] for line in lines] == list(REQUIRED)
    assert not [line for line in lines if "+" in line or line.startswith(("ray", "lada"))]


def test_the_signature_says_what_a_request_holds(folder: Path) -> None:
    said = yaml.safe_load((folder / "MLmodel").read_text())
    assert json.loads(said["signature"]["inputs"]) == [{"type": "binary", "name": "image", "required": True}]
    assert [one["name"] for one in json.loads(said["signature"]["params"])] == ["extra_classes", "top_k"]
    assert said["flavors"]["python_function"]["loader_module"] == "mlflow.pyfunc.loaders.code_model"


def test_the_shipped_encoder_comes_along(tmp_path: Path) -> None:
    spec = resolve_encoder(EncoderConfig(model=SHIPPED_MODEL, pretrained=DEMO), "fp32")
    encoder = {"spec": spec.to_json(), "fingerprint": "f", "prompt": "a {}."}
    file = ModelFile(encoder, Prediction(100.0, 1.0, 5.5, "gated"))
    weights = (SHIPPED / f"{SHIPPED_MODEL}.safetensors").read_bytes()
    save_pyfunc(LadaModel(file, []).save, tmp_path / "saved")
    assert (tmp_path / f"saved/artifacts/model/encoder/{SHIPPED_MODEL}.safetensors").read_bytes() == weights
    assert not (tmp_path / "saved/code/lada_ray/encoders").exists()

    def by_name(path: Path) -> None:
        path.mkdir()
        (path / "model.json").write_bytes(file.to_bytes())

    save_pyfunc(by_name, tmp_path / "named")
    assert (tmp_path / f"named/code/lada_ray/encoders/{SHIPPED_MODEL}.safetensors").read_bytes() == weights


def test_the_answers_are_those_of_the_model(loaded: Any, learnt: LadaModel) -> None:
    images = [picture(i) for i in range(3)]
    expected = learnt.predict(images, EXTRA)
    found = loaded.predict(pd.DataFrame({"image": images}), params={"extra_classes": EXTRA})
    assert list(found["class"]) == list(expected["class"])
    np.testing.assert_allclose(found["score"].astype(float), expected["score"], rtol=1e-6)
    texts = [base64.b64encode(image).decode() for image in images]
    assert loaded.predict(pd.DataFrame({"image": texts}), params={"extra_classes": EXTRA}).equals(found)
    assert loaded.predict([{"image": image} for image in images], params={"extra_classes": EXTRA}).equals(
        found
    )
    best = loaded.predict(pd.DataFrame({"image": images}), params={"top_k": 5})
    assert list(best["rank"]) == [1, 2, 3, 4, 5] * 3
    assert list(best[best["rank"] == 1]["class"]) == list(learnt.predict(images)["class"])


def test_a_bad_image_costs_its_row(loaded: Any) -> None:
    found = loaded.predict(pd.DataFrame({"image": [picture(), b"none", "/etc/hosts", None]}))
    assert list(found["error"].isna()) == [True, False, False, False]
    assert list(found["class"].isna()) == [False, True, True, True]


def test_what_is_refused_is_the_clients_mistake(loaded: Any) -> None:
    with pytest.raises(MlflowException, match=r"top_k: 0 is not in 1\.\.100") as refused:
        loaded.predict(pd.DataFrame({"image": [picture()]}), params={"top_k": 0})
    assert refused.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="image"):
        loaded.predict(pd.DataFrame({"path": ["/etc/hosts"]}))


# ---------------------------------------------------------------- mlflow models serve


class Served:
    """`mlflow models serve` as a process of its own, with everything it starts; leaving its `with` block ends it."""

    def __init__(self, model: str, root: Path, environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model]
        command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(self.port)]
        self.log = root / "served.log"
        # With --env-manager local it looks for uvicorn on the PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                cwd=root,
                env={**os.environ, **environment, "PATH": path},
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Served:
        until = time.monotonic() + 240
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=2)
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
            else:
                return self
        self.__exit__()
        pytest.fail(f"it was not served:\n{self.log.read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask(self, request: dict[str, Any]) -> tuple[int, Any]:
        """Status and answer of a request."""
        sent = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations",
            json.dumps(request).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(sent, timeout=60) as answer:
                return answer.status, json.loads(answer.read(), parse_constant=pytest.fail)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.mark.timeout(600)  # seconds alone, minutes on a machine that is busy
def test_the_champion_is_really_served_without_ray_and_pickles(learnt: LadaModel, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/storage/mlflow.db"
    versions = [PublishedVersion(1, "d1", "start")]
    assert project(uri, "production", "lada", versions, lambda _, path: learnt.save(path), pytest.fail, 1)
    assert [pack.digest for pack in tracking.load("models:/lada@champion", uri).packs] == [
        pack.digest for pack in learnt.packs
    ]
    blocked = tmp_path / "blocked"
    for name in ("ray", "optuna", "lada_ray"):  # the version's own lada_ray comes before any installed one
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is not needed')")
    environment = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": str(blocked),
    }
    image, other = picture(1), picture(2)
    expected = learnt.predict([image, other], EXTRA)
    started = time.monotonic()
    with Served("models:/lada@champion", tmp_path, environment) as served:
        print(f"served after {time.monotonic() - started:.1f} s")
        texts = [base64.b64encode(one).decode() for one in (image, b"no image", other)]
        request = {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}}
        asked = time.monotonic()
        status, answer = served.ask({**request, "params": {"extra_classes": EXTRA}})
        print(f"three images answered after {time.monotonic() - asked:.2f} s")
        assert status == 200
        rows = answer["predictions"]
        assert [(row["image"], row["rank"]) for row in rows] == [(0, 1), (1, 1), (2, 1)]
        assert [rows[0]["class"], rows[2]["class"]] == list(expected["class"])
        np.testing.assert_allclose([rows[0]["score"], rows[2]["score"]], expected["score"], rtol=1e-5)
        assert rows[0]["error"] is None
        assert (rows[1]["class"], rows[1]["score"]) == (None, None)
        assert rows[1]["error"].startswith("not an image")
        records = {"dataframe_records": [{"image": texts[0]}], "params": {"top_k": 2}}
        status, answer = served.ask(records)
        assert (status, [row["rank"] for row in answer["predictions"]]) == (200, [1, 2])
        status, answer = served.ask({**records, "params": {"top_k": 0}})
        assert (status, "top_k: 0" in answer["message"]) == (400, True)
        status, answer = served.ask({"dataframe_records": [{"image": "/etc/hostname"}]})
        assert status == 400 or answer["predictions"][0]["class"] is None
    assert served.process.returncode == -signal.SIGKILL
