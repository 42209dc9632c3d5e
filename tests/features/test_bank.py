"""The feature bank: what was written is found again, bit by bit; what no recent run needs can go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lada_ray.errors import IntegrityError, LadaError
from lada_ray.features import parts
from lada_ray.features.bank import BankSize, FeatureBank, banks
from lada_ray.features.parts import Part, PartTable
from lada_ray.store import open_store

WIDTH = 3


def new_bank(folder: Path) -> FeatureBank:
    return FeatureBank(open_store(folder), "key", WIDTH)


def feature(sha: str, view: str) -> list[float]:
    """A feature that tells its key."""
    return [float(ord(sha)), float(len(view)), 0.1]


def add(bank: FeatureBank, run: str, *pairs: tuple[str, str]) -> None:
    shas, views = zip(*pairs, strict=True)
    features = np.array([feature(*pair) for pair in pairs], np.float32)
    bank.table.enter([bank.write(shas, views, features, run)])


def held(bank: FeatureBank) -> set[tuple[str, str]]:
    tables = [table for _, table in bank.table.scan(["sha256", "view"])]
    return {(r["sha256"], r["view"]) for table in tables for r in table.to_pylist()}


def test_features_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"), ("b", "test"), ("a", "crop_flip/0"))
    add(bank, "r", ("b", "crop_flip/0"), ("c", "test"))
    found = bank.fetch(["b", "a", "b"], ["crop_flip/0", "test"])
    assert found.dtype == np.float32
    expected = [[feature(sha, view) for view in ("crop_flip/0", "test")] for sha in ("b", "a", "b")]
    assert np.array_equal(found, np.array(expected, np.float32))
    assert bank.fetch([], ["test"]).shape == (0, 1, WIDTH)


def test_missing_goes_pair_by_pair(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"), ("b", "x/0"))
    shas, views = ["a", "a", "b", "b", "a", "zz"], ["test", "x/0", "x/0", "test", "test", "x/0"]
    assert bank.missing(shas, views).tolist() == [False, True, False, True, False, True]
    assert bank.missing([], []).tolist() == []
    assert new_bank(tmp_path / "empty").missing(["a"], ["test"]).tolist() == [True]


def test_fetch_counts_what_is_missing(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"))
    with pytest.raises(LadaError, match=r"^3 of 4 features are not in the bank .*start the run again"):
        bank.fetch(["a", "b"], ["test", "x/0"])


def test_a_part_that_was_not_entered_is_not_there(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    bank.write(["a"], ["test"], np.ones((1, WIDTH), np.float32), "r")
    assert bank.missing(["a"], ["test"]).tolist() == [True]


def test_merged_parts_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MERGE_ABOVE", 2)
    bank = new_bank(tmp_path)
    for i, sha in enumerate("abcd"):
        add(bank, f"run{i % 2}", (sha, "test"), (sha, f"x/{i}"))
    before = bank.fetch(list("abcd"), ["test"])
    assert bank.table.merge() == 4
    assert np.array_equal(bank.fetch(list("abcd"), ["test"]), before)
    assert bank.size() == BankSize(8, 1, bank.size().bytes)
    assert (bank.table.added_by("run0"), bank.table.added_by("run1")) == (4, 4)


def test_only_keys_are_read_of_parts_without_a_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"))
    add(bank, "r", ("b", "test"))
    asked: list[tuple[str, ...]] = []
    read = PartTable.read

    def watched(table: PartTable, name: str, columns: list[str]) -> object:
        asked.append(tuple(columns))
        return read(table, name, columns)

    monkeypatch.setattr(PartTable, "read", watched)
    bank.missing(["a"], ["test"])
    bank.fetch(["a"], ["test"])
    keys = ("sha256", "view")
    assert sorted(asked) == sorted([keys, keys, keys, keys, ("feature",)])


def test_size_and_banks_ask_the_manifests(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    assert bank.size() == BankSize(0, 0, 0)
    add(bank, "r", ("a", "test"), ("b", "test"))
    add(bank, "r", ("c", "test"))
    bank.note_needs("r", ["a"], ["test"])
    for name in ("index", "bad"):
        open_store(tmp_path).write(f"{name}/manifest.json", b'{"parts": [], "retired": {}}')
    size = bank.size()
    assert (size.views, size.parts) == (3, 2)
    assert size.bytes == sum(f.stat().st_size for f in (tmp_path / "key" / "parts").glob("*.parquet"))
    assert dict(banks(open_store(tmp_path))) == {"key": size}
    assert FeatureBank.open(open_store(tmp_path), "key").width == WIDTH


def started_days_ago(tmp_path: Path, run: str, days: float) -> None:
    manifest = tmp_path / "key" / "needs" / run / "manifest.json"
    then = time.time() - days * 24 * 3600
    os.utime(manifest, (then, then))


def test_prune_keeps_what_recent_runs_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = new_bank(tmp_path)
    add(bank, "old", ("a", "test"), ("b", "test"), ("a", "x/0"))
    add(bank, "old", ("c", "test"))
    add(bank, "new", ("d", "test"))
    bank.note_needs("old", ["a", "b", "a", "c"], ["test", "test", "x/0", "test"])
    bank.note_needs("new", ["a", "d"], ["test", "test"])
    started_days_ago(tmp_path, "old", 10)
    assert bank.prune(11) == 0
    assert bank.prune(9) == 3
    assert held(bank) == {("a", "test"), ("d", "test")}
    assert np.array_equal(bank.fetch(["a"], ["test"])[0, 0], np.array(feature("a", "test"), np.float32))
    # Additions are history: a run that looks itself up later still knows how much it encoded.
    assert (bank.table.added_by("old"), bank.table.added_by("new")) == (3, 1)
    # The files stay for those who are reading them, and go a little later.
    assert len(list((tmp_path / "key" / "parts").glob("*.parquet"))) == 4
    assert bank.table.adopt() == 0
    with monkeypatch.context() as patch:
        patch.setattr(parts, "REMOVED_KEPT_S", 0.0)
        assert bank.prune(9) == 0
    assert len(list((tmp_path / "key" / "parts").glob("*.parquet"))) == 2


def test_prune_without_any_need_empties_the_bank(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"))
    assert bank.prune(1) == 1
    assert bank.size() == BankSize(0, 0, 0)
    add(bank, "r", ("a", "test"))
    assert bank.missing(["a"], ["test"]).tolist() == [False]


def test_a_prune_that_was_killed_before_it_counted_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"), ("b", "test"))
    bank.note_needs("r", ["a"], ["test"])
    with monkeypatch.context() as patch:
        patch.setattr(PartTable, "exchange", lambda *_: None)
        bank.prune(1)
    assert bank.table.adopt() == 0
    assert bank.size().views == 2
    assert bank.table.added_by("r") == 2


def test_needs_are_those_of_the_newest_start(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"), ("b", "test"))
    bank.note_needs("r", ["a"], ["test"])
    bank.note_needs("r", ["b"], ["test"])
    bank.note_needs("r", ["a"], ["test"])
    assert bank.prune(1) == 1
    assert held(bank) == {("a", "test")}
    assert len(list((tmp_path / "key" / "needs" / "r" / "parts").iterdir())) == 1


def test_the_same_need_again_says_that_the_run_was_started(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"))
    bank.note_needs("r", ["a"], ["test"])
    started_days_ago(tmp_path, "r", 10)
    bank.note_needs("r", ["a"], ["test"])
    assert bank.prune(1) == 0
    assert held(bank) == {("a", "test")}


def vanishing(monkeypatch: pytest.MonkeyPatch, columns: list[str], act: Callable[[], None]) -> None:
    """Let another job act right before these columns of a part are first read."""
    read = PartTable.read

    def later(table: PartTable, name: str, asked: list[str]) -> object:
        if asked == columns:
            monkeypatch.setattr(PartTable, "read", read)
            act()
        return read(table, name, asked)

    monkeypatch.setattr(PartTable, "read", later)


def merged_away(bank: FeatureBank) -> None:
    """Another job merges all parts, and sweeps at once."""
    old = list(bank.table.manifest().parts.values())
    tables = [bank.table.read(part.name, bank.table.schema.names) for part in old]
    assert bank.table.rewrite(old, pa.concat_tables(tables))
    assert bank.table.sweep(0) >= len(old)


@pytest.mark.parametrize("columns", [["sha256", "view"], ["feature"]])
def test_a_part_may_vanish_under_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: list[str]
) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"))
    add(bank, "r", ("b", "test"))
    expected = np.array([[feature("a", "test")], [feature("b", "test")]], np.float32)
    vanishing(monkeypatch, columns, lambda: merged_away(bank))
    assert np.array_equal(bank.fetch(["a", "b"], ["test"]), expected)


def test_missing_prune_and_open_go_on_where_a_part_vanished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"), ("b", "test"))
    add(bank, "r", ("c", "test"))
    bank.note_needs("r", ["b", "c"], ["test", "test"])
    vanishing(monkeypatch, ["sha256", "view"], lambda: merged_away(bank))
    assert bank.missing(["a", "c", "d"], ["test"] * 3).tolist() == [False, False, True]
    add(bank, "r", ("e", "test"))
    vanishing(monkeypatch, bank.table.schema.names, lambda: merged_away(bank))
    assert bank.prune(1) == 2
    assert held(bank) == {("b", "test"), ("c", "test")}
    vanishing(monkeypatch, ["feature"], lambda: merged_away(bank))
    assert FeatureBank.open(open_store(tmp_path), "key").width == WIDTH


def test_rows_that_another_job_took_are_not_counted_as_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"))
    bank.note_needs("r", [], [])
    monkeypatch.setattr(PartTable, "exchange", lambda *_: False)
    assert bank.prune(1) == 0


def test_a_part_that_should_be_there_is_named(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"))
    (part,) = bank.table.manifest().parts
    bank.table.store.delete(f"parts/{part}")
    with pytest.raises(IntegrityError, match=rf"parts/{part} is not there.*Restore it"):
        bank.fetch(["a"], ["test"])


def test_late_parts_of_killed_actors_count_nothing_twice(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    add(bank, "r", ("a", "test"), ("b", "test"))

    def left_behind(*pairs: tuple[str, str]) -> Part:
        shas, views = zip(*pairs, strict=True)
        return bank.write(shas, views, np.array([feature(*p) for p in pairs], np.float32), "r")

    whole = left_behind(("b", "test"))
    partly = left_behind(("a", "test"), ("c", "test"), ("b", "x/0"))
    new = left_behind(("d", "test"))
    assert bank.table.adopt() == 2
    assert (bank.size().views, bank.table.added_by("r")) == (5, 5)
    expected = {("a", "test"), ("b", "test"), ("c", "test"), ("b", "x/0"), ("d", "test")}
    assert held(bank) == expected
    manifest = bank.table.manifest()
    assert new.name in manifest.parts
    assert {whole.name, partly.name} <= set(manifest.retired)
    # Their writers may yet enter them.
    bank.table.enter([whole, partly])
    assert (bank.table.adopt(), bank.size().views) == (0, 5)
    assert np.array_equal(bank.fetch(["c"], ["test"])[0, 0], np.array(feature("c", "test"), np.float32))


def test_two_late_parts_with_the_same_rows_count_once(tmp_path: Path) -> None:
    bank = new_bank(tmp_path)
    for pairs in ([("a", "test"), ("b", "test")], [("b", "test"), ("a", "test")]):
        shas, views = zip(*pairs, strict=True)
        bank.write(shas, views, np.array([feature(*p) for p in pairs], np.float32), "r")
    assert bank.table.adopt() == 1
    assert (bank.size().views, bank.table.added_by("r")) == (2, 2)
