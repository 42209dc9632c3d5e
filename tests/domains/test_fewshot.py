"""The few-shot choice: the same everywhere, and independent of everything but a class's own images."""

from __future__ import annotations

import dataclasses
import random

from lada_ray.domains import Domain, Sample, choose


def domain(classes: dict[str, int], name: str = "d") -> Domain:
    samples = [
        Sample(f"/{c}/{i}.png", f"train/{c}/{i}.png", label, 1, "")
        for label, (c, count) in enumerate(classes.items())
        for i in range(count)
    ]
    return Domain(name, tuple(classes), tuple(samples), ())


def paths(samples: list[Sample]) -> list[str]:
    return [sample.path for sample in samples]


def test_the_choice_is_a_fixed_function() -> None:
    assert paths(choose(domain({"a": 10, "b": 10}), 3, 0)) == [
        *("train/a/4.png", "train/a/0.png", "train/a/5.png"),
        *("train/b/8.png", "train/b/6.png", "train/b/3.png"),
    ]  # from sorted(paths, key=lambda path: sha256(f"0\nd\na\n{path}".encode()).digest())


def test_another_seed_or_domain_name_chooses_others() -> None:
    first = paths(choose(domain({"a": 100}), 10, 0))
    assert paths(choose(domain({"a": 100}), 10, 1)) != first
    assert paths(choose(domain({"a": 100}, "other"), 10, 0)) != first


def test_the_order_of_the_listing_does_not_matter() -> None:
    ordered = domain({"a": 20, "b": 20})
    mixed = list(ordered.train)
    random.Random(0).shuffle(mixed)
    for shots in (5, None):
        assert choose(dataclasses.replace(ordered, train=tuple(mixed)), shots, 3) == choose(ordered, shots, 3)


def test_other_classes_and_the_label_do_not_matter() -> None:
    alone = paths(choose(domain({"b": 20}), 5, 0))
    assert [p for p in paths(choose(domain({"a": 7, "b": 20}), 5, 0)) if "/b/" in p] == alone


def test_fewer_shots_are_the_beginning_of_more() -> None:
    assert choose(domain({"a": 20}), 4, 0) == choose(domain({"a": 20}), 16, 0)[:4]


def test_a_bad_image_is_replaced_by_the_next_and_nothing_else_changes() -> None:
    two = domain({"a": 20, "b": 20})
    order = paths(choose(two, 20, 0))
    bad = {order[1], order[21]}
    assert paths(choose(two, 3, 0, bad)) == [order[0], order[2], order[3], order[20], order[22], order[23]]


def test_all_images_come_in_path_order_without_the_bad_ones() -> None:
    assert paths(choose(domain({"a": 2, "b": 3}), None, 7, ["train/b/1.png"])) == [
        "train/a/0.png",
        "train/a/1.png",
        "train/b/0.png",
        "train/b/2.png",
    ]


def test_a_class_with_fewer_images_gives_what_it_has() -> None:
    assert len(choose(domain({"a": 2, "b": 9}), 5, 0)) == 7
