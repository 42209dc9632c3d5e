"""Auditing a production model: whole, or what exactly is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lada_ray.audit import Audit, audit
from lada_ray.console import Console
from lada_ray.production import Settings

QUIET = Console(quiet=True)


@pytest.fixture
def edit(two_versions: Path) -> Callable[[Callable[[Any], object]], Audit]:
    """Change model.json, or nothing, as no job would, and audit what is there then."""
    path = two_versions / "lada" / "model" / "model.json"
    file = json.loads(path.read_text())
    for version, accuracy in zip(file["history"], ([0, 1, 2], [0, 1]), strict=True):
        assert len(version["accuracy"]) == len(accuracy)

    def edit(change: Callable[[Any], object]) -> Audit:
        changed = json.loads(json.dumps(file))
        change(changed)
        path.write_text(json.dumps(changed))
        return audit(Settings(model="lada", storage=str(two_versions)), QUIET)

    return edit


def nothing(_: Any) -> None:
    pass


def test_accuracies_of_all_versions_are_computed_again(edit: Callable[..., Audit]) -> None:
    found = edit(nothing)
    assert (found.numbers, found.problems, found.notes) == (5, (), ())
    # The second version's were made up.
    assert [line.split(" %")[0] for line in found.differences] == [
        "version 2: fruit: 1.0000",
        "version 2: flags: 2.0000",
    ]


def test_an_edited_history_is_noticed(edit: Callable[..., Audit]) -> None:
    def renumbered(file: Any) -> None:
        file["history"][0]["number"] = 7

    assert any("not numbered 1, 2" in line for line in edit(renumbered).differences)
    found = edit(lambda file: file["packs"].pop())
    assert any("not those of its newest version" in line for line in found.differences)
    found = edit(lambda file: file.update(history=[]))
    assert found.differences == ("there is no history yet: jobs/retrain.py starts one",)


def test_packs_out_of_order_are_noticed(edit: Callable[..., Audit]) -> None:
    def turned(file: Any) -> None:
        for key in ("packs", "domains"):
            file["history"][0]["state"][key] = file["history"][0]["state"][key][::-1]

    found = edit(turned)
    assert sum("does not follow the pack before it" in line for line in found.differences) == 3


def test_what_was_forgotten_must_be_gone(edit: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(file: Any) -> None:
        stone = {"domain": "toys", "class_name": None, "versions": [1]}
        file["history"][1]["details"]["tombstone"] = stone

    (note,) = edit(forgotten).notes
    assert "the next job on this model goes on" in note
    monkeypatch.setattr("lada_ray.audit.is_forgetting", lambda *_: False)
    (left,) = [line for line in edit(forgotten).differences if "which was forgotten" in line]
    assert "made with less" in left


def test_a_record_that_was_changed_is_a_problem(two_versions: Path, edit: Callable[..., Audit]) -> None:
    records = sorted((two_versions / "lada" / "domains").iterdir())
    first, second = records[:2]
    second.write_bytes(first.read_bytes())
    found = edit(nothing)
    assert any("was changed: restore it" in line for line in found.problems)
