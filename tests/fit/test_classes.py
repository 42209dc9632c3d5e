"""k-means and mixtures over Ray tasks: the same numbers as the plain functions, once per set of images."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lada_ray.features.bank import FeatureBank
from lada_ray.fit import classes as module
from lada_ray.fit.classes import (
    CHUNK_IMAGES,
    ClassImages,
    fit_classes,
    fit_classes_here,
    read_memory,
    read_mixtures,
    stack_mixtures,
)
from lada_ray.method.memory import init_memory
from lada_ray.method.mixture import Mixture, fit_mixture
from lada_ray.store import open_store

if TYPE_CHECKING:
    from conftest import TinyWorld


def test_the_images_of_a_class_are_named_whatever_their_order() -> None:
    pairs = [("c", 1), ("a", 0), ("b", 1), ("a", 1), ("a", 0)]
    groups = ClassImages.of([sha for sha, _ in pairs], np.array([label for _, label in pairs]))
    assert groups.classes == (("a", "a"), ("a", "b", "c"))
    random.Random(0).shuffle(pairs)
    assert ClassImages.of([sha for sha, _ in pairs], np.array([label for _, label in pairs])) == groups


def test_keys_tell_kinds_numbers_and_images_apart() -> None:
    one, other = ClassImages((("a",), ("b",))), ClassImages((("a", "b"), ()))
    keys = [one.key("memory", 2), one.key("memory", 3), one.key("mixture", 2), other.key("memory", 2)]
    assert len(set(keys)) == 4
    assert all(key.startswith("classes/") and key.endswith(".safetensors") for key in keys)


def test_the_fits_are_those_of_the_plain_functions(tiny_world: TinyWorld) -> None:
    (pets,) = tiny_world.plan().tasks[0].parts
    memory = read_memory(tiny_world.bank, pets.images, 2)
    mixtures = read_mixtures(tiny_world.bank, pets.images, 2)
    assert (memory.memory.shape, memory.memory.dtype, memory.mask.dtype) == ((3, 2, 32), np.float32, np.bool_)
    for j, shas in enumerate(pets.images.classes):
        raw = tiny_world.bank.fetch(shas, ["test"])[:, 0]
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        assert np.array_equal(memory.memory[j][memory.mask[j]], init_memory(unit, 2))
        mine, expected = mixtures.labels == j, fit_mixture(raw, 2)
        assert np.array_equal(mixtures.means[mine], expected.means)
        assert np.array_equal(mixtures.variances[mine], expected.variances)
        assert np.array_equal(mixtures.weights[mine], expected.weights)


def test_what_is_known_is_not_fitted_again(tiny_world: TinyWorld) -> None:
    assert tiny_world.fit_classes().seconds == {}
    # Neither the run's seed nor its views nor the method's other settings play a part.
    other = tiny_world.config("other", seed=5, views=0, method={"beta": 3.0})
    images = [task.parts[0].images for task in tiny_world.plan(other).tasks]
    assert images == [task.parts[0].images for task in tiny_world.plan().tasks]


def test_more_classes_than_a_task_takes(tmp_path: Path, ray_local: None) -> None:
    classes = CHUNK_IMAGES // 2 + 3
    shas = [f"{j:05}-{i}" for j in range(classes) for i in range(2)]
    features = np.random.default_rng(0).normal(size=(len(shas), 4)).astype(np.float32)
    bank = FeatureBank(open_store(tmp_path), "key", 4)
    bank.table.enter([bank.write(shas, ["test"] * len(shas), features, "r")])
    images = ClassImages.of(shas, np.repeat(np.arange(classes), 2))
    told: list[tuple[int, int]] = []
    seconds = fit_classes(bank, [images], 3, 1, lambda done, total: told.append((done, total))).seconds
    assert sorted(seconds) == ["k-means", "mixtures"]
    assert told == [(classes, 2 * classes), (2 * classes, 2 * classes)]
    memory = read_memory(bank, images, 3)
    # Two images for three vectors: the distinct features themselves.
    assert (memory.memory.shape, memory.mask.all()) == ((classes, 2, 4), np.True_)
    means = features.reshape(classes, 2, 4).astype(np.float64).mean(axis=1)
    mixtures = read_mixtures(bank, images, 1)
    assert mixtures.labels.tolist() == list(range(classes))
    np.testing.assert_allclose(mixtures.means, means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("images", "tasks"), [(CHUNK_IMAGES, 1), (4, 2), (2, 3)])
def test_small_domains_share_a_task(
    tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch, images: int, tasks: int
) -> None:
    """Three domains of two classes with an image each, of which two kinds of file are made."""
    monkeypatch.setattr(module, "CHUNK_IMAGES", images)
    shas = list("abcdef")
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    bank = FeatureBank(open_store(tmp_path), "key", 4)
    bank.table.enter([bank.write(shas, ["test"] * 6, features, "r")])
    domains = [ClassImages(((one,), (two,))) for one, two in zip(shas[::2], shas[1::2], strict=True)]
    heard: list[tuple[int, int]] = []
    fit_classes(bank, domains, 2, 1, lambda done, total: heard.append((done, total)))
    assert (heard[-1], len(heard)) == ((12, 12), tasks)
    for i, domain in enumerate(domains):
        np.testing.assert_array_equal(read_mixtures(bank, domain, 1).means, features[2 * i : 2 * i + 2])


def test_in_this_process_they_are_the_same_bytes(tiny_world: TinyWorld, tmp_path: Path) -> None:
    bank = FeatureBank(open_store(tmp_path), "key", tiny_world.info.width)
    domains = [task.parts[0].images for task in tiny_world.plan().tasks]
    shas = list(dict.fromkeys(sha for images in domains for group in images.classes for sha in group))
    raw = tiny_world.bank.fetch(shas, ["test"])[:, 0]
    bank.table.enter([bank.write(shas, ["test"] * len(shas), raw, "r")])
    fit_classes_here(bank, domains, 2, 2)
    keys = [images.key(kind, 2) for images in domains for kind in ("memory", "mixture")]  # type: ignore[arg-type]
    assert [bank.store.read(key) for key in keys] == [tiny_world.bank.store.read(key) for key in keys]
    # What is there is left alone; what is not is made beside it.
    marked = keys[0]
    bank.store.write(marked, b"here already")
    bank.store.delete(keys[1])
    fit_classes_here(bank, domains, 2, 2)
    assert bank.store.read(marked) == b"here already"
    assert bank.store.read(keys[1]) == tiny_world.bank.store.read(keys[1])


def test_in_this_process_more_classes_than_a_chunk_holds(tmp_path: Path) -> None:
    classes = CHUNK_IMAGES // 2 + 3
    shas = [f"{j:05}-{i}" for j in range(classes) for i in range(2)]
    features = np.random.default_rng(0).normal(size=(len(shas), 4)).astype(np.float32)
    bank = FeatureBank(open_store(tmp_path), "key", 4)
    bank.table.enter([bank.write(shas, ["test"] * len(shas), features, "r")])
    images = ClassImages.of(shas, np.repeat(np.arange(classes), 2))
    fit_classes_here(bank, [images], 3, 1)
    means = features.reshape(classes, 2, 4).astype(np.float64).mean(axis=1)
    assert read_memory(bank, images, 3).memory.shape == (classes, 2, 4)
    np.testing.assert_allclose(read_mixtures(bank, images, 1).means, means, rtol=1e-5, atol=1e-6)


def test_a_chunk_holds_whole_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_IMAGES", 10)
    sizes = [4, 4, 4, 30, 1, 9, 1]
    images = ClassImages(tuple(tuple(map(str, range(size))) for size in sizes))
    assert images.chunks() == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert ClassImages((("a",),)).chunks() == [(0, 1)]


def test_mixtures_are_stacked_in_class_order() -> None:
    def mixture(components: int, value: float) -> Mixture:
        ones = np.ones(components, np.float32)
        return Mixture(np.full((components, 2), value, np.float32), value * ones, ones / components)

    stacked = stack_mixtures([mixture(2, 1.0), mixture(1, 2.0), mixture(3, 3.0)])
    assert stacked.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert stacked.means[:, 0].tolist() == [1, 1, 2, 3, 3, 3]
    assert stacked.variances.tolist() == [1, 1, 2, 3, 3, 3]
    np.testing.assert_allclose(stacked.weights, [0.5, 0.5, 1, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
