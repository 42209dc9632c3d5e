"""Samples, specifications and reading."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from lada_ray.domains import FolderSpec, Sample, read_bytes
from lada_ray.domains.base import absolute, did_you_mean


def test_read_bytes_takes_paths_and_file_uris_with_odd_names(tmp_path: Path) -> None:
    file = tmp_path / "50% off #row=1 ü.png"
    file.write_bytes(b"pixels")
    assert read_bytes(str(file)) == b"pixels"
    assert read_bytes(file.as_uri()) == b"pixels"


def test_read_bytes_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(str(tmp_path / "gone.png"))


def test_displayed_applies_renames_and_reads_underscores_as_spaces() -> None:
    spec = FolderSpec(name="a", root="x", class_names={"0": "the_digit zero"})
    assert [spec.displayed(name) for name in ("0", "oak_tree", "elm")] == [
        "the digit zero",
        "oak tree",
        "elm",
    ]


def test_class_names_that_yaml_reads_as_numbers_are_text() -> None:
    assert FolderSpec.model_validate({"name": "a", "root": "x", "class_names": {0: 1}}).class_names == {
        "0": "1"
    }


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "-a", "ä", "x" * 101])
def test_a_name_must_be_safe_as_a_folder(name: str) -> None:
    with pytest.raises(ValidationError, match="must start with a letter or digit"):
        FolderSpec(name=name, root="x")


def test_a_specification_does_not_change_and_can_be_pickled(tmp_path: Path) -> None:
    spec = FolderSpec(name="a", root=str(tmp_path), epochs=3)
    with pytest.raises(ValidationError, match="frozen"):
        spec.epochs = 4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_prompt_needs_a_place_for_the_name() -> None:
    with pytest.raises(ValidationError, match=r"must contain \{\} where the class name goes"):
        FolderSpec(name="a", root="x", prompt="a photo")


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("a/../b") == str(tmp_path / "b")
    assert absolute("a", "/data") == "/data/a"
    assert absolute("~/a", "/data") == "/home/me/a"
    assert absolute("s3://bucket/a") == "s3://bucket/a"
    assert absolute("file:///a%20b") == "/a b"
    with pytest.raises(ValueError, match="hdfs:// is not supported"):
        absolute("hdfs://a/b")


def test_did_you_mean() -> None:
    assert did_you_mean("foldr", ["demo", "folder"]) == "; did you mean folder?"
    assert did_you_mean("zzz", ["demo", "folder"]) == ""


def test_a_sample_can_be_a_part_of_a_file() -> None:
    sample = Sample(
        "s3://data/file.parquet#column=image&row=12", "file.parquet#column=image&row=12", 0, 10, "etag"
    )
    assert pickle.loads(pickle.dumps(sample)) == sample
