"""FGVC-Aircraft's own lists, and what goes wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lada_ray.domains import AircraftSpec, Domain, read_bytes
from lada_ray.errors import InputError
from lada_ray.store import join, open_store
from tests.xtail import TEST, TRAIN, VAL, VARIANTS, aircraft_files, write

LAYOUT = "the archive's data/: images/, variants.txt and images_variant_{train,val,test}.txt"


@pytest.fixture
def aircraft(tmp_path: Path) -> Path:
    return write(tmp_path, aircraft_files())


def load(root: Path | str, **keys: Any) -> Domain:
    return AircraftSpec.model_validate({"name": "d", "root": str(root), **keys}).load("unused")


def refused(root: Path | str, **keys: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(root, **keys)
    return caught.value.problems


def test_lists(aircraft: Path) -> None:
    domain = load(aircraft)
    assert domain.class_names == VARIANTS
    assert len(domain.train) == TRAIN * 3
    assert len(domain.test) == TEST * 3
    assert len(load(aircraft, use_val=True).train) == (TRAIN + VAL) * 3
    second = domain.train[TRAIN]
    assert (second.path, second.label) == ("images/0010000.jpg", 1)
    assert read_bytes(second.uri) == (aircraft / "images/0010000.jpg").read_bytes()


def test_a_root_one_level_too_high(aircraft: Path, tmp_path: Path) -> None:
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    write(data, aircraft_files())
    assert refused(data.parent) == [
        f"d: variants.txt is not in {data.parent} but in {data}: that is the root"
    ]
    assert refused(tmp_path / "x") == [f"d: no folder {tmp_path}/x; expected {LAYOUT}"]


def test_all_missing_lists_at_once(aircraft: Path) -> None:
    for name in ("variants.txt", "images_variant_test.txt"):
        (aircraft / name).unlink()
    (aircraft / "images").rename(aircraft / "pictures")
    assert refused(aircraft) == [
        f"d: no variants.txt in {aircraft} (the nearest there is images_variant_val.txt); expected {LAYOUT}",
        f"d: no images_variant_test.txt in {aircraft} (the nearest there is images_variant_train.txt); "
        f"expected {LAYOUT}",
        f"d: no folder {aircraft}/images",
    ]


def test_lists_that_disagree(aircraft: Path) -> None:
    (aircraft / "variants.txt").write_text("707-320\nBoeing 717\nConcorde\n")
    lists = [f"images_variant_{part}.txt" for part in ("train", "test")]
    assert refused(aircraft) == [
        f"d: {key} has variants that variants.txt has not: 'F-16A/B'" for key in lists
    ]


def test_a_variant_without_images(aircraft: Path) -> None:
    (aircraft / "variants.txt").write_text("".join(f"{v}\n" for v in (*VARIANTS, "Concorde")))
    assert refused(aircraft) == ["d: class 'Concorde' has no training images"]


def test_missing_images(aircraft: Path) -> None:
    (aircraft / "images/0010000.jpg").unlink()
    assert refused(aircraft) == [f"d: 1 of 21 listed images are not in {aircraft}: images/0010000.jpg"]


def test_in_an_object_store(s3: str) -> None:
    root = join(s3, "aircraft")
    for path, data in aircraft_files().items():
        open_store(root).write(path, data)
    domain = load(root)
    assert len(domain.train) == TRAIN * 3
    assert read_bytes(domain.test[0].uri) == aircraft_files()[domain.test[0].path]
