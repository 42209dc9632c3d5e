"""The printed table, the picture and the page, from made-up results."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text

from lada_ray import report
from lada_ray.page import UNDEFINED
from lada_ray.report import (
    BadImage,
    ClassAccuracy,
    Example,
    PackInfo,
    ReportData,
    matrix_figure_png,
    print_table,
    report_html,
)
from tests.pages import assert_self_contained, body_text

NAMES = [
    "aircraft", "caltech101", "dtd", "eurosat", "flowers", "food101",
    "mnist", "oxford_pets", "stanford_cars", "sun397", "road_signs", "handwritten-digits",
]  # fmt: skip


def stream(domains: int, learnt: int | None = None) -> tuple[pd.DataFrame, dict[str, float]]:
    """Make up a plausible accuracy matrix and its zero-shot row."""
    names = [NAMES[k] if domains <= len(NAMES) else f"domain_{k:03d}" for k in range(domains)]
    random = np.random.default_rng(0)
    zero_shot = random.uniform(20, 70, domains)
    rows = np.tile(zero_shot, (domains, 1)) + random.normal(0, 1, (domains, domains))
    for k in range(domains):
        rows[k:, k] = np.minimum(zero_shot[k] + 28, 99) - 0.3 * np.arange(domains - k)
    frame = pd.DataFrame(rows.clip(0, 100).round(2), index=names, columns=names)
    frame.index.name = "learnt"
    return frame.iloc[:learnt], dict(zip(names, zero_shot.round(2), strict=True))


def picture(colour: str = "teal") -> bytes:
    """Encode a small plain image."""
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(buffer, "PNG")
    return buffer.getvalue()


def full_data(domains: int = 3, learnt: int | None = None) -> ReportData:
    """Fill every part of the report."""
    accuracy, zero_shot = stream(domains, learnt)
    names = list(accuracy.columns)
    random = np.random.default_rng(1)
    classes = {
        name: [
            ClassAccuracy(f"{name} class {c}", int(random.integers(5, 21)), 20, int(random.integers(0, 15)))
            for c in range(9)
        ]
        for name in names
    }
    fitting = {"k-means": 0.9, "fit": 6.2, "mixtures": 0.7, "evaluate": 0.4, "track": 0.1, "waiting": 0.6}
    return ReportData(
        name="demo",
        accuracy=accuracy,
        zero_shot=zero_shot,
        subtitle="LADA · demo CLIP · 16 shots · seed 0",
        folder="runs/demo",
        finished="2026-11-20 10:30 UTC",
        classes=classes,
        timings={
            "features": {"read": 0.8, "decode": 4.1, "encode": 21.0},
            **{name: fitting for name in names},
        },
        wall_seconds=131.4,
        counts={"images encoded": 12873, "bank hits": 3400},
        examples=[
            Example(
                report.thumbnail(picture(colour)),
                f"{names[0]}/test/{i}.png",
                (names[0], "teal square"),
                (names[0], "teal square") if i % 3 else (names[-1], "wrong class"),
                (names[0], "teal square") if i % 2 else (names[0], "another wrong class"),
            )
            for i, colour in enumerate(["teal", "orange", "navy", "olive", "maroon", "grey", "black"])
        ],
        bad_images=[BadImage(names[0], "train/a/broken.png", "truncated file (12 of 840 bytes)")],
        packs=[
            PackInfo(
                name, f"{k:02d}" + "ab" * 31, f"{k - 1:02d}" + "ab" * 31 if k else None, "2026-11-20", 123456
            )
            for k, name in enumerate(names[:learnt])
        ],
        config="name: demo\nmethod:\n  alpha: 1.0\n  beta: 1.0\n",
        commands=[
            ("Try another sharpness", "python jobs/run_stream.py --config demo --method.beta 2 --name hot")
        ],
        notes=["MLflow could not be reached"],
    )


def printed(domains: int, width: int, learnt: int | None = None) -> str:
    """Print the table into a string, as into a file."""
    console = Console(file=io.StringIO(), width=width)
    print_table(*stream(domains, learnt), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_table_looks_like_the_published_one() -> None:
    accuracy = pd.DataFrame([[90, 20], [85, 70]], index=["digits", "signs"], columns=["digits", "signs"])
    console = Console(file=io.StringIO(), width=60)
    print_table(accuracy, {"digits": 40, "signs": 25}, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split() for line in lines if not line.startswith("─")] == [
        ["learnt", "digits", "signs", "mean"],
        ["zero-shot", "40.0", "25.0", "32.5"],
        ["digits", "90.0", "20.0", "55.0"],
        ["signs", "85.0", "70.0", "77.5"],
        ["Transfer", UNDEFINED, "20.0", "20.0"],
        ["Average", "87.5", "45.0", "66.2"],
        ["Last", "85.0", "70.0", "77.5"],
        ["Forgetting", "5.0", UNDEFINED, "5.0"],
        ["BWT", "-5.0", UNDEFINED, "-5.0"],
    ]


@pytest.mark.parametrize(("domains", "width"), [(1, 80), (5, 80), (10, 80), (12, 100), (12, 120)])
def test_table_fits_and_keeps_every_number(domains: int, width: int) -> None:
    text = printed(domains, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert len(re.findall(r"\d\.\d", text)) >= domains * (domains + 1)


def test_many_domains_get_a_row_each() -> None:
    text = printed(40, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert sum(line.startswith("domain_") for line in text.splitlines()) == 40
    assert "Forgetting" in text


def test_headings_stay_different_when_shortened() -> None:
    assert report.column_names(["caltech101", "dtd", "oxford_pets"], 7) == [
        "caltech\n101",
        "dtd",
        "oxford\npets",
    ]
    assert report.column_names(["a_name_that_is_too_long"], 5) == ["a\nname\nlong"]
    alike = report.column_names(["shapes_of_many_kinds_one", "shapes_of_few_kinds_one"], 5)
    assert len(set(alike)) == 2
    assert all(len(line) <= 5 for name in alike for line in name.split("\n"))


def test_page_is_self_contained_and_complete() -> None:
    html = report_html(full_data())
    page = assert_self_contained(html)
    assert page.tags.count("svg") == 3
    assert page.tags.count("img") == 7
    for expected in (
        "demo",
        "12,873",
        "2 min 11 s",
        "truncated file (12 of 840 bytes)",
        "alpha: 1.0",
        "--name hot",
    ):
        assert expected in html


def test_page_shows_the_metrics_numbers() -> None:
    data = full_data(3)
    html = report_html(data)
    means = report.stream_metrics(data.accuracy).means()
    assert f"<b>{means['last']:.1f} %</b>" in html
    zero_shot = sum(data.zero_shot.values()) / 3
    assert f"{means['last'] - zero_shot:.1f} points more" in html
    for value in data.accuracy.to_numpy().ravel():
        assert f">{value:.1f}</td>" in html


def test_classes_come_worst_first() -> None:
    accuracy, zero_shot = stream(1)
    members = [ClassAccuracy("good", 9, 10), ClassAccuracy("awful", 1, 10, 3), ClassAccuracy("fair", 5, 10)]
    html = report_html(ReportData("x", accuracy, zero_shot, classes={"aircraft": members}))
    assert html.index(">awful<") < html.index(">fair<") < html.index(">good<")
    assert "worst: awful 10.0 %" in html


def test_names_from_users_are_escaped() -> None:
    evil = "<script>alert('x')</script>"
    accuracy = pd.DataFrame([[50.0]], index=[evil], columns=[evil])
    data = replace(full_data(), accuracy=accuracy, zero_shot={evil: 20}, name=evil, notes=[evil], config=evil)
    html = report_html(replace(data, bad_images=[BadImage(evil, evil, evil)], commands=[(evil, evil)]))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(("domains", "learnt"), [(1, None), (12, None), (4, 2), (100, None)])
def test_page_and_picture_hold_for_few_many_and_unfinished(domains: int, learnt: int | None) -> None:
    accuracy, zero_shot = stream(domains, learnt)
    html = report_html(ReportData("x", accuracy, zero_shot))
    assert_self_contained(html)
    assert ("dense" in html.split("</style>")[1]) == (domains > report.NUMBERS_UP_TO)
    assert "nan" not in body_text(html).lower()
    with Image.open(io.BytesIO(matrix_figure_png(accuracy, zero_shot, "x"))) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 300


def test_names_are_no_formulas() -> None:
    accuracy = pd.DataFrame([[50.0]], index=["$_x"], columns=["$_x"])
    assert matrix_figure_png(accuracy, {"$_x": 20.0}, "$_x").startswith(b"\x89PNG")


@pytest.mark.parametrize(("width", "tables"), [(24, 2), (40, 1)])
def test_columns_that_do_not_fit_stand_below(width: int, tables: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    columns = {heading: [Text("12.34")] * 2 for heading in ("first", "second\nof two", "third")}
    report.print_columns(console, ["a name", "a name"], columns)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert sum("1:a name" in line for line in lines) == tables
    assert sum(line.count("12.34") for line in lines) == 6


def test_thumbnail_is_small_and_keeps_proportions() -> None:
    small = report.thumbnail(picture(), side=96)
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == (96, 64)
    assert len(small) < 1500
