"""Calibrating packs: only what is missing is made, the same bytes every time, and numbers that fit the task."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lada_ray.calibrate import Calibrator, calibrate, calibrate_pack, only
from lada_ray.calibration import calibration_key
from lada_ray.fit.learners import learn_remaining
from lada_ray.fit.plan import FitPlan
from lada_ray.fit.task import extend
from lada_ray.method.learner import Seen
from lada_ray.model import LadaModel
from lada_ray.store import join, open_store
from lada_ray.views import TEST_VIEW

if TYPE_CHECKING:
    from tests.conftest import TinyWorld


@pytest.fixture(scope="module")
def learnt(learnt_run: tuple[TinyWorld, str]) -> tuple[FitPlan, str, tuple[str, ...]]:
    """The plan of a learnt model, its folder, its packs."""
    world, uri = learnt_run[0], join(learnt_run[1], "model")
    plan = world.plan(world.config("learnt", method={"epochs": 15}))
    return plan, uri, LadaModel.load(uri).file.packs


def test_files_are_made_once_and_are_always_the_same(
    learnt: tuple[FitPlan, str, tuple[str, ...]], tmp_path: Path
) -> None:
    plan, uri, packs = learnt
    shutil.copytree(uri, tmp_path / "model")
    copy, told = str(tmp_path / "model"), []
    # As retraining does it: the last task alone, and then the others.
    calibrate(
        replace(plan, tasks=plan.tasks[1:]), copy, packs, lambda done, total: told.append((done, total))
    )
    store = open_store(copy)
    assert [store.exists(calibration_key(digest)) for digest in packs] == [False, True]
    calibrate(plan, copy, packs, lambda done, total: told.append((done, total)))
    assert [(done, total) for done, total in told if done] == [(1, 1), (1, 1)]
    for task, digest in zip(plan.tasks, packs, strict=True):
        again = calibrate_pack(plan, task, copy, packs)
        assert store.read(calibration_key(digest)) == again.to_bytes()
    model = LadaModel.load(copy)
    assert model.calibration.complete
    assert model.head.temperatures == model.calibration.temperatures != (1.0, 1.0)
    model.save(tmp_path / "saved")
    assert LadaModel.load(tmp_path / "saved").calibration.digest == model.calibration.digest


def test_packs_are_calibrated_as_they_come(
    learnt: tuple[FitPlan, str, tuple[str, ...]], tmp_path: Path
) -> None:
    plan, uri, packs = learnt
    shutil.copytree(uri, tmp_path / "model")
    told: list[tuple[int, int]] = []
    with Calibrator(plan, str(tmp_path / "model")) as calibrator:
        for count in (0, 1, 1, 2):  # nothing is begun twice
            calibrator.begin(packs[:count])
            if count == 1:
                calibrator.wait(lambda done, total: told.append((done, total)))
        assert told[-1] == (1, 1)
        calibrator.wait(lambda done, total: told.append((done, total)))
        assert told[-1] == (1, 1)
        calibrator.wait(lambda done, total: pytest.fail("nothing is left to wait for"))
    store = open_store(tmp_path / "model")
    for task, digest in zip(plan.tasks, packs, strict=True):
        assert (
            store.read(calibration_key(digest))
            == calibrate_pack(plan, task, str(tmp_path / "model"), packs).to_bytes()
        )


def test_a_worker_that_waits_imports_ahead(learnt: tuple[FitPlan, str, tuple[str, ...]]) -> None:
    plan, uri, _ = learnt
    told: list[tuple[int, int]] = []
    with Calibrator(plan, uri) as calibrator:
        calibrator.begin((), soon=True)
        calibrator.wait(lambda done, total: told.append((done, total)))
        assert told[-1] == (1, 1)
    with Calibrator(replace(plan, kind="ncm"), uri) as calibrator:  # trains nothing
        calibrator.begin((), soon=True)
        calibrator.wait(lambda done, total: pytest.fail("began something"))


def test_an_error_beside_it_ends_it(
    learnt: tuple[FitPlan, str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    cancelled: list[object] = []
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    calibrator = Calibrator(*learnt[:2])
    calibrator._begun = ["one", "two"]
    with pytest.raises(KeyboardInterrupt), calibrator:
        raise KeyboardInterrupt
    assert cancelled == ["one", "two"]


def test_a_pack_knows_its_own_images(learnt: tuple[FitPlan, str, tuple[str, ...]]) -> None:
    plan, uri, packs = learnt
    for task in plan.tasks:
        made = calibrate_pack(plan, task, uri, packs)
        unit = plan.bank.fetch(task.shas, [TEST_VIEW])[:, 0].astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        means = [unit[task.labels == label].mean(axis=0) for label in range(task.classes)]
        np.testing.assert_allclose(made.outliers["outlier_means"], means, atol=1e-6)
        assert made.seen.images > 0
        assert made.unseen.images == len(task.shas)  # too few to ask those at the gate alone


@pytest.mark.parametrize("kind", ["ncm", "zero_shot", "rail_primal", "rail_dual"])
def test_learners_without_training(tiny_world: TinyWorld, kind: str) -> None:
    config = tiny_world.config(kind, method={"kind": kind})
    plan = tiny_world.plan(config)
    with tiny_world.run(config) as (run, ledger):
        list(learn_remaining(plan, ledger, "cpu"))
        made = calibrate_pack(plan, plan.tasks[1], run.model_store.uri, run.packs)
    assert made.outliers["outlier_means"].shape == (2, 32)
    counts = (made.seen.images, made.unseen.images)
    assert counts == {"ncm": (0, 12), "zero_shot": (12, 12)}.get(kind, (0, 0))


def test_packs_in_half_precision(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("half", method={"epochs": 2, "pack_precision": "float16"})
    plan = tiny_world.plan(config)
    with tiny_world.run(config) as (run, ledger):
        list(learn_remaining(plan, ledger, "cpu"))
        made = calibrate_pack(plan, plan.tasks[1], run.model_store.uri, run.packs)
    assert made.seen.images > 0
    assert made.unseen.images > 0


def test_extended_labels_are_left_out_of_what_is_seen() -> None:
    def tensors(value: float) -> dict[str, np.ndarray]:
        f32 = np.float32
        return {
            "text": np.full((2, 3), value, f32),
            "memory": np.full((2, 1, 3), value, f32),
            "mask": np.ones((2, 1), np.uint8),
            "means": np.full((3, 3), value, f32),
            "variances": np.full(3, value, f32),
            "weights": np.full(3, value, f32),
            "labels": np.array([0, 1, 1]),
        }

    both = extend(Seen.nothing(3), (tensors(1), None), (tensors(2), None))
    found = only(both, np.array([True, False, False, True]))
    assert found.text[:, 0].tolist() == found.memory[:, 0, 0].tolist() == [1, 2]
    assert found.means[:, 0].tolist() == found.weights.tolist() == [1, 2, 2]
    assert found.labels.tolist() == [0, 1, 1]
