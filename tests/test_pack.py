"""Task packs: written once, named by their content, refused when a byte of them changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lada_ray.errors import IntegrityError
from lada_ray.pack import Label, TaskPack, code_versions
from lada_ray.store import Store, open_store


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "text": rng.normal(size=(2, 4)).astype(np.float32),
        "memory": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "mask": np.ones((2, 3), np.uint8),
        "means": rng.normal(size=(5, 4)).astype(np.float32),
        "labels": np.array([0, 0, 0, 1, 1]),
    }


def identity(**changes: Any) -> dict[str, Any]:
    return {
        "labels": [["pets", "cat"], ["pets", "größer Hund"]],
        "config": {"seed": 0, "method": {"beta": 1.0}},
        "samples": [["train/cat/0.png", "ab" * 32]],
        **changes,
    }


def build(parent: str | None = None, seed: int = 0, **changes: Any) -> TaskPack:
    return TaskPack.build(identity(**changes), parent, tensors(seed))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def folder(store: Store, pack: TaskPack) -> Path:
    return Path(store.uri) / "packs" / pack.digest


def test_a_pack_comes_back_as_it_was_written(store: Store) -> None:
    pack = build(parent="c0ffee")
    pack.write(store)
    back = TaskPack.read(store, pack.digest)
    assert (back.meta, back.digest, back.parent) == (pack.meta, pack.digest, "c0ffee")
    assert set(back.tensors) == set(pack.tensors)
    for name, array in pack.tensors.items():
        assert back.tensors[name].dtype == array.dtype
        assert np.array_equal(back.tensors[name], array)
    assert back.labels == [Label("pets", "cat"), Label("pets", "größer Hund")]
    assert (back.domain, back.bytes) == ("pets", 4 * (8 + 24 + 20) + 6 + 8 * 5)


def test_the_digest_is_the_hash_of_pack_json(store: Store) -> None:
    pack = build()
    pack.write(store)
    files = folder(store, pack)
    assert hashlib.sha256((files / "pack.json").read_bytes()).hexdigest() == pack.digest
    meta = json.loads((files / "pack.json").read_bytes())
    assert hashlib.sha256((files / "tensors.safetensors").read_bytes()).hexdigest() == meta["tensors_sha256"]
    assert (meta["parent"], meta["versions"]) == (None, code_versions())


def test_equal_content_has_one_digest(store: Store) -> None:
    assert build().digest == build().digest
    shuffled = dict(reversed(identity().items()))
    backwards = dict(reversed(tensors().items()))
    views = {name: np.asfortranarray(array) for name, array in backwards.items()}
    assert TaskPack.build(shuffled, None, views).digest == build().digest
    assert TaskPack.build(
        identity(labels=(Label("pets", "cat"), Label("pets", "größer Hund"))), None, tensors()
    ).digest == (build().digest)


def test_everything_that_decides_a_pack_is_in_its_digest() -> None:
    packs = [
        build(),
        build(parent="c0ffee"),
        build(seed=1),
        build(labels=[["pets", "cat"], ["pets", "dog"]]),
        build(config={"seed": 1}),
        build(samples=[["train/cat/1.png", "ab" * 32]]),
    ]
    assert len({pack.digest for pack in packs}) == len(packs)


def test_a_digest_stands_for_the_whole_history() -> None:
    first, other = build(), build(seed=1)
    second, elsewhere = build(parent=first.digest, seed=2), build(parent=other.digest, seed=2)
    assert second.digest != elsewhere.digest


def test_it_is_written_once(store: Store) -> None:
    pack = build()
    pack.write(store)
    before = {f.name: f.stat().st_mtime_ns for f in folder(store, pack).iterdir()}
    build().write(store)
    assert {f.name: f.stat().st_mtime_ns for f in folder(store, pack).iterdir() if f.name in before} == before


@pytest.mark.parametrize("file", ["pack.json", "tensors.safetensors"])
@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_changed_byte_is_refused(store: Store, file: str, position: int) -> None:
    pack = build()
    pack.write(store)
    path = folder(store, pack) / file
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"{pack.digest}/{file} was changed"):
        TaskPack.read(store, pack.digest)


@pytest.mark.parametrize("file", ["pack.json", "tensors.safetensors"])
@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_truncated_file_is_refused(store: Store, file: str, length: int) -> None:
    pack = build()
    pack.write(store)
    path = folder(store, pack) / file
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(IntegrityError, match=f"{file} was changed"):
        TaskPack.read(store, pack.digest)


@pytest.mark.parametrize("file", ["pack.json", "tensors.safetensors"])
def test_a_missing_file_is_refused(store: Store, file: str) -> None:
    pack = build()
    pack.write(store)
    (folder(store, pack) / file).unlink()
    with pytest.raises(IntegrityError, match=rf"{pack.digest} is incomplete.*restore it from a copy"):
        TaskPack.read(store, pack.digest)


def test_a_pack_that_was_moved_to_another_digest_is_refused(store: Store) -> None:
    pack, other = build(), build(seed=1)
    pack.write(store)
    folder(store, pack).rename(folder(store, other))
    with pytest.raises(IntegrityError, match=r"pack\.json was changed"):
        TaskPack.read(store, other.digest)


def test_a_pack_of_another_format_is_refused(store: Store) -> None:
    meta = {**build().meta, "format": 2}
    pack = TaskPack(meta, tensors())
    pack.write(store)
    with pytest.raises(IntegrityError, match="has format 2, this version reads 1; upgrade lada_ray"):
        TaskPack.read(store, pack.digest)
