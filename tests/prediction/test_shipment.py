"""A model reaches nodes that lack its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from lada_ray.errors import LadaError
from lada_ray.model import LadaModel
from lada_ray.prediction import shipment as shipment_module
from lada_ray.prediction.actor import Predictor
from lada_ray.prediction.asked import Options
from lada_ray.prediction.shipment import Shipment, read_on
from tests.prediction.conftest import batch, with_own_weights


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
    monkeypatch.setattr(shipment_module, "read_on", lambda node, file: data)
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
