"""Opening a production model: a history for whatever a run has learnt, and refusals that say what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lada_ray.console import Console
from lada_ray.errors import InputError, IntegrityError
from lada_ray.features.bank import FeatureBank, banks
from lada_ray.known import KNOWN_DOMAINS
from lada_ray.pack import TaskPack
from lada_ray.production import Production, Settings, identities_of, needed_views, plan_again
from lada_ray.store import open_store
from tests.conftest import learn_tiny

QUIET = Console(quiet=True)


@pytest.fixture
def storage(learnt_three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learnt_three / "storage", tmp_path / "storage"))


def settings(storage: Path) -> Settings:
    return Settings(model="lada", storage=str(storage))


def test_what_a_run_has_learnt_is_version_1(storage: Path) -> None:
    with Production.open(settings(storage), QUIET) as production:
        first = production.champion
        assert (first.number, first.action, first.state.packs) == (1, "start", production.file.packs)
        assert list(first.accuracy) == ["fruit", "flags", "toys"]
        assert [known.name for known in production.known(first.state)] == ["fruit", "flags", "toys"]
    with Production.open(settings(storage), QUIET) as production:
        assert production.champion == first


def test_a_run_that_did_not_end_is_refused(storage: Path) -> None:
    (storage / "lada" / KNOWN_DOMAINS).unlink()
    with (
        pytest.raises(InputError, match=r"0 of 3 domains.*run_stream\.py --config"),
        Production.open(settings(storage), QUIET),
    ):
        pass


@pytest.mark.parametrize(("lost", "said"), [("calibration", "not calibrated"), ("row", "not tested")])
def test_a_run_that_was_killed_at_its_end_is_refused(storage: Path, lost: str, said: str) -> None:
    if lost == "row":
        matrix = storage / "lada" / "accuracy_matrix.csv"
        matrix.write_text("".join(matrix.read_text().splitlines(keepends=True)[:-1]))
    else:
        next((storage / "lada" / "model" / "calibration").iterdir()).unlink()
    with (
        pytest.raises(
            InputError, match=rf"its last domain is {said} yet; finish it: .*run_stream\.py --config"
        ),
        Production.open(settings(storage), QUIET),
    ):
        pass


def test_learnt_tasks_can_be_planned_from_what_is_known(storage: Path) -> None:
    with Production.open(settings(storage), QUIET) as production:
        state = production.champion.state
        known = production.known(state)
        identities = identities_of(production.run.model_store, state.packs)
        tasks = plan_again(known, identities)
        assert [task.position for task in tasks] == [0, 1, 2]
        assert [task.epochs for task in tasks] == [4, 4, 4]
        assert [len(task.parts[0].views) for task in tasks] == [1, 1, 1]
        for digest, task, identity in zip(state.packs, tasks, identities, strict=True):
            meta = TaskPack.read_meta(production.run.model_store, digest)
            assert [sha for _, sha in meta["samples"]] == task.shas
            assert identity["labels"] == meta["labels"]


def test_another_encoder_is_refused_and_the_way_told(storage: Path, learnt_three: Path) -> None:
    with Production.open(settings(storage), QUIET) as production:
        file = production.file
        other = {**file.encoder, "fingerprint": "0" * 64}
        from dataclasses import replace

        from lada_ray.model import MODEL

        production.run.model_store.write(MODEL, replace(file, encoder=other).to_bytes())
        with pytest.raises(
            IntegrityError, match=r"(?s)other weights now.*jobs/model.py show.*--yaml FILE.*--name NEW"
        ):
            production.stream()


def test_a_model_with_a_history_is_not_run_on_behind_it(learnt_three: Path, tmp_path: Path) -> None:
    for path in learnt_three.iterdir():
        if path.name != "mlflow.db" and "mlruns" not in path.name:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    with Production.open(settings(tmp_path / "storage"), QUIET):
        pass
    with pytest.raises(InputError, match=r"it is a production model by now.*show --model NAME --yaml FILE"):
        learn_tiny(tmp_path, "lada", ["fruit", "flags", "toys"])


def test_what_a_model_in_production_needs_is_never_pruned(storage: Path) -> None:
    store = open_store(storage)
    (key,) = (key for key, _ in banks(store.child("features")))
    bank = FeatureBank.open(store.child("features"), key)
    before = bank.size().views
    # A run that did not become a model in production keeps nothing for ever.
    assert list(needed_views(str(storage))) == []
    with Production.open(settings(storage), QUIET) as production:
        known = production.known(production.champion.state)
    needed = set(needed_views(str(storage)))
    tests = {(sha, "test") for one in known for sha in one.tests.shas}
    trained = {(sha, view) for one in known for sha in one.trained[0] for view in ("test", "crop_flip/0")}
    assert needed == tests | trained
    assert bank.prune(0, needed) == before - len(needed)
    assert bank.prune(0) == len(needed)
