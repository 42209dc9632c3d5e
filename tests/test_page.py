"""How numbers, times, sizes and names are written, and the frame of all pages."""

from __future__ import annotations

import math

import jinja2
import pytest

from lada_ray.page import (
    UNDEFINED,
    data_uri,
    duration,
    number,
    page_environment,
    points,
    shorten,
    signed,
    size,
)
from tests.pages import assert_self_contained

EVIL = "<script>alert('x')</script>"


def test_numbers_are_rounded_and_never_minus_zero() -> None:
    assert [number(v) for v in (84.26, -0.01, math.nan)] == ["84.3", "0.0", UNDEFINED]
    assert [signed(v) for v in (0.16, -1.24, -0.01)] == ["+0.2", "\u22121.2", "+0.0"]
    assert [points(v) for v in (84.256, -0.001, None, math.nan)] == ["84.26", "0.00", UNDEFINED, UNDEFINED]
    assert [points(v, signed=True) for v in (0.5, -0.5)] == ["+0.50", "\u22120.50"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_sizes_read_well() -> None:
    assert [size(n) for n in (840, 12_340, 123_456, 1_234_567)] == ["840 B", "12.3 kB", "123 kB", "1.2 MB"]


def test_long_names_are_cut_in_their_middle() -> None:
    assert shorten("caltech101", 7) == "cal…101"
    assert shorten("dtd", 7) == "dtd"


def test_pictures_say_what_they_are() -> None:
    assert data_uri(b"\x89PNG1") == "data:image/png;base64,iVBORzE="
    assert data_uri(b"\xff\xd8\xff").startswith("data:image/jpeg;base64,")


def test_a_page_escapes_what_it_is_given_and_misses_what_it_is_not() -> None:
    blocks = "{% block title %}{{ name }}{% endblock %}{% block main %}{{ name }}{% endblock %}"
    page = page_environment().from_string('{% extends "page.html.jinja" %}' + blocks)
    html = page.render(name=EVIL)
    assert_self_contained(html)
    assert html.count("&lt;script&gt;") == 2
    assert "main { max-width: 1080px;" in html
    with pytest.raises(jinja2.UndefinedError, match="name"):
        page.render()
