"""The history inside model.json: all or nothing, never a lost update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lada_ray.errors import Conflict, InputError, LostLease
from lada_ray.head import Prediction
from lada_ray.model import MODEL, ModelFile, read_model_file
from lada_ray.pack import TaskPack
from lada_ray.store import Store, open_store
from lada_ray.versions import (
    Change,
    State,
    Version,
    find_restorable,
    find_version,
    history,
    open_candidate,
    promote,
    read_production,
    restorable,
)


def state(*names: str) -> State:
    return State(
        tuple(f"pack {n}" for n in names), dict.fromkeys(names, "a {}."), tuple(f"domains/{n}" for n in names)
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A model of one pack, written by epoch 3."""
    store = open_store(tmp_path)
    first = state("pets")
    file = ModelFile({}, Prediction(100.0, 1.0, 1.0, "gated"), first.packs, first.prompts, epoch=3)
    store.write(MODEL, file.to_bytes())
    return store


def change(*names: str, **details: object) -> Change:
    return Change("learn", names[-1], state(*names), {name: 50.0 for name in names}, details)


def test_versions_are_numbered_and_read_back_as_they_were_written(store: Store) -> None:
    one = promote(store, 3, ("pack pets",), change("pets", owner="me"))
    two = promote(store, 3, one.state.packs, change("pets", "wild"))
    file = read_production(store)[0]
    assert history(file) == [one, two]
    assert [version.number for version in history(file)] == [1, 2]
    assert (file.packs, file.prompts) == (two.state.packs, two.state.prompts)
    assert find_version(file, 1) == one
    assert one.digest != two.digest
    assert Version.from_json(file.history[0]).digest == one.digest
    with pytest.raises(InputError, match=r"no version 3 \(versions: 1 to 2\)"):
        find_version(file, 3)


def test_who_is_late_changes_nothing(store: Store) -> None:
    promote(store, 3, ("pack pets",), change("pets", "wild"))
    before = store.read(MODEL)
    with pytest.raises(LostLease, match="taken over"):
        promote(store, 2, ("pack pets", "pack wild"), change("toys"))
    with pytest.raises(Conflict, match="start it again"):
        promote(store, 3, ("pack pets",), change("pets", "toys"))
    assert store.read(MODEL) == before


def test_an_answer_that_got_lost_is_no_conflict(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = type(store).replace

    def lose_the_answer(self: Store, key: str, data: bytes, expected: str | None) -> str:
        write(self, key, data, expected)
        raise Conflict("no answer")

    monkeypatch.setattr(type(store), "replace", lose_the_answer)
    assert promote(store, 3, ("pack pets",), change("pets", "wild")).number == 1
    assert len(read_production(store)[0].history) == 1


def test_what_a_tombstone_names_is_not_restorable(store: Store) -> None:
    promote(store, 3, ("pack pets",), change("pets"))
    promote(store, 3, ("pack pets",), change("pets", "wild"))
    promote(store, 3, ("pack pets", "pack wild"), change("wild", tombstone={"versions": [1, 2]}))
    file = read_production(store)[0]
    assert [version.number for version in restorable(history(file))] == [3]
    assert find_restorable(file, 3).number == 3
    with pytest.raises(InputError, match=r"version 2 consists of was forgotten.*there are: 3"):
        find_restorable(file, 2)


def identity(name: str, image: str = "0.png") -> dict[str, Any]:
    return {
        "labels": [(name, "cat")],
        "config": {"prompt": f"a {name} {{}}."},
        "samples": [(image, "sha")],
    }


def test_a_candidate_goes_on_where_it_was_if_it_starts_from_the_same_packs(store: Store) -> None:
    champion, name = read_production(store)[0], "candidates/x.json"
    learnt = TaskPack.build(identity("wild"), champion.packs[-1], {"text": np.zeros((1, 2), np.float32)})
    learnt.write(store)
    both = [identity("pets"), identity("wild")]
    open_candidate(store, name, champion, champion.packs, both)
    found = read_model_file(store, name)
    assert found is not None
    assert (found[0].packs, found[0].history) == (champion.packs, ())
    more = replace(found[0], packs=(*champion.packs, learnt.digest))

    def reopened(before: tuple[str, ...], identities: list[dict[str, Any]]) -> tuple[str, ...]:
        store.write(name, more.to_bytes())
        open_candidate(store, name, replace(champion, epoch=4), before, identities)
        now = read_model_file(store, name)
        assert now is not None
        assert now[0].epoch == 4
        return now[0].packs

    assert reopened(champion.packs, both) == more.packs
    again = read_model_file(store, name)
    assert again is not None
    assert again[0].prompts == {**champion.prompts, "wild": "a wild {}."}
    assert reopened(("pack toys",), both) == ("pack toys",)
    # Another image was chosen meanwhile: what was learnt without it is not what is asked for.
    assert reopened(champion.packs, [both[0], identity("wild", "1.png")]) == champion.packs


def test_each_pack_has_a_record() -> None:
    with pytest.raises(ValueError, match="1 packs and 0 domains"):
        State(("pack",), {}, ())
