"""The file index: a file is read once per (URI, size, version), and what cannot be read is said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from lada_ray import views
from lada_ray.domains import Sample
from lada_ray.errors import InputError, LadaError
from lada_ray.features import index as module
from lada_ray.features.index import FileIndex, fill_index, hash_files
from lada_ray.features.parts import PartTable
from lada_ray.store import open_store


def sample(path: Path, version: str = "1") -> Sample:
    size = path.stat().st_size if path.exists() else 0
    return Sample(str(path), path.name, 0, size, version)


def write(folder: Path, **contents: str) -> list[Sample]:
    for name, content in contents.items():
        (folder / name).write_text(content)
    return [sample(folder / name) for name in contents]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fill(index: FileIndex, samples: list[Sample]) -> tuple[dict[str, str], list[str], list[tuple[int, int]]]:
    """Hashes by file name, reasons, and the progress that was told: its last pair counts what was read."""
    told: list[tuple[int, int]] = []
    hashes, bad = fill_index(index, samples, "r", lambda done, total: told.append((done, total)))
    return {Path(uri).name: sha for uri, sha in hashes.items()}, [b.reason for b in bad], told


def test_hash_files_says_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello")
    (sha, no_reason), (no_sha, reason) = hash_files([str(tmp_path / "a"), str(tmp_path / "gone")])
    assert (sha, no_reason, no_sha) == (digest("hello"), None, None)
    assert reason is not None
    assert reason.startswith("cannot be read: ")
    assert "gone" in reason


def test_only_new_and_changed_files_are_read(tmp_path: Path, ray_local: None) -> None:
    index = FileIndex(open_store(tmp_path / "features"))
    a, b = write(tmp_path, a="one", b="two")
    assert fill(index, [a, b]) == ({"a": digest("one"), "b": digest("two")}, [], [(2, 2)])
    # The file is gone, but nothing says that it changed: it is not read again.
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_text("tow")
    assert fill(index, [a, b]) == ({"a": digest("one"), "b": digest("two")}, [], [])
    # Another version, or another size, is another file.
    newer = Sample(b.uri, b.path, 0, b.size, "2")
    assert fill(index, [newer]) == ({"b": digest("tow")}, [], [(1, 1)])
    (tmp_path / "b").write_text("longer")
    assert fill(index, [a, sample(tmp_path / "b")]) == (
        {"a": digest("one"), "b": digest("longer")},
        [],
        [(1, 1)],
    )
    assert index.known([b]) == {b.uri: digest("two")}
    assert index.hashes.added_by("r") == 4


def test_unreadable_files_are_listed_and_tried_again(tmp_path: Path, ray_local: None) -> None:
    index = FileIndex(open_store(tmp_path / "features"))
    (good,) = write(tmp_path, good="x")
    gone = sample(tmp_path / "gone")
    hashes, reasons, _ = fill(index, [gone, good])
    assert hashes == {"good": digest("x")}
    assert len(reasons) == 1
    (tmp_path / "gone").write_text("back")
    assert fill(index, [gone, good])[0] == {"good": digest("x"), "gone": digest("back")}


def test_many_files_are_hashed_in_chunks(tmp_path: Path, ray_local: None) -> None:
    count = module.CHUNK + 3
    samples = write(tmp_path, **{f"f{i}": str(i) for i in range(count)})
    hashes, reasons, told = fill(FileIndex(open_store(tmp_path / "features")), samples)
    assert hashes == {f"f{i}": digest(str(i)) for i in range(count)}
    assert (reasons, told[-1], len(told)) == ([], (count, count), 2)


def test_verdicts_on_bytes_are_kept(tmp_path: Path) -> None:
    index = FileIndex(open_store(tmp_path))
    assert index.bad() == {}
    index.add_bad({}, "r")
    assert index.bad() == {}
    index.add_bad({"sha1": "truncated"}, "r")
    index.add_bad({"sha2": "not an image"}, "r")
    assert index.bad() == {"sha1": "truncated", "sha2": "not an image"}


@pytest.mark.parametrize(("name", "value"), [("PILLOW", "99.0"), ("MAX_PIXELS", 10**9)])
def test_a_verdict_holds_for_the_pillow_and_the_limits_that_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    index = FileIndex(open_store(tmp_path))
    index.add_bad({"sha1": "truncated"}, "r")
    monkeypatch.setattr(views, name, value)
    assert index.bad() == {}
    index.add_bad({"sha1": "still truncated"}, "r")
    assert index.bad() == {"sha1": "still truncated"}


def test_verdicts_without_a_judge_are_asked_again(tmp_path: Path) -> None:
    """As an older version wrote them."""
    index = FileIndex(open_store(tmp_path))
    old = PartTable(
        open_store(tmp_path).child("bad"), pa.schema([("sha256", pa.string()), ("reason", pa.string())])
    )
    old.enter([old.write(pa.table({"sha256": ["sha1"], "reason": ["truncated"]}), "r")])
    index.add_bad({"sha2": "not an image"}, "r")
    assert index.bad() == {"sha2": "not an image"}


def test_an_object_that_storage_does_not_give_costs_that_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(uri: str) -> bytes:
        raise LadaError("s3://b/x cannot be read. The credentials must allow get there")

    monkeypatch.setattr(module, "read_image", denied)
    reason = "cannot be read: s3://b/x cannot be read. The credentials must allow get there"
    assert hash_files(["s3://b/x"]) == [(None, reason)]


def refuse(uris: list[str]) -> None:
    raise InputError(["one", "two"], "Refused")


def crash(uris: list[str]) -> None:
    raise RuntimeError("out of luck")


@pytest.mark.parametrize(
    ("task", "said"), [(refuse, "Refused:\n  - one\n  - two"), (crash, "a Ray task failed")]
)
def test_what_fails_a_task_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None, task: Callable[..., None], said: str
) -> None:
    monkeypatch.setattr(module, "hash_files", task)
    with pytest.raises(LadaError) as error:
        fill(FileIndex(open_store(tmp_path / "features")), write(tmp_path, a="one"))
    assert str(error.value).startswith(said)
    assert type(error.value) is (InputError if task is refuse else LadaError)
