"""A configuration that learns again what a production model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lada_ray.console import Console
from lada_ray.errors import InputError
from lada_ray.production import Production, Settings
from lada_ray.restart import restart_config
from lada_ray.versions import TOMBSTONE, Change, State


def settings(storage: Path) -> Settings:
    return Settings(model="lada", storage=str(storage))


def learn_third(storage: Path, name: str, **details: Any) -> None:
    """A third version with the third pack again, as a domain of this name came through the inbox."""
    with Production.open(settings(storage), Console(quiet=True)) as production:
        first, champion = production.versions[0].state, production.champion
        prompts = {**champion.state.prompts, name: "a {}."}
        state = State(first.packs, prompts, first.domains)
        production.promote(champion, Change("learn", name, state, {}, details))


def test_it_has_the_champions_domains_in_order(two_versions: Path) -> None:
    config, notes = restart_config(settings(two_versions))
    assert [spec.name for spec in config.domains] == ["fruit", "flags"]
    assert notes == []


def test_domains_of_an_inbox_are_among_them(two_versions: Path) -> None:
    spec = {"name": "toys", "kind": "folder", "root": "/inbox/2026-11 toys", "prompt": "a toy {}."}
    learn_third(two_versions, "toys", spec=spec, shots=4)
    config, notes = restart_config(settings(two_versions))
    assert [spec.name for spec in config.domains] == ["fruit", "flags", "toys"]
    assert (config.domains[2].root, config.domains[2].prompt) == ("/inbox/2026-11 toys", "a toy {}.")
    (note,) = notes
    assert note.startswith("toys was learnt with 4 shots")


def test_what_it_cannot_say_is_said(two_versions: Path) -> None:
    stone = {"domain": "fruit", "class_name": "class_1", "versions": []}
    with Production.open(settings(two_versions), Console(quiet=True)) as production:
        champion = production.champion
        twice = State(
            (*champion.state.packs, champion.state.packs[0]),
            champion.state.prompts,
            (*champion.state.domains, champion.state.domains[0]),
        )
        production.promote(champion, Change("forget", "fruit: class_1", twice, {}, {TOMBSTONE: stone}))
    assert restart_config(settings(two_versions))[1] == [
        "fruit got more images later, which are not listed: put them into one folder",
        "the class class_1 of fruit was forgotten: remove its images",
    ]


def test_a_domain_from_nowhere_is_an_error(two_versions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn_third(two_versions, "toys")
    config = settings(two_versions).config()
    less = config.model_copy(update={"domains": config.domains[:2]})
    monkeypatch.setattr(Settings, "config", lambda self: less)
    with pytest.raises(
        InputError, match=r"where the images of toys came from .* domain\.yaml from the inbox"
    ):
        restart_config(settings(two_versions))
