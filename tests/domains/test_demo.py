"""The demo's domains: drawn once, finished when half drawn, and then read like any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from lada_ray.domains.demo import MARK, DemoSpec, draw_missing
from lada_ray.domains.drawing import DRAWINGS
from lada_ray.errors import InputError
from lada_ray.store import open_store

SHAPES = DRAWINGS["shapes"]


def shapes(train: int = 2, test: int = 1) -> DemoSpec:
    """A small domain."""
    return DemoSpec(name="coloured", drawing="shapes", train_per_class=train, test_per_class=test)


def folder(storage: Path) -> Path:
    """Where the shapes are drawn."""
    return storage / "demo-images" / "shapes"


def contents(storage: Path) -> dict[str, bytes]:
    """All drawn images."""
    return {str(path.relative_to(storage)): path.read_bytes() for path in sorted(storage.rglob("*.png"))}


def test_a_domain_is_drawn_and_listed(tmp_path: Path) -> None:
    domain = shapes(3, 2).load(str(tmp_path))
    assert domain.name == "coloured"
    assert domain.class_names == tuple(sorted(SHAPES.class_names))
    assert (len(domain.train), len(domain.test)) == (36, 24)
    assert [sample.label for sample in domain.train] == [label for label in range(12) for _ in range(3)]
    assert domain.train[0].path == "train/blue_square/0000.png"
    assert domain.ignored == ()


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_every_drawing_loads_with_its_own_class_names(drawing: str, tmp_path: Path) -> None:
    spec = DemoSpec(name=drawing, drawing=drawing, train_per_class=1, test_per_class=1)
    assert set(spec.load(str(tmp_path)).class_names) == set(DRAWINGS[drawing].class_names)


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    shapes().load(str(tmp_path / "one"))
    shapes().load(str(tmp_path / "two"))
    drawn = contents(tmp_path / "one")
    assert drawn == contents(tmp_path / "two")
    assert len(set(drawn.values())) == 36


def test_a_second_load_draws_nothing(tmp_path: Path) -> None:
    first = shapes().load(str(tmp_path))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert shapes().load(str(tmp_path)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == times


def test_a_half_drawn_folder_is_finished(tmp_path: Path) -> None:
    shapes().load(str(tmp_path))
    whole = contents(tmp_path)
    (folder(tmp_path) / MARK).unlink()
    for path in list(folder(tmp_path).rglob("*.png"))[::3]:
        path.unlink()
    assert len(contents(tmp_path)) == 24
    assert draw_missing(SHAPES, open_store(folder(tmp_path)), {"train": 2, "test": 1}) == 12
    assert contents(tmp_path) == whole
    assert json.loads((folder(tmp_path) / MARK).read_text()) == {"version": 1, "train": 2, "test": 1}


def test_another_version_s_pictures_are_drawn_again(tmp_path: Path) -> None:
    shapes().load(str(tmp_path))
    whole = contents(tmp_path)
    (folder(tmp_path) / MARK).write_text(json.dumps({"version": 0, "train": 9, "test": 9}))
    some = next(folder(tmp_path).rglob("*.png"))
    some.write_bytes(b"old")
    shapes().load(str(tmp_path))
    assert contents(tmp_path) == whole


def test_configurations_of_different_size_share_a_folder(tmp_path: Path) -> None:
    small = shapes(2, 1).load(str(tmp_path))
    large = shapes(4, 1).load(str(tmp_path))
    assert len(large.train) == 48
    assert len(contents(tmp_path)) == 60
    assert shapes(2, 1).load(str(tmp_path)) == small
    assert {sample.path for sample in small.train} < {sample.path for sample in large.train}


def test_an_unknown_drawing_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean doodles"):
        DemoSpec(name="a", drawing="doodle")


def test_more_real_digits_than_there_are_is_refused(tmp_path: Path) -> None:
    spec = DemoSpec(name="numbers", drawing="digits", train_per_class=95, test_per_class=81)
    with pytest.raises(InputError) as raised:
        spec.load(str(tmp_path))
    assert raised.value.problems == [
        "numbers: train_per_class is 95; digits has 94 train images of each",
        "numbers: test_per_class is 81; digits has 80 test images of each",
    ]
    assert not list(tmp_path.iterdir())


def test_renames_apply_to_drawn_classes(tmp_path: Path) -> None:
    spec = shapes(1, 1).model_copy(update={"class_names": {"red_star": "ruby star"}})
    assert "ruby star" in spec.load(str(tmp_path)).class_names
