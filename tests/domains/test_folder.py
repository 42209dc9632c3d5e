"""Listing folders of images, in both layouts, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import pytest

from lada_ray.domains import Domain, FolderSpec, read_bytes
from lada_ray.domains.folder import in_test, list_images
from lada_ray.errors import InputError
from lada_ray.store import join, open_store


def make(root: Path, paths: Iterable[str]) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def load(root: Path, **keys: object) -> Domain:
    return FolderSpec.model_validate({"name": "d", "root": str(root), **keys}).load("unused")


def refused(root: Path, **keys: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(root, **keys)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
    return caught.value.problems


SPLIT = ["train/b_c/1.jpg", "train/b_c/sub/2.PNG", "train/a/1.webp", "test/a/1.gif", "test/b_c/1.TIFF"]


def test_train_and_test_folders(tmp_path: Path) -> None:
    domain = load(make(tmp_path, SPLIT), prompt="a {}.", augment="none", epochs=5)
    assert domain.class_names == ("a", "b c")
    assert [(s.path, s.label) for s in domain.train] == [
        ("train/a/1.webp", 0),
        ("train/b_c/1.jpg", 1),
        ("train/b_c/sub/2.PNG", 1),
    ]
    assert [(s.path, s.label) for s in domain.test] == [("test/a/1.gif", 0), ("test/b_c/1.TIFF", 1)]
    first = domain.train[0]
    status = (tmp_path / first.path).stat()
    assert (first.uri, first.size) == (str(tmp_path / first.path), 14)
    assert first.version == str(status.st_mtime_ns)
    assert (domain.prompt, domain.augment, domain.epochs) == ("a {}.", "none", 5)


def test_what_is_no_image_of_the_domain_is_listed_and_hidden_files_are_not(tmp_path: Path) -> None:
    more = [
        "readme.txt",
        "loose.png",
        "train/stray.png",
        "val/a/1.png",
        ".DS_Store",
        "train/a/._1.jpg",
        ".git/a/1.png",
    ]
    domain = load(make(tmp_path, SPLIT + more))
    assert domain.ignored == ("loose.png", "readme.txt", "train/stray.png", "val/a/1.png")
    assert len(domain.train) == 3


def test_odd_file_names_and_links(tmp_path: Path) -> None:
    make(tmp_path / "d", [*SPLIT, "train/a/50% #1 ü.jpg"])
    make(tmp_path / "elsewhere", ["1.jpg"])
    (tmp_path / "d" / "train" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    paths = [s.path for s in load(tmp_path / "d").train if s.label == 0]
    assert paths == ["train/a/1.webp", "train/a/50% #1 ü.jpg", "train/a/linked/1.jpg"]


def test_one_level_is_split_by_a_hash_of_each_path(tmp_path: Path) -> None:
    paths = [f"{name}/{index}.png" for name in ("x", "y") for index in range(200)]
    domain = load(make(tmp_path, paths))
    assert len(domain.train) + len(domain.test) == 400
    assert len(domain.test) == 80  # SHA-256 decides: the same on every machine
    assert {s.path for s in domain.test} == {path for path in paths if in_test(path, 0.2, 0)}
    other = load(tmp_path, split_seed=1)
    assert {s.path for s in other.test} != {s.path for s in domain.test}
    assert len(load(tmp_path, test_share=0.5).test) > 150


def test_a_split_stays_when_images_are_added(tmp_path: Path) -> None:
    make(tmp_path, [f"{name}/{index}.png" for name in "xy" for index in range(50)])
    before = {s.path for s in load(tmp_path).test}
    make(tmp_path, [f"{name}/{index}.png" for name in "wxy" for index in range(50, 100)])
    after = {s.path for s in load(tmp_path).test}
    assert {path for path in after if path[0] in "xy" and int(path[2:-4]) < 50} == before


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, [f"{name}/{index}.png" for name in ("car", "train") for index in range(30)])
    assert load(tmp_path).class_names == ("car", "train")


def test_renames(tmp_path: Path) -> None:
    root = make(tmp_path, SPLIT)
    assert load(root, class_names={"a": "an_apple"}).class_names == ("an apple", "b c")
    assert refused(root, class_names={"b_": "x", "zzzz": "y"}) == [
        "d: class_names renames 'b_', which is no class here; did you mean b_c?",
        "d: class_names renames 'zzzz', which is no class here",
    ]


def test_all_problems_at_once(tmp_path: Path) -> None:
    root = make(tmp_path, ["train/a_b/1.png", "train/a b/1.png", "test/a b/1.png", "test/c/1.png"])
    assert refused(root, class_names={"d": "e"}) == [
        "d: class_names renames 'd', which is no class here",
        "d: 2 classes are displayed as 'a b'; rename one with class_names",
        "d: class 'c' has no training images",
        "d: class 'a b' stands in train/ and not in test/",
    ]


def test_a_missing_test_folder_names_what_is_there_instead(tmp_path: Path) -> None:
    assert refused(make(tmp_path, ["train/a/1.png", "val/a/1.png"])) == [
        "d: no test images; put some into test/<class>/, or use one <class>/* level, of which test_share is held out",
        "d: beside train there is val; expected train/<class>/* and test/<class>/*, or one level <class>/*",
    ]


def test_a_missing_train_folder(tmp_path: Path) -> None:
    assert refused(make(tmp_path, ["test/a/1.png", "test/b/1.png"])) == ["d: no training images"]


def test_a_class_whose_images_were_all_held_out(tmp_path: Path) -> None:
    held = next(f"x/{i}.png" for i in range(99) if in_test(f"x/{i}.png", 0.2, 0))
    assert refused(make(tmp_path, [held, *(f"y/{i}.png" for i in range(30))])) == [
        "d: class 'x' has no training images",
        "d: the split held out all images there; try a smaller test_share or another split_seed",
    ]


def test_missing_root_says_where_and_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = FolderSpec(name="d", root="nowhere")
    monkeypatch.chdir("/")
    with pytest.raises(InputError) as caught:
        spec.load("unused")
    expected = "expected train/<class>/* and test/<class>/*, or one level <class>/*"
    assert (
        str(caught.value) == f"The domains cannot be used:\n  - d: no folder {tmp_path}/nowhere; {expected}"
    )


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ([], "no images in {}; expected"),
        (["a/x.txt"], "1 files in {}, none an image (bmp, gif, jpeg, jpg, png, tif, tiff, webp)"),
        (["x.png", "y.png"], "2 images in {}, none of them in a class folder; expected"),
    ],
)
def test_nothing_to_learn_from(tmp_path: Path, paths: list[str], problem: str) -> None:
    (only,) = refused(make(tmp_path, paths))
    assert only.startswith(f"d: {problem.format(tmp_path)}")


def test_list_images(tmp_path: Path) -> None:
    listing = list_images(str(make(tmp_path, ["b.png", "a.txt", "a/1.JPEG", ".x.png"])))
    assert [entry.key for entry in listing.images] == ["a/1.JPEG", "b.png"]
    assert listing.others == ("a.txt",)


def test_a_folder_in_an_object_store(s3: str) -> None:
    root = join(s3, "folder domain")
    for path in [*SPLIT, "train/a/50% #1.jpg", "notes.txt"]:
        open_store(root).write(path, path.encode())
    domain = FolderSpec(name="d", root=root + "/").load("unused")
    assert domain.class_names == ("a", "b c")
    assert domain.ignored == ("notes.txt",)
    odd = next(sample for sample in domain.train if "#" in sample.path)
    assert odd.uri == f"{root}/train/a/50% #1.jpg"
    assert read_bytes(odd.uri) == b"train/a/50% #1.jpg"
    with pytest.raises(FileNotFoundError):
        read_bytes(odd.uri + "gone")
    with pytest.raises(InputError, match=r"d: no images in s3://.*/nothing; expected"):
        FolderSpec(name="d", root=join(root, "nothing")).load("unused")
