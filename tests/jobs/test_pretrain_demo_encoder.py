"""The demo encoder's pretraining, end to end with a few steps, and the encoder that it shipped."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open

import lada_ray
from lada_ray.domains.drawing import DRAWINGS

JOB = Path(__file__).resolve().parents[2] / "jobs" / "pretrain_demo_encoder.py"
SHIPPED = Path(lada_ray.__file__).parent / "encoders"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    """The job's functions."""
    spec = importlib.util.spec_from_file_location("pretrain_demo_encoder", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shipped() -> open_clip.CLIP:
    """The shipped encoder, loaded as any user's."""
    open_clip.add_model_config(SHIPPED / "demo-clip.json")
    weights = str(SHIPPED / "demo-clip.safetensors")
    model, _, _ = open_clip.create_model_and_transforms("demo-clip", pretrained=weights)
    return model.eval()


def test_a_few_steps_run_end_to_end(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(JOB),
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--batch",
        "8",
        "--images",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert "handwritten" not in done.stderr
    for name in (*DRAWINGS, "mean"):
        assert f"  {name} " in done.stdout
    with safe_open(str(tmp_path / "demo-clip.safetensors"), "pt") as file:
        assert file.get_tensor("visual.conv1.weight").dtype == torch.float16
        assert file.metadata()["quick_gelu"] == "false"
        assert json.loads(file.metadata()["preprocess"])["interpolation"] == "bicubic"


def test_half_of_the_drawn_classes_are_taught(job: ModuleType) -> None:
    assert set(job.SEEN) == set(DRAWINGS) - {"digits"}
    for name, seen in job.SEEN.items():
        assert len(set(seen)) * 2 == len(DRAWINGS[name].class_names)
        assert set(seen) < set(DRAWINGS[name].class_names)
    taught = {concept.name for concept in job.concepts()}
    classes = {name for drawing in DRAWINGS.values() for name in drawing.class_names}
    assert taught & classes == {name for seen in job.SEEN.values() for name in seen}
    assert len(taught - classes) > 60


def test_no_two_pairs_of_a_batch_show_one_concept(job: ModuleType, shipped: open_clip.CLIP) -> None:
    taught = job.concepts()[:12]
    batch = job.batches(taught, job.draw(taught, 1), 12, seed=0)
    images, tokens = next(batch)
    assert images.shape == (12, 3, 64, 64)
    assert tokens.shape == (12, 24)
    again = next(job.batches(taught, job.draw(taught, 1), 12, seed=0))
    assert torch.equal(images, again[0])
    assert torch.equal(tokens, again[1])


def test_the_contrastive_loss_is_clips(job: ModuleType) -> None:
    unit = torch.eye(3)
    # Each row: 3 logits, the right one 2, the others 0.
    expected = np.log(np.exp(2) + 2) - 2
    assert job.contrastive_loss(unit, unit, torch.tensor(2.0)).item() == pytest.approx(expected, abs=1e-6)


def test_the_shipped_file_is_small_and_says_how_to_read_it(job: ModuleType) -> None:
    weights = SHIPPED / "demo-clip.safetensors"
    assert weights.stat().st_size <= 12_000_000
    assert json.loads((SHIPPED / "demo-clip.json").read_text()) == job.ARCHITECTURE
    with safe_open(str(weights), "pt") as file:
        header = file.metadata()
    assert header["model"] == "demo-clip"
    assert header["quick_gelu"] == "false"
    assert json.loads(header["preprocess"]) == {
        **job.PREPROCESS,
        "mean": list(job.MEAN),
        "std": list(job.STD),
    }


def test_the_shipped_encoder_is_a_fair_miniature_of_clip(job: ModuleType, shipped: open_clip.CLIP) -> None:
    assert 10 < shipped.logit_scale.exp().item() <= 100.1
    accuracy = job.zero_shot(shipped, per_class=5)
    assert 25 < np.mean(list(accuracy.values())) < 65
    chance = 100 / sum(len(drawing.class_names) for drawing in DRAWINGS.values())
    for value in accuracy.values():
        assert value > 5 * chance
