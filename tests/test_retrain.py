"""What arrives is learnt once, in order, whatever is killed; what is bad is told beside it, and the champion stays."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lada_ray
from lada_ray import retrain as module
from lada_ray.config import ResourceConfig, StreamConfig, TrackingConfig
from lada_ray.console import Console
from lada_ray.errors import InputError, LadaError, LostLease
from lada_ray.gate import Limits
from lada_ray.inbox import REJECTED
from lada_ray.production import Production, Settings
from lada_ray.publish import publish
from lada_ray.retrain import Retrained, retrain
from lada_ray.run import Run
from lada_ray.store import join, open_store
from lada_ray.stream import run_stream
from lada_ray.versions import Change, history, read_production
from tests.conftest import draw_domain, write_tiny_clip

LIMITS = Limits()
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A storage whose model has learnt one domain; not to be changed."""
    folder = tmp_path_factory.mktemp("production")
    draw_domain(folder / "fruit", hue=0.0, test=8)
    architecture, weights = write_tiny_clip(folder)
    values = {
        "name": "lada",
        "storage": str(folder / "storage"),
        "encoder": {"model": "tiny", "pretrained": str(weights), "architecture": str(architecture)},
        "views": 1,
        # A gate of random text features would send every image to the same side.
        "method": {
            "epochs": 8,
            "batch_size": 8,
            "memory_per_class": 2,
            "mixture_components": 1,
            "fusion": "additive",
            "alpha": 10,
            "beta": 20,
        },
        "domains": [{"name": "fruit", "kind": "folder", "root": str(folder / "fruit")}],
        "resources": {"train_workers": 0},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    run_stream(StreamConfig.model_validate(values), console=QUIET)
    return folder


@pytest.fixture
def storage(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the storage; the registry is another test's business."""
    monkeypatch.setattr(module, "publish", lambda production: True)
    monkeypatch.setattr(module, "is_published", lambda *_: True)
    shutil.copytree(learnt / "storage", tmp_path / "storage")
    (tmp_path / "inbox").mkdir()
    return tmp_path


def arrive(inbox: Path, name: str, hue: float, moment: float, card: str = "", **draw: Any) -> Path:
    """Put a domain of three colours into an inbox, complete since this moment."""
    draw_domain(inbox / name, hue=hue, **{"test": 8, **draw})
    (inbox / name / "domain.yaml").write_text(f"name: {name}\nkind: folder\n{card}")
    ready = inbox / name / "_READY"
    ready.touch()
    os.utime(ready, (moment, moment))
    return inbox / name


def settings(storage: Path) -> Settings:
    return Settings(model="lada", storage=str(storage / "storage"))


def run(storage: Path, guards: str | None = None) -> Retrained:
    return retrain(settings(storage), str(storage / "inbox"), LIMITS, guards, console=QUIET)


def model(storage: Path) -> Any:
    return read_production(settings(storage).store.child("model"))[0]


def test_a_domain_that_arrived_is_the_next_version(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive(storage / "inbox", "flags", 0.1, 1000.0, "owner: the flag team\n")
    before = model(storage)
    done = run(storage)
    assert [(e.entry, e.status, e.version) for e in done.endings] == [("flags", "learnt", 2)]
    assert done.good
    after = model(storage)
    assert after.packs[:-1] == before.packs
    first, second = history(after)
    assert (first.action, first.state.packs) == ("start", before.packs)
    assert (second.action, second.subject, second.state.packs) == ("learn", "flags", after.packs)
    assert second.details["owner"] == "the flag team"
    assert second.accuracy.keys() == {"fruit", "flags"}
    assert second.accuracy["flags"] == second.details["gate"]["checks"][1]["after"]
    assert lada_ray.load(str(storage / "storage" / "lada" / "model")).domains == ["fruit", "flags"]

    # Nothing new: nobody even takes the lease.
    monkeypatch.setattr(Production, "open", None)
    again = run(storage)
    assert (again.endings, again.version) == ([], 2)


def test_bad_entries_are_told_beside_them_and_cost_the_others_nothing(storage: Path) -> None:
    inbox = storage / "inbox"
    shutil.rmtree(arrive(inbox, "broken", 0.3, 1.0, "kindd: folder\nprompt: no place for a name\n") / "test")
    arrive(inbox, "flags", 0.1, 2.0)
    # The colours of fruit once more: nobody could tell the two apart.
    berries = arrive(inbox, "berries", 0.001, 3.0)
    (inbox / "early").mkdir()
    (inbox / "early" / "domain.yaml").write_text("name: early\n")

    done = run(storage)
    assert [(e.entry, e.status) for e in done.endings] == [
        ("broken", "rejected"),
        ("flags", "learnt"),
        ("berries", "refused"),
    ]
    assert not done.good
    assert done.incomplete == ("early",)
    broken = json.loads((inbox / "broken" / REJECTED).read_text())
    assert {"kindd", "prompt"} <= {
        word for line in broken["problems"] for word in ("kindd", "prompt") if word in line
    }
    assert "test" in " ".join(broken["problems"])
    (why,) = json.loads((berries / REJECTED).read_text())["problems"]
    assert "berries (min_gain)" in why
    assert "BLOCKED" in why
    assert [version.subject for version in history(model(storage))] == ["", "flags"]

    # As long as nothing changes nobody is told again; what was corrected is learnt.
    assert run(storage).waiting == ("berries", "broken")
    shutil.rmtree(berries)
    arrive(inbox, "berries", 0.2, 4.0)
    (berries / REJECTED).write_text("{}")
    assert [(e.entry, e.status) for e in run(storage).endings] == [("berries", "learnt")]
    assert not (berries / REJECTED).exists()


@pytest.mark.accept
def test_domains_arrive_in_a_bucket(storage: Path, s3: str) -> None:
    local, inbox = arrive(storage / "local", "flags", 0.1, 1.0), open_store(join(s3, "retrain-inbox"))
    (local / "train" / "class_2" / "0.png").write_bytes(b"no image")
    for file in sorted(local.rglob("*.*")):
        inbox.write(f"flags/{file.relative_to(local).as_posix()}", file.read_bytes())
    assert retrain(settings(storage), inbox.uri, LIMITS, console=QUIET).incomplete == ("flags",)
    inbox.write("flags/_READY", b"")
    (ending,) = retrain(settings(storage), inbox.uri, LIMITS, console=QUIET).endings
    # One image of 42 is more than one in a hundred.
    assert ending.status == "rejected"
    problems = json.loads(inbox.read(f"flags/{REJECTED}"))["problems"]
    assert any("class_2/0.png" in line for line in problems)
    inbox.delete("flags/train/class_2/0.png")
    (ending,) = retrain(settings(storage), inbox.uri, LIMITS, console=QUIET).endings
    assert (ending.status, ending.version) == ("learnt", 2)
    assert not inbox.exists(f"flags/{REJECTED}")


def test_the_same_images_under_another_name_are_known(storage: Path, learnt: Path) -> None:
    again = storage / "inbox" / "obst"
    shutil.copytree(learnt / "fruit", again)
    for part in ("train", "test"):
        (again / part / "class_0").rename(again / part / "apfel")
    (again / "domain.yaml").write_text("name: obst\nkind: folder\n")
    (again / "_READY").touch()
    (ending,) = run(storage).endings
    assert (ending.status, ending.version) == ("known", None)
    assert "known domain fruit" in ending.said[0]
    assert len(history(model(storage))) == 1


def test_more_images_of_a_known_domain_extend_its_labels(storage: Path) -> None:
    # Other noise on the same colours; of two of the three classes.
    entry = arrive(storage / "inbox", "fruit", 0.0005, 1.0, "extends: true\n", test=3)
    for part in ("train", "test"):
        shutil.rmtree(entry / part / "class_1")
    (ending,) = run(storage).endings
    assert ending.status == "learnt"
    loaded = lada_ray.load(str(storage / "storage" / "lada" / "model"))
    assert [name for _, name in loaded.class_names] == ["class 0", "class 1", "class 2"]
    assert [len(pack.labels) for pack in loaded.packs] == [3, 2]
    newest = history(model(storage))[-1]
    assert newest.accuracy.keys() == {"fruit"}
    assert newest.details["gate"]["checks"][0]["n"] == 24 + 6
    # A third task replays the components of both.
    arrive(storage / "inbox", "flags", 0.1, 2.0)
    assert [e.status for e in run(storage).endings] == ["learnt"]


def guards_yaml(folder: Path, *names: str) -> str:
    """A YAML whose domains are to be guards; all of them have the same images."""
    draw_domain(folder / "toys", hue=0.2, test=8)
    domains = ", ".join(f"{{name: {name}, kind: folder, root: toys}}" for name in names)
    encoder = "encoder: {model: ViT-B-16-quickgelu}"
    (folder / "guards.yaml").write_text(f"name: guards\n{encoder}\ndomains: [{domains}]\n")
    return str(folder / "guards.yaml")


def test_guards_are_watched_and_never_learnt(storage: Path, tmp_path: Path) -> None:
    arrive(storage / "inbox", "flags", 0.1, 1.0)
    # One that is called like what arrives, and one like what is known, would take their places in the gate.
    (ending,) = run(storage, guards_yaml(tmp_path, "toys", "flags", "fruit")).endings
    assert ending.gate is not None
    checks = [(check["name"], check["domain"]) for check in ending.gate["checks"]]
    assert checks == [("max_drop", "fruit"), ("min_gain", "flags"), ("max_transfer_drop", "toys")]
    newest = history(model(storage))[-1]
    assert newest.accuracy.keys() == {"fruit", "flags"}
    assert lada_ray.load(str(storage / "storage" / "lada" / "model")).domains == ["fruit", "flags"]


def test_test_images_of_a_known_domain_are_not_trained_on(storage: Path, learnt: Path) -> None:
    entry = arrive(storage / "inbox", "berries", 0.3, 1.0)
    shutil.copy(learnt / "fruit" / "test" / "class_0" / "0.png", entry / "train" / "class_0" / "stolen.png")
    (ending,) = run(storage).endings
    assert ending.status == "rejected"
    assert "1 of the 24 test images of the known domain fruit are among its training images" in ending.said[0]


@pytest.mark.accept
def test_what_is_not_an_entrys_fault_costs_neither_it_nor_the_others(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(storage / "inbox", "berries", 0.3, 1.0)
    arrive(storage / "inbox", "flags", 0.1, 2.0)
    original, broken = module.learn_candidate, ["once"]

    def lost(*arguments: Any) -> Any:
        if broken:
            raise LadaError(f"a node died {broken.pop()}")
        return original(*arguments)

    monkeypatch.setattr(module, "learn_candidate", lost)
    done = run(storage)
    assert [(e.entry, e.status) for e in done.endings] == [("berries", "failed"), ("flags", "learnt")]
    assert not done.good
    assert not (storage / "inbox" / "berries" / REJECTED).exists()
    assert [(e.entry, e.status) for e in run(storage).endings] == [("berries", "learnt")]


@pytest.mark.accept
def test_a_model_learnt_in_another_precision_goes_on_in_its_own(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(storage / "inbox", "flags", 0.1, 1.0)
    # What a cluster with GPUs would choose.
    monkeypatch.setattr("lada_ray.cluster.Resources.precision", "bf16")
    assert [e.status for e in run(storage).endings] == ["learnt"]


POINTS: dict[str, tuple[Any, str, bool]] = {
    "before learning": (module, "learn_candidate", False),
    "after learning": (module, "learn_candidate", True),
    "before promoting": (Production, "promote", False),
    "after promoting": (Production, "promote", True),
    "before the ending": (module, "clear_rejection", False),
}


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours runs."""


@pytest.fixture(scope="module")
def undisturbed(learnt: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The packs of a retraining that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(learnt / "storage", folder / "storage")
    arrive(folder / "inbox", "flags", 0.1, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "publish", lambda production: True)
        run(folder)
    return tuple(model(folder).packs)


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=() if p == "after promoting" else pytest.mark.accept) for p in POINTS]
)
def test_a_kill_costs_nothing_and_doubles_nothing(
    storage: Path, undisturbed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    arrive(storage / "inbox", "flags", 0.1, 1.0)
    owner, name, after = POINTS[point]
    original = getattr(owner, name)

    def killed(*arguments: Any, **named: Any) -> Any:
        if after:
            original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            run(storage)
    run(storage)
    assert model(storage).packs == undisturbed
    assert list(model(storage).prompts) == ["fruit", "flags"]
    assert [version.number for version in history(model(storage))] == [1, 2]
    assert run(storage).endings == []


def test_what_a_kill_left_untold_is_told_by_the_next_start(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = arrive(storage / "inbox", "flags", 0.1, 1.0)
    (flags / "train" / "class_0").rename(storage / "aside")
    assert run(storage).endings[0].status == "rejected"
    assert (flags / REJECTED).exists()
    (storage / "aside").rename(flags / "train" / "class_0")

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "clear_rejection", killed)
        with pytest.raises(Killed):
            run(storage)
    assert [version.number for version in history(model(storage))] == [1, 2]
    monkeypatch.setattr(module.Learning, "_learn", None)  # there is nothing to be learnt
    (ending,) = run(storage).endings
    assert (ending.status, ending.version, ending.gate and ending.gate["passed"]) == ("learnt", 2, True)
    assert not (flags / REJECTED).exists()
    assert run(storage).endings == []


def test_an_entry_that_is_taken_away_meanwhile_costs_the_others_nothing(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [arrive(storage / "inbox", name, 0.1, moment) for moment, name in enumerate(("flags", "toys"))]
    original = module.validate

    def withdrawn(entry: Any, *arguments: Any) -> Any:
        if entry.name == "flags":
            shutil.rmtree(paths[0])
        return original(entry, *arguments)

    monkeypatch.setattr(module, "validate", withdrawn)
    done = run(storage)
    assert [(e.entry, e.status) for e in done.endings] == [("flags", "failed"), ("toys", "learnt")]
    assert "was taken away while it was looked at" in done.endings[0].said[0]


def test_what_cannot_be_listed_is_no_success(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = module.scan(str(storage / "inbox"))
    monkeypatch.setattr(module, "scan", lambda inbox: replace(found, unreadable=("pets: cannot be read",)))
    done = run(storage)
    assert (done.endings, done.good) == ([], False)


def test_an_owner_that_was_thought_dead_changes_nothing(storage: Path) -> None:
    with Production.open(settings(storage), QUIET) as production:
        Run(production.store, production.run.lease)  # somebody else's start raises the epoch
        state = production.champion.state
        with pytest.raises(LostLease, match="taken over"):
            production.promote(production.champion, Change("rollback", "1", state))
    assert len(history(model(storage))) == 1


def test_the_registry_follows(
    learnt: Path, storage: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    shutil.copy(learnt / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(module, "publish", publish)
    arrive(storage / "inbox", "flags", 0.1, 1.0)
    changed = settings(storage).model_copy(update={"tracking": TrackingConfig(uri=uri)})
    done = retrain(changed, str(storage / "inbox"), LIMITS, console=QUIET)
    assert done.published
    client = MlflowClient(uri)
    champion = client.get_model_version_by_alias("lada", "champion")
    assert champion.tags["lada_ray.version"] == "2"
    assert client.get_model_version_by_alias("lada", "previous").tags["lada_ray.version"] == "1"
    assert lada_ray.load("models:/lada@champion", uri).domains == ["fruit", "flags"]


def test_a_model_that_cannot_be_extended_is_refused(storage: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        retrain(Settings(model="nobody", storage=str(storage)), str(storage / "inbox"), LIMITS, console=QUIET)
    (storage / "storage" / "lada" / "domains.json").unlink()
    arrive(storage / "inbox", "flags", 0.1, 1.0)
    with pytest.raises(InputError, match=r"0 of 1 domains.*run_stream.py --config"):
        run(storage)


def test_resources_and_tracking_are_as_asked_for_now(storage: Path) -> None:
    asked = settings(storage).model_copy(
        update={"resources": ResourceConfig(encoders=3), "tracking": TrackingConfig(experiment="night")}
    )
    config = asked.config()
    assert (config.resources.encoders, config.resources.train_workers) == (3, 0)
    assert config.tracking.experiment == "night"
    assert config.tracking.uri is not None
