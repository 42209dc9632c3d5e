"""The drawings: pure functions of (class, split, index), visibly different, enough of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lada_ray.domains.drawing import DRAWINGS, SIZE, Drawing
from lada_ray.domains.drawing.canvas import FONTS, Frame, arc, font, generator, regular

every_drawing = pytest.mark.parametrize("drawing", DRAWINGS.values(), ids=DRAWINGS)


def pixels(drawing: Drawing, class_name: str, split: str, index: int) -> np.ndarray:
    """The picture as an array of floats."""
    return np.asarray(drawing.image(class_name, split, index), dtype=float)


def test_six_drawings_have_seventy_different_class_names() -> None:
    names = [name for drawing in DRAWINGS.values() for name in drawing.class_names]
    assert len(DRAWINGS) == 6
    assert len(names) == len(set(names)) == 70


@every_drawing
def test_a_picture_is_a_pure_function(drawing: Drawing) -> None:
    for name in drawing.class_names:
        first = drawing.image(name, "train", 3)
        assert first.size == (SIZE, SIZE)
        assert first.mode == "RGB"
        assert first.tobytes() == drawing.image(name, "train", 3).tobytes()


@every_drawing
def test_splits_share_no_picture(drawing: Drawing) -> None:
    splits = ["train", "test"] + ["pretrain"] * (drawing.name != "digits")
    for name in drawing.class_names:
        drawn = [drawing.image(name, split, index).tobytes() for split in splits for index in range(10)]
        assert len(set(drawn)) == 10 * len(splits)


@every_drawing
def test_every_other_name_can_be_drawn_too(drawing: Drawing) -> None:
    assert not set(drawing.others) & set(drawing.class_names)
    for name in drawing.others:
        assert np.ptp(pixels(drawing, name, "pretrain", 0)) > 60


@every_drawing
def test_pictures_of_a_class_differ_visibly(drawing: Drawing) -> None:
    for name in drawing.class_names:
        one, other = pixels(drawing, name, "train", 0), pixels(drawing, name, "train", 1)
        assert np.abs(one - other).mean() > 4


def test_all_training_digits_differ_from_all_test_digits() -> None:
    digits = DRAWINGS["digits"]
    for name in digits.class_names:
        train = {digits.image(name, "train", i).tobytes() for i in range(digits.most["train"])}
        test = {digits.image(name, "test", i).tobytes() for i in range(digits.most["test"])}
        assert len(train) == 94
        assert len(test) == 80
        assert not train & test


def test_real_digits_cannot_be_pretrained_on() -> None:
    with pytest.raises(ValueError, match="no split 'pretrain'"):
        DRAWINGS["digits"].image("handwritten digit one", "pretrain", 0)
    with pytest.raises(IndexError):
        DRAWINGS["digits"].image("handwritten digit eight", "train", 94)


def test_generators_differ_by_key_and_not_by_call() -> None:
    assert generator("a", 1).integers(2**31) == generator("a", 1).integers(2**31)
    assert generator("a", 1).integers(2**31) != generator("a", 2).integers(2**31)
    # The value itself, so that another machine or NumPy draws the same pictures.
    assert generator("shapes", "red star", "test", 0).integers(10**6) == 887223


def test_frames_keep_their_middle_on_the_canvas() -> None:
    for seed in range(200):
        frame = Frame.jittered(generator("frame", seed), (0.3, 0.9), 30)
        [(x, y)] = frame.pixels([(0, 0)])
        assert 0 < x < 2 * SIZE
        assert 0 < y < 2 * SIZE


def test_polygons_and_arcs_lie_on_their_circles() -> None:
    assert np.allclose(np.hypot(*np.array(regular(7)).T), 1)
    assert np.allclose(sorted(set(np.hypot(*np.array(regular(5, inner=0.4)).T).round(6))), [0.4, 1])
    assert np.allclose(np.hypot(*(np.array(arc((1, 2), 3, 10, 80)) - [1, 2]).T), 3)


@pytest.mark.parametrize("name", FONTS)
def test_every_font_prints_different_letters(name: str) -> None:
    masks = {bytes(font(name, 40).getmask(letter)) for letter in "BEGHKMPRSTXZ"}
    assert len(masks) == 12


def test_textures_are_drawn_from_valid_levels() -> None:
    drawing = DRAWINGS["textures"]
    for name in (*drawing.class_names, *drawing.others):
        image = drawing.image(name, "test", 0)
        assert isinstance(image, Image.Image)
        assert np.asarray(image).std() > 8
