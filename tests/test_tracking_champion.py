"""The registry as a projection of a history: idempotent, repaired after any kill, never going back."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from lada_ray import tracking
from lada_ray.errors import IntegrityError
from lada_ray.model import LadaModel
from lada_ray.tracking import PublishedVersion, champion, project

if TYPE_CHECKING:
    from tests.conftest import TinyWorld

CHANGES = (
    *("create_registered_model", "create_run", "log_artifacts", "set_terminated", "create_model_version"),
    *("set_registered_model_alias", "delete_registered_model_alias", "delete_model_version_tag"),
    *("delete_model_version", "create_experiment"),
)
"""Calls of MLflow that change something: a kill between two others leaves what it found."""


def version(number: int, digest: str | None = None, **more: Any) -> PublishedVersion:
    return PublishedVersion(number, digest or f"d{number}", f"learn domain {number}", **more)


ONE, TWO, THREE = (version(number) for number in (1, 2, 3))


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised SQLite store, copied by tests that need one quickly."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with tracking.quiet_client():
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, fresh_database: Path) -> str:
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the versions that were written, in order; their folders are small."""
    numbers: list[int] = []

    def write(save: Callable[[Path], None], path: Path) -> None:
        path.mkdir()
        save(path / "MLmodel")

    monkeypatch.setattr(champion, "save_pyfunc", write)
    return numbers


def save_into(numbers: list[int], one: PublishedVersion, path: Path) -> None:
    numbers.append(one.number)
    path.write_text(f"version {one.number}")


@dataclass
class Caller:
    """Calls `project`, and remembers what it said."""

    uri: str
    saved: list[int]
    name: str = "lada"
    said: list[str] = field(default_factory=list)

    def __call__(
        self, *versions: PublishedVersion, champion: int | None = None, challenger: Any = None
    ) -> bool:
        number = champion or max((one.number for one in versions), default=0)
        save = partial(save_into, self.saved)
        return project(
            self.uri,
            f"{self.name} production",
            self.name,
            versions,
            save,
            self.said.append,
            number,
            challenger,
        )


@pytest.fixture
def call(uri: str, saved: list[int]) -> Caller:
    return Caller(uri, saved)


class Found:
    """What MLflow has: the registry's versions, aliases as numbers in the history, statuses of the uploads."""

    def __init__(self, uri: str, name: str = "lada") -> None:
        self.client = MlflowClient(uri, registry_uri=uri)
        entries = self.client.search_model_versions(f"name = '{name}'")
        self.entries: list[ModelVersion] = sorted(entries, key=lambda entry: int(entry.version))
        aliases = self.client.get_registered_model(name).aliases
        number = {str(entry.version): entry.tags.get("lada_ray.version") for entry in self.entries}
        self.aliases = {alias: number[str(version)] for alias, version in aliases.items()}
        experiment = self.client.get_experiment_by_name(f"{name} production")
        assert experiment is not None
        self.runs = list(self.client.search_runs([experiment.experiment_id]))

    @property
    def keys(self) -> list[tuple[str, str]]:
        """(number, digest) of the registry's versions, in its order."""
        return [(e.tags["lada_ray.version"], e.tags["lada_ray.digest"]) for e in self.entries]

    @property
    def uploads(self) -> list[tuple[str, str]]:
        """(number, status) of the runs, sorted."""
        return sorted((run.data.tags["lada_ray.version"], run.info.status) for run in self.runs)

    def content(self, entry: ModelVersion) -> str:
        """What lies at a registry version's source."""
        assert entry.source is not None
        return Path(entry.source.removeprefix("file://"), "MLmodel").read_text()

    def everything(self) -> Any:
        """All of it, to see that nothing was touched."""
        entries = [(e.version, e.source, e.run_id, e.last_updated_timestamp, e.tags) for e in self.entries]
        return entries, self.aliases, [(run.info.run_id, run.info.status, run.data.tags) for run in self.runs]


def test_a_history_becomes_versions_and_aliases(call: Caller, uri: str) -> None:
    assert call(ONE, version(2, tags={"domain": "toys"}), THREE)
    found = Found(uri)
    assert found.keys == [("1", "d1"), ("2", "d2"), ("3", "d3")]
    assert found.aliases == {"champion": "3", "previous": "2"}
    assert [found.content(entry) for entry in found.entries] == ["version 1", "version 2", "version 3"]
    assert found.uploads == [("1", "FINISHED"), ("2", "FINISHED"), ("3", "FINISHED")]
    assert found.entries[1].tags["domain"] == "toys"
    assert found.entries[1].description == "learn domain 2"
    assert {run.info.run_id for run in found.runs} == {entry.run_id for entry in found.entries}
    assert call.said == []


def test_the_first_version_has_no_previous(call: Caller, uri: str) -> None:
    assert call(ONE)
    assert Found(uri).aliases == {"champion": "1"}
    assert call(ONE, TWO)
    assert Found(uri).aliases == {"champion": "2", "previous": "1"}


def test_calling_again_changes_nothing(call: Caller, uri: str) -> None:
    refused = (version(3, "c"), "pets drops by 7.0 points")
    assert call(ONE, TWO, challenger=refused)
    before = Found(uri).everything()
    assert call(ONE, TWO, challenger=refused)
    assert call(ONE, TWO)
    assert Found(uri).everything() == before
    assert call.saved == [1, 2, 3]


def test_a_refused_candidate_is_the_challenger_and_the_champion_stays(call: Caller, uri: str) -> None:
    assert call(ONE, TWO)
    assert call(ONE, TWO, challenger=(version(3, "bad"), "pets drops by 7.0 points, at most 2 are allowed"))
    found = Found(uri)
    assert found.aliases == {"champion": "2", "previous": "1", "challenger": "3"}
    assert found.entries[2].tags["lada_ray.refused"] == "pets drops by 7.0 points, at most 2 are allowed"
    assert call(ONE, TWO, challenger=(version(3, "worse"), ""))
    found = Found(uri)
    assert found.keys[2:] == [("3", "bad"), ("3", "worse")]
    assert found.client.get_model_version_by_alias("lada", "challenger").tags["lada_ray.digest"] == "worse"
    assert call(ONE, TWO, THREE)  # it passed after all
    found = Found(uri)
    assert found.aliases == {"champion": "3", "previous": "2"}
    assert found.client.get_model_version_by_alias("lada", "champion").tags["lada_ray.digest"] == "d3"


def test_a_candidate_that_is_promoted_after_all_is_no_challenger(call: Caller, uri: str) -> None:
    assert call(ONE, challenger=(TWO, "toys beats zero-shot by 0.1 points only"))
    assert call(ONE, TWO)
    found = Found(uri)
    assert found.keys == [("1", "d1"), ("2", "d2")]
    assert found.aliases == {"champion": "2", "previous": "1"}
    assert "lada_ray.refused" not in found.entries[1].tags
    assert call.saved == [1, 2]


def test_a_challenger_does_not_go_back(call: Caller, uri: str) -> None:
    assert call(ONE, TWO, challenger=(THREE, "bad"))
    assert call(ONE, challenger=(version(2, "earlier"), "bad"))
    assert Found(uri).aliases["challenger"] == "3"


def test_the_champion_does_not_go_back(call: Caller, uri: str) -> None:
    assert call(ONE, TWO, THREE)
    before = Found(uri).everything()
    assert call(ONE, TWO)  # a process that was paused before version 3
    assert Found(uri).everything() == before
    assert len(call.said) == 1
    assert "has version 3 of lada, which is newer" in call.said[0]
    assert call(ONE, TWO, THREE, champion=2)
    assert Found(uri).everything() == before


def test_a_replayed_refusal_of_what_was_promoted_is_no_challenger(call: Caller, uri: str) -> None:
    assert call(ONE, TWO)
    assert call(ONE, challenger=(TWO, "bad"))
    assert Found(uri).aliases == {"champion": "2", "previous": "1"}


def test_aliases_set_by_hand_are_put_right(call: Caller, uri: str) -> None:
    assert call(ONE, TWO, challenger=(THREE, "bad"))
    client = MlflowClient(uri, registry_uri=uri)
    client.create_model_version("lada", f"{Found(uri).runs[0].info.artifact_uri}/model")  # somebody else's
    for wrong in ("1", "3", "4"):
        client.set_registered_model_alias("lada", "champion", wrong)
        client.delete_registered_model_alias("lada", "previous")
        assert call(ONE, TWO)
        aliases = client.get_registered_model("lada").aliases
        assert {alias: int(number) for alias, number in aliases.items()} == {
            "champion": 2,
            "previous": 1,
            "challenger": 3,
        }


# ---------------------------------------------------------------- kills


class Killed(BaseException):
    """As KeyboardInterrupt, nothing that ought to be caught."""


@contextmanager
def killed_before(change: int) -> Iterator[Counter[str]]:
    """Die instead of making the given change of MLflow (counted from 0); an upload dies halfway.

    Yields:
        the changes made, and "killed".
    """
    made: Counter[str] = Counter()

    def watch(name: str) -> Callable[..., Any]:
        real = getattr(MlflowClient, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if made.total() == change:
                if name == "log_artifacts":
                    client, run_id, _ = args
                    client.log_text(run_id, "vers", "model/MLmodel")
                raise Killed
            made[name] += 1
            return real(*args, **kwargs)

        return watched

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(MlflowClient, name, watch(name))
        try:
            yield made
        except Killed:
            made["killed"] = 1


STEPS: list[Callable[[Caller], bool]] = [
    lambda call: call(ONE, challenger=(TWO, "bad")),
    lambda call: call(ONE, TWO, challenger=(THREE, "worse")),
]


@pytest.mark.timeout(600)  # seconds alone, minutes on a machine that is busy
def test_killed_between_any_two_calls_the_next_one_repairs(uri: str, saved: list[int]) -> None:
    changes = 21
    for change in range(changes + 1):
        call = Caller(uri, saved, f"lada-{change}")
        done = 0
        with killed_before(change) as made:
            for step in STEPS:
                step(call)
                done += 1
        assert made["killed"] == (change < changes)
        again = 1 if done else change % 2  # a start that comes at once, or after more was learnt
        for step in STEPS[again:]:
            assert step(call)
        found = Found(uri, call.name)
        assert found.keys == [("1", "d1"), ("2", "d2"), ("3", "d3")]
        assert found.aliases == {"champion": "2", "previous": "1", "challenger": "3"}
        assert [entry.tags.get("lada_ray.refused") for entry in found.entries] == [None, None, "worse"]
        assert found.uploads == [("1", "FINISHED"), ("2", "FINISHED"), ("3", "FINISHED")]
        assert [found.content(entry) for entry in found.entries] == ["version 1", "version 2", "version 3"]
        assert call.said == []
    assert made == {
        "create_experiment": 1,
        "create_registered_model": 1,
        "create_run": 3,
        "log_artifacts": 3,
        "set_terminated": 3,
        "create_model_version": 3,
        "set_registered_model_alias": 5,
        "delete_registered_model_alias": 1,
        "delete_model_version_tag": 1,
    }


def test_an_upload_that_nobody_goes_on_with_is_closed(call: Caller, uri: str) -> None:
    assert call(ONE)
    with killed_before(1):  # the run of the upload is there, nothing in it
        call(ONE, challenger=(version(2, "gone"), "bad"))
    assert Found(uri).uploads == [("1", "FINISHED"), ("2", "RUNNING")]
    assert call(ONE, TWO)
    found = Found(uri)
    assert found.uploads == [("1", "FINISHED"), ("2", "FINISHED"), ("2", "KILLED")]
    assert found.keys == [("1", "d1"), ("2", "d2")]


# ---------------------------------------------------------------- two at once


def test_another_process_that_was_quicker_is_noticed(
    call: Caller, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MlflowClient.log_artifacts

    def slow(*args: Any) -> None:
        monkeypatch.setattr(MlflowClient, "log_artifacts", real)
        assert call(ONE, TWO)  # the other one, while our upload is on its way
        real(*args)

    monkeypatch.setattr(MlflowClient, "log_artifacts", slow)
    assert call(ONE)
    found = Found(uri)
    assert found.keys == [("1", "d1"), ("2", "d2")]
    assert found.aliases == {"champion": "2", "previous": "1"}
    assert found.uploads == [("1", "FINISHED"), ("2", "FINISHED")]


def test_a_paused_owner_that_moves_the_champion_back_puts_it_right(
    call: Caller, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(ONE)
    real = MlflowClient.set_registered_model_alias

    def paused(client: MlflowClient, name: str, alias: str, number: str) -> None:
        if alias == "champion":
            monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
            assert call(ONE, TWO, THREE)  # between its look and its change
        real(client, name, alias, number)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", paused)
    assert call(ONE, TWO)
    assert Found(uri).aliases == {"champion": "3", "previous": "2"}


def test_versions_that_two_made_are_merged(call: Caller, uri: str) -> None:
    assert call(ONE, TWO)
    client = MlflowClient(uri, registry_uri=uri)
    twin = Found(uri).entries[1]
    tags = {"lada_ray.version": "2", "lada_ray.digest": "d2"}
    again = client.create_model_version("lada", str(twin.source), twin.run_id, tags)
    client.set_registered_model_alias("lada", "champion", str(again.version))
    client.set_registered_model_alias("lada", "previous", "1")
    assert call(ONE, TWO)
    found = Found(uri)
    assert found.keys == [("1", "d1"), ("2", "d2")]
    assert str(found.entries[1].version) == str(again.version)  # the one that applications ask
    assert found.aliases == {"champion": "2", "previous": "1"}


# ---------------------------------------------------------------- MLflow away


def test_an_mlflow_that_is_away_costs_a_message(saved: list[int]) -> None:
    call = Caller("http://me:secret@127.0.0.1:9", saved)
    assert not call(ONE)
    assert len(call.said) == 1
    assert "registry does not show all versions of lada yet" in call.said[0]
    assert "Nothing is lost" in call.said[0]
    assert "secret" not in call.said[0]


def test_what_fails_on_the_way_is_said_and_made_up_for(
    call: Caller, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", full)
        assert not call(ONE, TWO)
    assert "OSError: no space left" in call.said[0]
    assert Found(uri).keys == []
    assert call(ONE, TWO)
    assert Found(uri).aliases == {"champion": "2", "previous": "1"}
    assert Found(uri).uploads == [("1", "FINISHED"), ("2", "FINISHED")]


def test_a_version_that_cannot_be_written_is_named_and_holds_up_no_other(uri: str, saved: list[int]) -> None:
    def damaged(one: PublishedVersion, path: Path) -> None:
        if one is TWO:
            raise IntegrityError(f"version {one.number}: a pack is missing")
        save_into(saved, one, path)

    said: list[str] = []
    versions = [ONE, TWO, THREE]
    assert not project(uri, "lada production", "lada", versions, damaged, said.append, 3)
    assert "IntegrityError: version 2: a pack is missing" in said[0]
    assert Found(uri).keys == [("1", "d1"), ("3", "d3")]
    assert Found(uri).aliases == {"champion": "3", "previous": "1"}
    assert not project(uri, "lada production", "lada", [TWO], damaged, said.append, 2)
    assert Found(uri).aliases == {"champion": "3", "previous": "1"}
    assert project(uri, "lada production", "lada", versions, partial(save_into, saved), pytest.fail, 3)
    assert Found(uri).aliases == {"champion": "3", "previous": "2"}
    assert Found(uri).uploads == [("1", "FINISHED"), ("2", "FINISHED"), ("3", "FINISHED")]


# ---------------------------------------------------------------- a real model


def test_each_version_is_loaded_as_it_was(learnt_run: tuple[TinyWorld, str], uri: str) -> None:
    learnt = LadaModel.load(f"{learnt_run[1]}/model")
    digests = [pack.digest for pack in learnt.packs]

    def save(one: PublishedVersion, path: Path) -> None:
        from dataclasses import replace

        packs = learnt.packs[: one.number]
        file = replace(learnt.file, packs=tuple(digests[: one.number]))
        LadaModel(file, packs).save(path)

    assert project(uri, "production", "lada", [ONE, TWO], save, pytest.fail, 2)
    for name, packs in (("@champion", 2), ("@previous", 1), ("/1", 1), ("/2", 2)):
        found = tracking.load(f"models:/lada{name}", tracking_uri=uri)
        assert [pack.digest for pack in found.packs] == digests[:packs]
        assert Path(found.spec.pretrained).is_file()
