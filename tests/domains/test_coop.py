"""CoOp's layout: each dataset's, and what goes wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lada_ray.domains import CoopSpec, Domain, read_bytes
from lada_ray.errors import InputError
from lada_ray.store import join, open_store
from tests.xtail import COOP, TEST, TRAIN, VAL, coop_files, jpeg, write

LAYOUT = "split_zhou_*.json beside the image folder, as in CoOp's DATASETS.md"
SPLIT = "split_zhou_Caltech101.json"


@pytest.fixture
def caltech(tmp_path: Path) -> Path:
    return write(tmp_path, coop_files("caltech101"))


def load(root: Path | str, **keys: Any) -> Domain:
    return CoopSpec.model_validate({"name": "d", "root": str(root), **keys}).load("unused")


def refused(root: Path | str, **keys: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(root, **keys)
    return caught.value.problems


def change(root: Path, **parts: Any) -> None:
    split = json.loads((root / SPLIT).read_text())
    (root / SPLIT).write_text(json.dumps({**split, **parts}))


@pytest.mark.parametrize("name", COOP)
def test_each_dataset(name: str, tmp_path: Path) -> None:
    domain = load(write(tmp_path, coop_files(name)))
    _, folder, _, classes = COOP[name]
    assert domain.class_names == tuple(c.replace("_", " ") for c in classes)
    assert len(domain.train) == TRAIN * len(classes)  # without "val", as CoOp, RAIL and LADA train
    assert len(domain.test) == TEST * len(classes)
    assert len(load(tmp_path, use_val=True).train) == (TRAIN + VAL) * len(classes)
    for sample in (*domain.train, *domain.test):
        assert sample.path.startswith(folder)
        assert read_bytes(sample.uri) == (tmp_path / sample.path).read_bytes()
        assert sample.size == (tmp_path / sample.path).stat().st_size


def test_samples(caltech: Path) -> None:
    first, *_ = load(caltech).train
    assert first.path == "101_ObjectCategories/Faces/image_0000.jpg"
    assert first.uri == str(caltech / first.path)
    assert read_bytes(first.uri) == jpeg("caltech101/face/Faces/image_0000.jpg")
    assert first.version == str((caltech / first.path).stat().st_mtime_ns)
    assert [s.label for s in load(caltech).test] == [0, 0, 1, 1]


def test_labels_decide_the_order_of_classes(caltech: Path) -> None:
    split = json.loads((caltech / SPLIT).read_text())
    change(caltech, **{part: [[p, 7 - n, c] for p, n, c in items] for part, items in split.items()})
    assert load(caltech).class_names == ("crocodile head", "face")


def test_renames(caltech: Path) -> None:
    assert load(caltech, class_names={"face": "human_face"}).class_names == ("human face", "crocodile head")
    assert refused(caltech, class_names={"faces": "x"}) == [
        "d: class_names renames 'faces', which is no class here; did you mean face?"
    ]


def test_a_missing_split_file_says_what_is_there(caltech: Path) -> None:
    (caltech / SPLIT).unlink()
    there = "there is 101_ObjectCategories, README.txt"
    assert refused(caltech) == [f"d: no split_zhou_*.json in {caltech} ({there}); expected {LAYOUT}"]
    (caltech / "split_zhou_Caltech_101.json").write_text("{}")
    assert refused(caltech, split_file=SPLIT) == [
        f"d: no {SPLIT} in {caltech} (the nearest there is split_zhou_Caltech_101.json); expected {LAYOUT}"
    ]


def test_two_split_files_need_a_choice(caltech: Path) -> None:
    (caltech / "split_mine.json").write_text((caltech / SPLIT).read_text())
    assert refused(caltech) == [f"d: {SPLIT}, split_mine.json are in {caltech}; say which with split_file"]
    assert len(load(caltech, split_file="split_mine.json", images="101_ObjectCategories/").train) == 10


def test_a_wrong_root(caltech: Path) -> None:
    assert refused(caltech / "nowhere") == [f"d: no folder {caltech}/nowhere; expected {LAYOUT}"]
    assert refused(caltech / "101_ObjectCategories") == [
        f"d: no split_zhou_*.json in {caltech}/101_ObjectCategories (there is Faces, crocodile_head); "
        f"expected {LAYOUT}"
    ]


def test_images_that_are_not_there(caltech: Path) -> None:
    for n in (0, 1, 2, 50):
        (caltech / "101_ObjectCategories" / "Faces" / f"image_{n:04}.jpg").unlink()
    (problem,) = refused(caltech)
    named = ", ".join(f"101_ObjectCategories/Faces/image_{n:04}.jpg" for n in (0, 1, 2))
    assert problem == f"d: 4 of 14 listed images are not in {caltech}: {named} and 1 more"
    (caltech / "101_ObjectCategories").rename(caltech / "images")
    assert refused(caltech) == [
        f"d: none of the 14 listed images is there; they belong into {caltech}/101_ObjectCategories"
    ]


def test_classes_that_disagree(caltech: Path) -> None:
    split = json.loads((caltech / SPLIT).read_text())
    change(caltech, test=[[p, 0, "face"] for p, *_ in split["test"]], val=[["x.jpg", 1, "face"]])
    assert refused(caltech) == [
        "d: the split calls label 1 'crocodile_head' and 'face'",
        "d: the split gives 'face' the labels 0 and 1",
    ]


def test_an_image_under_two_classes(caltech: Path) -> None:
    split = json.loads((caltech / SPLIT).read_text())
    path = split["train"][0][0]
    change(caltech, train=[*split["train"], [path, 1, "crocodile_head"]])
    assert refused(caltech) == [
        f"d: 1 images are listed under two classes: 101_ObjectCategories/{path} (crocodile_head and face)"
    ]


def test_a_class_that_is_only_tested(caltech: Path) -> None:
    split = json.loads((caltech / SPLIT).read_text())
    change(caltech, train=[item for item in split["train"] if item[1] == 0])
    assert refused(caltech) == ["d: class 'crocodile head' has no training images"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no JSON (Expecting property name enclosed in double quotes"),
        ("[1]", "has no list 'train' and no list 'test'; it is no CoOp split"),
        ('{"train": [], "test": 3}', "has no list 'test'; it is no CoOp split"),
        (
            '{"train": [["a.jpg", "0", "a"]], "test": []}',
            'entries that are not [path, label, class name]: ["a.jpg"',
        ),
    ],
)
def test_a_split_file_that_is_none(text: str, problem: str, caltech: Path) -> None:
    (caltech / SPLIT).write_text(text)
    (only,) = refused(caltech)
    assert only.startswith(f"d: {caltech}/{SPLIT}")
    assert problem in only


def test_in_an_object_store(s3: str) -> None:
    root = join(s3, "stanford_cars")
    for path, data in coop_files("stanford_cars").items():
        open_store(root).write(path, data)
    domain = load(root)
    assert [s.path for s in domain.test] == [f"cars_test/{n:05}.jpg" for n in (50, 51, 10050, 10051)]
    assert read_bytes(domain.test[0].uri) == jpeg(
        "stanford_cars/2000 AM General Hummer SUV/cars_test/00050.jpg"
    )
    open_store(root).delete("split_zhou_StanfordCars.json")
    assert refused(root) == [f"d: no split_zhou_*.json in {root}; expected {LAYOUT}"]
