"""What is refused and what is warned of, over all domains."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada_ray.domains import Domain, FolderSpec, Sample, load_domains, overlaps, problems, shared_class_names
from lada_ray.domains.check import overlap, overlap_lines, overlap_refused
from lada_ray.errors import InputError


def samples(split: str, labels: list[int]) -> tuple[Sample, ...]:
    return tuple(Sample(f"/{split}/{i}", f"{split}/{i:03}", label, 1, "") for i, label in enumerate(labels))


def domain(
    name: str = "d", classes: tuple[str, ...] = ("a", "b"), train: tuple[int, ...] = (0, 1), test: int = 1
) -> Domain:
    return Domain(name, classes, samples("train", list(train)), samples("test", [0] * test))


def test_good_domains_have_no_problems() -> None:
    assert problems([domain("x"), domain("y")]) == []


def test_every_problem_of_every_domain_is_listed() -> None:
    bad = [
        domain("x", train=(1,)),
        domain("x", test=0),
        domain("y", classes=("a", "a", " "), train=(0, 1, 2)),
        domain("z", train=()),
        domain("none", classes=()),
    ]
    assert problems(bad) == [
        "x: 2 domains have this name; give each its own",
        "x: class 'a' has no training images",
        "x: no test images; put some into test/<class>/, or use one <class>/* level, of which test_share is held out",
        "y: class 2 has an empty name",
        "y: 2 classes are displayed as 'a'; rename one with class_names",
        "z: no training images",
        "none: no classes",
    ]


def test_load_domains_collects_over_domains(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    specs = [FolderSpec(name=name, root=str(tmp_path / name)) for name in ("gone", "empty")]
    with pytest.raises(InputError) as caught:
        load_domains(specs, "unused")
    assert [problem.partition(";")[0] for problem in caught.value.problems] == [
        f"gone: no folder {tmp_path}/gone",
        f"empty: no images in {tmp_path}/empty",
    ]


def test_load_domains_keeps_the_order(tmp_path: Path) -> None:
    for name in "yx":
        for split in ("train", "test"):
            (tmp_path / name / split / "a").mkdir(parents=True)
            (tmp_path / name / split / "a" / "1.png").write_bytes(b"")
    specs = [FolderSpec(name=name, root=str(tmp_path / name)) for name in "yx"]
    assert [d.name for d in load_domains(specs, "unused")] == ["y", "x"]


def test_shared_class_names() -> None:
    found = shared_class_names([domain("x"), domain("y", ("b", "c")), domain("z", ("c", "b"))])
    assert found == {"b": ("x", "y", "z"), "c": ("y", "z")}


def test_overlap_pairs_by_content() -> None:
    one = domain(train=(0, 1, 0), test=3)
    hashes = {
        "train/000": "A",
        "train/001": "B",
        "train/002": "A",
        "test/000": "C",
        "test/001": "A",
        "test/002": "B",
    }
    assert overlap(one, hashes) == [("train/000", "test/001"), ("train/001", "test/002")]
    assert overlap(one, {}) == []


def test_overlap_is_refused_above_one_percent_of_the_test_images() -> None:
    pairs = [("train/000", "test/000")]
    assert not overlap_refused(domain(test=100), pairs)
    assert overlap_refused(domain(test=99), pairs)
    assert not overlap_refused(domain(test=0), [])


def test_overlap_in_words() -> None:
    pairs = [(f"train/{i}", f"test/{i}") for i in range(7)]
    assert overlap_lines(domain(test=100), pairs, shown=2) == [
        "d: 7 of 100 test images (7.0 %) are training images too: "
        "test/0 = train/0; test/1 = train/1; and 5 more"
    ]
    assert overlap_lines(domain(), []) == []


def test_overlaps_warn_or_refuse() -> None:
    good, bad = domain("good", test=100), domain("bad", test=2)
    sha = {"train/000": "A", "test/000": "A"}
    line = "good: 1 of 100 test images (1.0 %) are training images too: test/000 = train/000"
    assert overlaps([good, bad], {"good": sha}) == [line]
    with pytest.raises(InputError) as caught:
        overlaps([good, bad], {"good": sha, "bad": sha})
    assert caught.value.problems == [
        "bad: 1 of 2 test images (50.0 %) are training images too: test/000 = train/000"
    ]
