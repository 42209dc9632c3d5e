"""The append-only Parquet table: nothing is lost, counted twice or read from a half-finished change."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from lada_ray.features import parts
from lada_ray.features.parts import MANIFEST, Part, PartTable
from lada_ray.store import join, open_store

SCHEMA = pa.schema([("key", pa.string()), ("value", pa.int64())])


def rows(*values: int) -> pa.Table:
    return pa.table({"key": [f"k{v}" for v in values], "value": list(values)}, SCHEMA)


def table_at(folder: str | Path) -> PartTable:
    return PartTable(open_store(folder), SCHEMA)


def values(table: PartTable) -> list[int]:
    return sorted(v for _, part in table.scan(["value"]) for v in part["value"].to_pylist())


def add(table: PartTable, run: str, *numbers: int) -> Part:
    part = table.write(rows(*numbers), run)
    table.enter([part])
    return part


def files(table: PartTable) -> set[str]:
    return {entry.key.rpartition("/")[2] for entry in table.store.list("parts")}


def test_a_part_counts_once_it_is_entered(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    part = table.write(rows(1, 2), "a")
    assert (values(table), table.manifest().parts) == ([], {})
    table.enter([part])
    table.enter([part])
    assert values(table) == [1, 2]
    assert list(table.manifest().parts) == [part.name]
    assert part.rows == 2
    assert part.bytes == (tmp_path / "parts" / part.name).stat().st_size


def test_equal_rows_of_one_run_are_one_part(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    assert add(table, "a", 1, 2) == add(table, "a", 1, 2)
    assert table.added_by("a") == 2
    add(table, "b", 1, 2)
    assert (table.added_by("a"), table.added_by("b"), table.added_by("c")) == (2, 2, 0)


def test_parts_that_a_killed_writer_left_are_adopted_with_their_run(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    add(table, "a", 1)
    orphan = table.write(rows(2, 3), "killed")
    assert table.adopt() == 1
    assert values(table) == [1, 2, 3]
    assert table.manifest().parts[orphan.name] == orphan
    assert table.added_by("killed") == 2
    assert table.adopt() == 0


def test_merging_keeps_rows_and_counts_by_run(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    for number in range(parts.MERGE_ABOVE):
        add(table, "ab"[number % 2], number, 1000 + number)
    assert table.merge() == 0
    add(table, "c", 5000)
    assert table.merge() == parts.MERGE_ABOVE + 1
    assert len(table.manifest().parts) == 1
    expected = [*range(parts.MERGE_ABOVE), *range(1000, 1000 + parts.MERGE_ABOVE), 5000]
    assert values(table) == sorted(expected)
    assert [table.added_by(run) for run in "abc"] == [parts.MERGE_ABOVE, parts.MERGE_ABOVE, 1]


def test_large_parts_are_left_alone_and_groups_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MERGED_ROWS", 6)
    monkeypatch.setattr(parts, "MERGE_ABOVE", 3)
    table = table_at(tmp_path)
    large = add(table, "a", *range(100, 106))
    for number in range(7):
        add(table, "a", 2 * number, 2 * number + 1)
    assert table.merge() == 6  # two groups of three; the seventh has nobody to merge with
    manifest = table.manifest()
    assert large.name in manifest.parts
    assert sorted(part.rows for part in manifest.parts.values()) == [2, 6, 6, 6]
    assert values(table) == [*range(14), *range(100, 106)]


def test_retired_parts_stay_readable_and_are_not_adopted_again(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    old = [add(table, "a", 1), add(table, "a", 2)]
    table.rewrite(old, rows(1, 2))
    assert [table.read(part.name, ["value"])["value"].to_pylist() for part in old] == [[1], [2]]
    assert table.adopt() == 0
    table.enter(old)  # a writer that was slow
    assert values(table) == [1, 2]
    assert table.added_by("a") == 2


def test_sweep_deletes_what_was_retired_long_ago(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    old = add(table, "a", 1)
    table.rewrite([old], rows(1))
    (kept,) = table.manifest().parts
    assert (table.sweep(), table.sweep(3600)) == (0, 0)
    assert files(table) == {old.name, kept}
    assert table.sweep(0) == 1
    assert files(table) == {kept}
    assert table.manifest().retired == {}


def test_a_merge_sweeps_what_an_earlier_one_retired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MERGE_ABOVE", 1)
    monkeypatch.setattr(parts, "RETIRED_KEPT_S", 0.0)
    table = table_at(tmp_path)
    add(table, "a", 1)
    add(table, "a", 2)
    assert table.merge() == 2
    monkeypatch.setattr(PartTable.sweep, "__defaults__", (0.0,))
    add(table, "a", 3)
    assert table.merge() == 2
    assert len(files(table)) == 1


def test_a_merge_that_was_killed_before_it_counted_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_at(tmp_path)
    old = [add(table, "a", 1), add(table, "b", 2)]
    with monkeypatch.context() as patch:
        patch.setattr(PartTable, "exchange", lambda *_: None)
        table.rewrite(old, rows(1, 2))
    assert len(files(table)) == 3
    assert table.adopt() == 0
    assert values(table) == [1, 2]
    assert (table.added_by("a"), table.added_by("b")) == (1, 1)
    table.rewrite(old, rows(1, 2))  # the next merge finds its part written already
    assert (len(files(table)), values(table)) == (3, [1, 2])


def test_of_two_exchanges_of_one_part_the_first_holds(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    old = add(table, "a", 1)
    table.exchange([old], [table.write(rows(10), "a")])
    table.exchange([old], [table.write(rows(20), "a")])
    assert values(table) == [10]


def test_exchanging_a_part_for_itself_keeps_it(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    part = add(table, "a", 1)
    table.exchange([part], [part])
    assert table.sweep(0) == 0
    assert values(table) == [1]


def test_what_is_removed_for_good_may_be_added_again_after_a_kill(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    part = add(table, "a", 1)
    table.rewrite([part], rows(), readable=False)  # and killed before sweeping
    assert values(table) == []
    assert table.adopt() == 0
    again = add(table, "a", 1)
    assert again.name != part.name  # whose file is about to go
    assert values(table) == [1]
    assert table.sweep(0) == 1
    assert (values(table), table.added_by("a"), files(table)) == ([1], 1, {again.name})


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    part = add(table, "a", 7)
    assert table.read(part.name, ["value"]).column_names == ["value"]
    assert table.read(part.name, ["key"]).to_pydict() == {"key": ["k7"]}


WRITER = """
import sys
import pyarrow as pa
from lada_ray.features.parts import PartTable
from lada_ray.store import open_store
uri, writer, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
table = PartTable(open_store(uri), pa.schema([("key", pa.string()), ("value", pa.int64())]))
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    value = 1000 * writer + i
    table.enter([table.write(pa.table({"key": [str(value)], "value": [value]}), f"run{writer}")])
"""


@pytest.mark.parametrize("place", ["local", "s3"])
def test_processes_that_add_at_once_lose_nothing(place: str, tmp_path: Path, s3: str) -> None:
    uri = str(tmp_path) if place == "local" else join(s3, "many-writers")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri, str(writer), "8"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for writer in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    table = table_at(uri)
    assert values(table) == [1000 * writer + i for writer in range(3) for i in range(8)]
    assert [table.added_by(f"run{writer}") for writer in range(3)] == [8, 8, 8]
    assert table.adopt() == 0


def test_the_manifest_is_a_small_json_file(tmp_path: Path) -> None:
    table = table_at(tmp_path)
    part = add(table, "a", 1)
    table.rewrite([part], rows(2))
    manifest = table.manifest()
    assert parts.Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert (tmp_path / MANIFEST).read_bytes() == manifest.to_bytes()
    assert 0 < manifest.retired[part.name] <= time.time()


def test_a_merge_leaves_alone_what_another_job_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MERGE_ABOVE", 1)
    table = table_at(tmp_path)
    old = [add(table, "a", 1), add(table, "a", 2)]
    read = PartTable.read

    def later(self: PartTable, name: str, columns: list[str]) -> pa.Table:
        monkeypatch.setattr(PartTable, "read", read)
        table.rewrite(old, rows(1, 2))
        table.sweep(0)
        return read(self, name, columns)

    monkeypatch.setattr(PartTable, "read", later)
    table.merge()
    assert (values(table), table.added_by("a")) == ([1, 2], 2)


def test_removed_parts_stay_for_minutes_not_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_at(tmp_path)
    removed, merged = add(table, "a", 1), add(table, "a", 2)
    assert table.rewrite([removed], rows(), readable=False)
    assert table.rewrite([merged], rows(2))
    assert not table.rewrite([merged], rows(2))
    assert table.sweep() == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 20 * 60)
    assert table.sweep() == 1
    assert {removed.name, merged.name} & files(table) == {merged.name}


def test_a_column_that_an_older_version_did_not_write_is_null(tmp_path: Path) -> None:
    part = add(table_at(tmp_path), "a", 1)
    newer = PartTable(open_store(tmp_path), SCHEMA.append(pa.field("extra", pa.string())))
    assert newer.read(part.name, ["extra", "value"]).to_pydict() == {"extra": [None], "value": [1]}


def test_what_is_removed_is_gone_from_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_at(tmp_path)
    for number in range(1, 7):
        add(table, "a", number, number + 10)
    first, second = list(table.manifest().parts.values())[:2]
    with monkeypatch.context() as patch:
        patch.setattr(
            table, "exchange", lambda *arguments: False
        )  # a merge that was killed before it counted
        table.rewrite([first, second], rows(1, 11, 2, 12))
    table.write(rows(2, 99), "killed")  # and a writer before it entered its part
    merged = [table.manifest().parts[name] for name in list(table.manifest().parts)[2:4]]
    table.rewrite(merged, rows(3, 13, 4, 14))  # its sources stay readable for a day

    assert table.remove("key", {"k2", "k3", "k77"}) == 3
    assert values(table) == [1, 4, 5, 6, 11, 12, 13, 14, 15, 16, 99]
    left = [v for name in files(table) for v in table.read(name, ["value"])["value"].to_pylist()]
    assert sorted(left) == values(table)
    assert table.remove("key", {"k2"}) == 0
    assert table.added_by("a") == 12
