"""Which images a run uses: bad shots are replaced, and only what the choice stumbled over is listed."""

from __future__ import annotations

from lada_ray.domains import Domain, Sample, choose
from lada_ray.features.index import BadImage
from lada_ray.features.selection import Selection, emptied, select


def samples(part: str, number: int, classes: int = 2) -> tuple[Sample, ...]:
    names = [(label, f"{part}/{label}/{i}.png") for label in range(classes) for i in range(number)]
    return tuple(Sample(f"/d/{name}", name, label, 1, "") for label, name in names)


DOMAIN = Domain("d", ("cat", "dog"), samples("train", 8), samples("test", 3))
FLAT = Domain("f", ("cat", "dog"), samples("train", 2), samples("test", 1), augment="none")


def paths(selected: tuple[Sample, ...]) -> list[str]:
    return [sample.path for sample in selected]


def test_without_bad_images_the_choice_is_the_seeded_one() -> None:
    selection = select(DOMAIN, {}, shots=3, views=2, seed=1)
    assert selection.train == tuple(choose(DOMAIN, 3, 1))
    assert selection.test == DOMAIN.test
    assert selection.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert selection.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert selection.bad == ()
    assert selection.samples == selection.train + selection.test


def test_the_next_image_in_the_seeded_order_replaces_a_bad_one() -> None:
    order = [s for s in choose(DOMAIN, 8, 0) if s.label == 0]
    spoilt = {order[1].uri: "truncated", order[3].uri: "empty"}
    selection = select(DOMAIN, spoilt, shots=3, views=0, seed=0)
    cats = [s.path for s in selection.train if s.label == 0]
    # The fourth is bad as well: the fifth takes the place of the second.
    assert cats == [order[0].path, order[2].path, order[4].path]
    assert [s for s in selection.train if s.label == 1] == [s for s in choose(DOMAIN, 3, 0) if s.label == 1]
    assert selection.bad == (BadImage(order[1].uri, "truncated"), BadImage(order[3].uri, "empty"))


def test_known_bad_images_that_were_not_wanted_are_not_listed() -> None:
    order = [s for s in choose(DOMAIN, 8, 0) if s.label == 0]
    others = {s.uri: "found by another run" for s in order[4:]} | {"/other/x.png": "elsewhere"}
    wanted = {order[0].uri: "empty"}
    assert select(DOMAIN, wanted | others, 3, 0, 0) == select(DOMAIN, wanted, 3, 0, 0)


def test_bad_test_images_are_left_out_and_listed() -> None:
    spoilt = {"/d/test/1/2.png": "empty"}
    selection = select(DOMAIN, spoilt, None, 0, 0)
    assert paths(selection.test) == [s.path for s in DOMAIN.test if s.path != "test/1/2.png"]
    assert selection.bad == (BadImage("/d/test/1/2.png", "empty"),)
    assert len(selection.train) == 16


def test_views_follow_the_augmentation_policy() -> None:
    assert select(DOMAIN, {}, 1, 2, 0).views == ("crop_flip/0", "crop_flip/1")
    assert select(DOMAIN, {}, 1, 0, 0).views == ("test",)
    assert select(FLAT, {}, 1, 8, 0).views == ("test",)


def test_needs_names_every_view_once() -> None:
    needs = select(DOMAIN, {}, 1, 2, 0).needs()
    assert len(needs) == 2 * 3 + 6
    assert [view for _, view in needs[:3]] == ["test", "crop_flip/0", "crop_flip/1"]
    assert {view for _, view in needs[6:]} == {"test"}
    assert len(select(FLAT, {}, None, 8, 0).needs()) == 4 + 2


def test_a_class_that_lost_all_its_images_is_named() -> None:
    spoilt = {s.uri: "empty" for s in DOMAIN.train if s.label == 1}
    assert emptied([select(DOMAIN, spoilt, 3, 0, 0)]) == ["d: every training image of 'dog' is unusable"]
    assert emptied([select(DOMAIN, {}, 3, 0, 0)]) == []
    no_test: Selection = select(DOMAIN, {s.uri: "empty" for s in DOMAIN.test}, 3, 0, 0)
    assert emptied([no_test]) == ["d: every test image is unusable"]
