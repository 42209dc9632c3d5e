"""The registry as a projection of the history: brought up once, and again where something changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import lada_ray
from lada_ray import publish as module
from lada_ray.console import Console
from lada_ray.production import Production, Settings
from lada_ray.publish import SHOWN, accept, is_published, publish, refuse
from lada_ray.versions import State

QUIET = Console(quiet=True)


def uri(storage: Path) -> str:
    return f"sqlite:///{storage}/registry.db"


@pytest.fixture
def production(two_versions: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Production]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values = {"model": "lada", "storage": str(two_versions), "tracking": {"uri": uri(two_versions)}}
    with Production.open(Settings.model_validate(values), QUIET) as production:
        yield production


def aliases(storage: Path) -> dict[str, str]:
    """lada_ray's version by alias."""
    client = MlflowClient(uri(storage))
    found = client.get_registered_model("lada").aliases
    return {
        alias: client.get_model_version("lada", number).tags["lada_ray.version"]
        for alias, number in found.items()
    }


def test_versions_and_aliases_are_shown_and_asked_for_once(
    production: Production, two_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_published(production.store, production.file, production.config)
    assert publish(production)
    assert aliases(two_versions) == {"champion": "2", "previous": "1"}
    assert is_published(production.store, production.file, production.config)
    monkeypatch.setattr(module, "show_versions", None)
    assert publish(production)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri(two_versions))
    champion = lada_ray.load("models:/lada@champion")
    assert champion.domains == ["fruit", "flags"]


def test_a_refused_candidate_is_the_challenger(production: Production, two_versions: Path) -> None:
    first = production.versions[0].state
    candidate = State(first.packs, first.prompts, first.domains)
    refuse(production.store, production.champion, "toys", candidate, "flags drops by 20 points")
    assert publish(production)
    client = MlflowClient(uri(two_versions))
    challenger = client.get_model_version_by_alias("lada", "challenger")
    assert "refused: toys" in challenger.description
    assert "flags drops by 20 points" in f"{challenger.description} {challenger.tags}"
    assert aliases(two_versions)["champion"] == "2"


def test_a_candidate_that_is_promoted_after_all_is_no_challenger(
    production: Production, two_versions: Path
) -> None:
    champion = production.champion
    refuse(production.store, production.versions[0], "toys", champion.state, "flags drops by 20 points")
    assert publish(production)
    assert aliases(two_versions)["challenger"] == "2"
    accept(production.store, "boats")
    assert publish(production)
    assert "challenger" in aliases(two_versions)
    accept(production.store, "toys")
    assert publish(production)
    assert aliases(two_versions) == {"champion": "2", "previous": "1"}


def test_an_outage_is_said_and_made_up_for(
    production: Production, two_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(production.console, "warn", said.append)

    def down(*_: Any) -> tuple[bool, list[str]]:
        return False, ["the registry does not answer"]

    with monkeypatch.context() as outage:
        outage.setattr(module, "show_versions", down)
        assert not publish(production)
    assert said == ["the registry does not answer"]
    assert production.store.read_version(SHOWN) is None
    assert publish(production)
    assert aliases(two_versions)["champion"] == "2"
