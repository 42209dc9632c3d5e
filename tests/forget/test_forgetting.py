"""What is forgotten is gone, everywhere; what is not stays what it was; and a kill at any point costs nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lada_ray.audit import audit
from lada_ray.console import Console
from lada_ray.errors import InputError
from lada_ray.evaluate import read_tests
from lada_ray.features.bank import FeatureBank, banks
from lada_ray.features.parts import PartTable
from lada_ray.forget import Forgotten, Subject, erase, finish_forgetting, forget, forgetting, is_forgetting
from lada_ray.gate import Limits
from lada_ray.known import read_known
from lada_ray.model import LadaModel, ModelFile
from lada_ray.production import Production, Settings
from lada_ray.rollback import rollback
from lada_ray.store import open_store
from lada_ray.versions import history, read_production
from tests.conftest import learn_tiny

QUIET = Console(quiet=True)
LAX = Limits(max_drop=100, min_gain=0)
FLAGS = Subject("flags")
ONE_CLASS = Subject("flags", "class 1")


@pytest.fixture
def storage(learnt_three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the storage; what MLflow shows is another test's business."""
    monkeypatch.setattr(forgetting, "publish", lambda production: True)
    monkeypatch.setattr(forgetting, "withdraw", lambda *arguments: True)
    monkeypatch.setattr("lada_ray.rollback.publish", lambda production: True)
    return Path(shutil.copytree(learnt_three / "storage", tmp_path / "storage"))


def settings(storage: Path) -> Settings:
    return Settings(model="lada", storage=str(storage))


def model(storage: Path) -> ModelFile:
    return read_production(settings(storage).store.child("model"))[0]


def without(storage: Path, subject: Subject = FLAGS, limits: Limits = LAX, **more: Any) -> Forgotten:
    return forget(settings(storage), subject, limits=limits, console=QUIET, **more)


def shas_of(storage: Path, subject: Subject) -> set[str]:
    """SHA-256s of its images."""
    store = settings(storage).store
    records = [read_known(store, entry.key) for entry in store.list("domains")]
    return {sha for known in records for sha in subject.images(known)}


def views_of(storage: Path, shas: set[str]) -> int:
    """Rows of these images in all tables of all banks, and in the index."""
    features = open_store(storage / "features")
    tables = [FeatureBank.open(features, key).table for key, _ in banks(features)]
    needs = [
        e.key.removesuffix("/manifest.json")
        for e in features.list()
        if "/needs/" in e.key and "manifest" in e.key
    ]
    tables += [PartTable(features.child(key), tables[0].schema) for key in [*needs, "index"]]
    return sum(
        sha in shas for t in tables for _, rows in t.scan(["sha256"]) for sha in rows["sha256"].to_pylist()
    )


def everything(storage: Path) -> bytes:
    """All bytes of the run folder and the bank but the history's, to see what a name or a hash still stands in."""
    files = [p for p in storage.rglob("*") if p.is_file() and p.name not in ("model.json", "config.yaml")]
    return b"\n".join(p.read_bytes() for p in files if "drawings" not in p.parts)


def predictions(storage: Path) -> dict[str, list[str]]:
    """What the model takes every image of the bank for, by SHA-256: domain and class."""
    loaded = LadaModel.load(storage / "lada" / "model")
    features = open_store(storage / "features")
    bank = FeatureBank.open(features, next(key for key, _ in banks(features)))
    shas = sorted({sha for _, rows in bank.table.scan(["sha256"]) for sha in rows["sha256"].to_pylist()})
    chosen = loaded.predict_features(bank.fetch(shas, ["test"])[:, 0])
    return {sha: list(loaded.class_names[i]) for sha, i in zip(shas, chosen, strict=True)}


def test_a_domain_is_gone_and_the_others_are_what_they_were(storage: Path) -> None:
    before, then = model(storage), predictions(storage)
    old = LadaModel.load(storage / "lada" / "model").packs
    shas = shas_of(storage, FLAGS)
    assert len(shas) == 42
    assert views_of(storage, shas) > 42

    done = without(storage, reason="their owner asked for it")
    assert (done.version, done.refused, done.finished) == (2, False, True)

    new = LadaModel.load(storage / "lada" / "model")
    assert new.domains == ["fruit", "toys"]
    assert new.packs[0].digest == before.packs[0]
    assert new.packs[1].digest not in before.packs
    for name, tensor in old[2].tensors.items():
        assert np.array_equal(new.packs[1].tensors[name], tensor)
    assert new.packs[1].meta["versions"] == old[2].meta["versions"]
    now = predictions(storage)
    assert {sha: label for sha, label in then.items() if label[0] != "flags" and sha in now} == {
        sha: label for sha, label in now.items() if then[sha][0] != "flags"
    }

    assert views_of(storage, shas) == 0
    left = everything(storage)
    assert not [sha for sha in shas if sha.encode() in left]
    packs = (storage / "lada" / "model" / "packs").glob("*/*")
    assert {path.parent.name for path in packs if path.is_file()} == set(model(storage).packs)
    assert not (storage / "lada" / "report.html").exists()
    assert [test.domain for test in read_tests(settings(storage).store)] == ["fruit", "toys"]

    tombstone = history(model(storage))[-1].details["tombstone"]
    assert tombstone["trained_beside"] == ["toys"]
    assert tombstone["reason"] == "their owner asked for it"
    assert (tombstone["images"], tombstone["versions"]) == (42, [1])
    assert tombstone["packs"] == sorted(before.packs[1:])
    found = audit(settings(storage), QUIET)
    assert (found.differences, found.problems, found.numbers) == ((), (), 2)

    again = without(storage)
    assert (again.version, again.gate, again.finished) == (2, None, True)
    with pytest.raises(InputError, match="version 1 consists of was forgotten"):
        rollback(settings(storage), 1, console=QUIET)


@pytest.mark.parametrize(
    "subject",
    [pytest.param(FLAGS, id="domain"), pytest.param(ONE_CLASS, id="class", marks=pytest.mark.accept)],
)
def test_learning_again_gives_the_packs_of_a_stream_that_never_had_it(
    storage: Path, learnt_three: Path, tmp_path: Path, subject: Subject
) -> None:
    never = tmp_path / "never"
    # All features are known by content: nothing is encoded.
    shutil.copytree(learnt_three / "storage", never / "storage")
    shutil.copytree(learnt_three / "flags", never / "flags")
    for name in ("tiny.json", "tiny.safetensors"):
        shutil.copy(learnt_three / name, never)
    for part in ("train", "test"):
        shutil.rmtree(never / "flags" / part / "class_1")
    fruit, toys = str(learnt_three / "fruit"), str(learnt_three / "toys")
    names = [fruit, toys] if subject == FLAGS else [fruit, "flags", toys]
    folder = Path(learn_tiny(never, "never", names))

    assert without(storage, subject, relearn=True).finished
    ours, theirs = storage / "lada" / "model" / "packs", folder / "model" / "packs"
    files = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file()) == files
    assert len(files) == 2 * len(names)
    assert all((ours / path).read_bytes() == (theirs / path).read_bytes() for path in files)
    assert history(model(storage))[-1].details["tombstone"]["trained_beside"] == []
    assert audit(settings(storage), QUIET).differences == ()


def test_a_class_is_gone_from_its_pack(storage: Path) -> None:
    old, then = LadaModel.load(storage / "lada" / "model").packs, predictions(storage)
    shas = shas_of(storage, ONE_CLASS)
    assert len(shas) == 14
    done = without(storage, ONE_CLASS)
    assert (done.version, done.finished) == (2, True)
    new = LadaModel.load(storage / "lada" / "model").packs
    assert [label.name for label in new[1].labels] == ["class 0", "class 2"]
    assert np.array_equal(new[1].tensors["memory"], old[1].tensors["memory"][[0, 2]])
    stay = old[1].tensors["labels"] != 1
    assert np.array_equal(new[1].tensors["means"], old[1].tensors["means"][stay])
    assert sorted(set(new[1].tensors["labels"].tolist())) == [0, 1]
    assert len(new[1].meta["samples"]) == 12
    assert views_of(storage, shas) == 0
    assert not [sha for sha in shas if sha.encode() in everything(storage)]
    now = predictions(storage)
    gone = ["flags", "class 1"]
    assert all(now[sha] == label for sha, label in then.items() if label != gone and sha in now)
    assert audit(settings(storage), QUIET).differences == ()
    assert read_tests(settings(storage).store)[1].class_names == ("class 0", "class 2")


def test_an_image_that_another_domain_has_too_stays(
    learnt_three: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(forgetting, "publish", lambda production: True)
    monkeypatch.setattr(forgetting, "withdraw", lambda *arguments: True)
    shutil.copytree(learnt_three / "storage", tmp_path / "storage")
    shutil.rmtree(tmp_path / "storage" / "lada")
    for name in ("fruit", "flags"):
        shutil.copytree(learnt_three / name, tmp_path / name)
    for name in ("tiny.json", "tiny.safetensors"):
        shutil.copy(learnt_three / name, tmp_path)
    shutil.copy(tmp_path / "flags/train/class_0/0.png", tmp_path / "fruit/train/class_2/shared.png")
    learn_tiny(tmp_path, "lada", ["fruit", "flags"], kind="ncm")
    storage = tmp_path / "storage"
    (shared,) = shas_of(storage, FLAGS) & shas_of(storage, Subject("fruit"))
    assert without(storage).finished
    assert views_of(storage, {shared}) > 0
    assert history(model(storage))[-1].details["tombstone"]["images"] == 41
    assert audit(settings(storage), QUIET).problems == ()


class Killed(BaseException):
    """What a kill is to the code that runs then."""


POINTS: dict[str, tuple[Any, str, bool]] = {
    "before the packs": (forgetting, "take_out", False),
    "after the packs": (forgetting, "take_out", True),
    "after judging": (forgetting, "judge_candidate", True),
    "before promoting": (Production, "promote", False),
    "after promoting": (Production, "promote", True),
    "before the class fits": (erase, "remove_fits", False),
    "amid the bank": (FeatureBank, "remove_images", True),
    "amid the packs": (erase, "packs_of", True),
    "amid a pack": (erase, "_delete_below", True),
    "before the test images": (erase, "read_tests", False),
    "before the records": (erase, "_erase_endings", True),
    "before MLflow": (forgetting, "publish", False),
    "after MLflow": (forgetting, "withdraw", True),
}


FEW = ("after promoting", "amid the packs")
"""Of the points, those that every run of the tests tries; `make accept` tries all."""


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=() if p in FEW else pytest.mark.accept) for p in POINTS]
)
def test_a_kill_costs_nothing(storage: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    shas = shas_of(storage, FLAGS)
    owner, name, after = POINTS[point]
    original = getattr(owner, name)

    def killed(*arguments: Any, **named: Any) -> Any:
        if after:
            original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            without(storage)
    if model(storage).history and len(model(storage).history) == 2:
        # Whoever takes the lease next goes on, whatever it came for.
        assert is_forgetting(settings(storage).store, model(storage))
        with Production.open(settings(storage), QUIET) as production:
            assert finish_forgetting(production)
    assert without(storage).finished
    assert LadaModel.load(storage / "lada" / "model").domains == ["fruit", "toys"]
    assert len(model(storage).history) == 2
    assert views_of(storage, shas) == 0
    champion = set(model(storage).packs)
    folders = [
        storage / "lada" / name for name in ("tasks", "model/packs", "model/calibration", "model/candidates")
    ]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.stem if path.parent in folders else path.parent.name for path in files} == champion
    assert not [sha for sha in shas if sha.encode() in everything(storage)]
    assert audit(settings(storage), QUIET).differences == ()


def test_the_gate_refuses_and_force_overrules(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = forgetting.judge_candidate

    def strict(*arguments: Any) -> Any:
        judged = judge(*arguments)
        checks = tuple(type(check)(**{**vars(check), "verdict": "blocked"}) for check in judged.gate.checks)
        return type(judged)(type(judged.gate)(checks), judged.accuracy)

    monkeypatch.setattr(forgetting, "judge_candidate", strict)
    before = model(storage)
    done = without(storage)
    assert (done.refused, done.version, done.finished) == (True, 1, False)
    assert model(storage).packs == before.packs
    assert views_of(storage, shas_of(storage, FLAGS)) > 42
    done = without(storage, force=True)
    assert (done.refused, done.version, done.finished) == (False, 2, True)
    assert history(model(storage))[-1].details["forced"] is True


def test_what_cannot_be_forgotten_is_refused(storage: Path) -> None:
    with pytest.raises(InputError, match="knows no domain 'flag'; did you mean flags"):
        without(storage, Subject("flag"))
    with pytest.raises(InputError, match="flags has no class 'class 7'"):
        without(storage, Subject("flags", "class 7"))
    assert without(storage, Subject("fruit")).finished
    assert without(storage, Subject("toys")).finished
    with pytest.raises(InputError, match="would know nothing: remove its folder"):
        without(storage)


def test_what_only_an_old_version_knows_is_forgotten_too(storage: Path) -> None:
    without(storage, Subject("toys"))
    with Production.open(settings(storage), QUIET) as production:
        # As if a rollback had gone behind the second domain.
        from lada_ray.versions import Change, State

        state = production.champion.state
        less = State(state.packs[:1], {"fruit": state.prompts["fruit"]}, state.domains[:1])
        production.promote(production.champion, Change("rollback", "x", less))
    shas = shas_of(storage, FLAGS)
    done = without(storage)
    assert (done.version, done.gate, done.finished) == (4, None, True)
    assert views_of(storage, shas) == 0
    assert history(model(storage))[-1].details["tombstone"]["versions"] == [2]
    assert LadaModel.load(storage / "lada" / "model").domains == ["fruit"]


def test_endings_of_the_inbox_keep_the_next_tick_away(storage: Path) -> None:
    store = settings(storage).store
    ending = {
        "entry": "x",
        "fingerprint": "f",
        "domain": "flags",
        "status": "refused",
        "said": ["cats"],
        "gate": {},
    }
    store.write("inbox/f.json", json.dumps(ending).encode())
    store.write("inbox/g.json", json.dumps({**ending, "domain": "other"}).encode())
    without(storage)
    assert json.loads(store.read("inbox/f.json"))["said"] == ["it was forgotten"]
    assert json.loads(store.read("inbox/g.json"))["said"] == ["cats"]


def test_another_production_model_keeps_what_it_needs(
    storage: Path, learnt_three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(storage / "lada", storage / "other")
    config = (storage / "other" / "config.yaml").read_text()
    (storage / "other" / "config.yaml").write_text(config.replace("name: lada", "name: other"))
    other = Settings(model="other", storage=str(storage))
    with Production.open(other, QUIET):
        pass
    shas = shas_of(storage, FLAGS)
    forget(settings(storage), FLAGS, limits=LAX, console=Console())
    assert "other models in production" in " ".join(capsys.readouterr().out.split())
    found = audit(other, QUIET)
    assert (found.differences, found.problems, found.numbers) == ((), (), 3)
    # The last model to forget it takes the images along.
    forget(other, FLAGS, limits=LAX, console=QUIET)
    assert views_of(storage, shas) == 0


def test_another_mlflow_is_told_before_anything_is_forgotten(storage: Path) -> None:
    shown = {"registry": "http://mlflow:5000"}
    (storage / "lada" / "registry.json").write_text(json.dumps(shown))
    with pytest.raises(
        InputError, match=r"(?s)Nothing is forgotten.*shown in http://mlflow:5000.*TRACKING_URI"
    ):
        without(storage)
    assert shas_of(storage, FLAGS)


def test_an_mlflow_that_is_down_is_asked_again(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "publish", lambda production: False)
        done = without(storage)
    assert (done.version, done.finished) == (2, False)
    assert LadaModel.load(storage / "lada" / "model").domains == ["fruit", "toys"]
    assert is_forgetting(settings(storage).store, model(storage))
    asked: list[Any] = []
    monkeypatch.setattr(forgetting, "withdraw", lambda *arguments: bool(asked.append(arguments) or True))
    with Production.open(settings(storage), QUIET) as production:
        assert finish_forgetting(production)
        assert finish_forgetting(production)
        (arguments,) = asked
        tombstone = history(model(storage))[-1]
        assert arguments[4:6] == ({("2", tombstone.digest)}, tombstone.details["tombstone"]["packs"])
