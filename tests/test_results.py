"""What a stream leaves for people: the exact files, and the metrics of even the shortest stream."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lada_ray.domains import Domain, Sample
from lada_ray.evaluate import Row
from lada_ray.features.fill import Images
from lada_ray.features.index import BadImage
from lada_ray.features.selection import Selection
from lada_ray.model import LadaModel
from lada_ray.pack import Label
from lada_ray.results import Story, accuracy_table, bad_images, metrics_of, write_report, write_results
from lada_ray.store import Store, open_store

if TYPE_CHECKING:
    from conftest import TinyWorld

TOTAL = {"pets": [4, 4], "road-signs": [5]}
ZERO_SHOT = Row("zero-shot", {"pets": [1, 2], "road-signs": [1]}, TOTAL)
ROWS = [
    Row("pets", {"pets": [4, 3], "road-signs": [2]}, TOTAL),
    Row("road-signs", {"pets": [3, 3], "road-signs": [4]}, TOTAL),
]


def selection(
    name: str, classes: tuple[str, ...], bad: tuple[BadImage, ...] = (), uri: str = "/x.png"
) -> Selection:
    tests = (Sample(uri, "test/x.png", 0, 1, ""),)
    return Selection(Domain(name, classes, (), tests), (), tests, ("test",), bad)


BAD = (BadImage("/d/größe,1.png", 'not "an" image'), BadImage("s3://b/2.png", "the file is empty"))
IMAGES = Images([selection("pets", ("cat", "dog"), BAD[:1]), selection("road-signs", ("stop",), BAD[1:])], {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def test_the_accuracy_table_by_hand() -> None:
    table = accuracy_table(ROWS)
    assert table.to_numpy().tolist() == [[87.5, 40.0], [75.0, 80.0]]
    assert (list(table.index), list(table.columns), table.index.name) == (
        ["pets", "road-signs"],
        ["pets", "road-signs"],
        "learnt",
    )


def test_metrics_by_hand() -> None:
    assert metrics_of(accuracy_table(ROWS), ZERO_SHOT, 17) == {
        "transfer": 40.0,
        "average": (81.25 + 60.0) / 2,
        "last": 77.5,
        "forgetting": 12.5,
        "backward_transfer": -12.5,
        "zero_shot": (37.5 + 20.0) / 2,
        "zero_shot_per_domain": {"pets": 37.5, "road-signs": 20.0},
        "images_encoded": 17,
    }


def test_one_domain_leaves_some_metrics_undefined() -> None:
    alone, zero_shot = (
        Row("pets", {"pets": [4, 3]}, {"pets": [4, 4]}),
        Row("zero-shot", {"pets": [1, 2]}, TOTAL),
    )
    metrics = metrics_of(accuracy_table([alone]), zero_shot, 0)
    assert [metrics[name] for name in ("transfer", "forgetting", "backward_transfer")] == [None, None, None]
    assert (metrics["last"], metrics["average"], metrics["zero_shot"]) == (87.5, 87.5, 37.5)
    assert "NaN" not in json.dumps(metrics, allow_nan=False)


def test_the_files_have_their_exact_form(store: Store) -> None:
    table = accuracy_table(ROWS)
    metrics = metrics_of(table, ZERO_SHOT, 17)
    assert write_results(store, table, metrics, IMAGES)
    assert store.read("accuracy_matrix.csv").decode() == (
        "learnt,pets,road-signs\npets,87.5,40.0\nroad-signs,75.0,80.0\n"
    )
    assert json.loads(store.read("metrics.json")) == metrics
    text = store.read("bad_images.csv").decode()
    assert text.splitlines()[0] == "domain,path,reason"
    assert list(csv.reader(io.StringIO(text)))[1:] == [
        ["pets", "/d/größe,1.png", 'not "an" image'],
        ["road-signs", "s3://b/2.png", "the file is empty"],
    ]
    assert [bad.domain for bad in bad_images(IMAGES)] == ["pets", "road-signs"]
    pd.testing.assert_frame_equal(
        pd.read_csv(Path(store.uri) / "accuracy_matrix.csv", index_col="learnt"), table
    )


def test_without_bad_images_the_list_has_its_header(store: Store) -> None:
    write_results(store, accuracy_table(ROWS), {}, Images([selection("pets", ("cat",))], {}))
    assert store.read("bad_images.csv") == b"domain,path,reason\r\n"


def test_names_that_are_not_unicode_are_listed(store: Store) -> None:
    bad = BadImage("/d/\udcff.png", "empty")
    write_results(store, accuracy_table(ROWS), {}, Images([selection("pets", ("cat",), (bad,))], {}))
    assert b"/d/\xff.png" in store.read("bad_images.csv")


def test_equal_results_are_not_written_again_once_there_is_a_report(store: Store) -> None:
    table, metrics = accuracy_table(ROWS), metrics_of(accuracy_table(ROWS), ZERO_SHOT, 17)
    assert write_results(store, table, metrics, IMAGES)
    assert write_results(store, table, metrics, IMAGES)  # killed before the report
    store.write("report.html", b"<html>")
    assert not write_results(store, table, metrics, IMAGES)
    assert write_results(store, table, {**metrics, "last": 1.0}, IMAGES)
    assert not store.exists("report.html")


def test_the_report_tells_the_run(learnt_run: tuple[TinyWorld, str], tmp_path: Path) -> None:
    world, uri = learnt_run
    shutil.copytree(uri, tmp_path / "run")
    store = open_store(tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    totals = {"pets": [5, 5, 5], "wild": [5, 5]}
    before = Row("zero-shot", {"pets": [1, 0, 2], "wild": [0, 0]}, totals)
    rows = [
        Row("pets", {"pets": [5, 5, 4], "wild": [0, 1]}, totals),
        Row("wild", {"pets": [5, 4, 4], "wild": [5, 5]}, totals),
    ]
    images = Images(
        [selection(name, names, BAD[:1], str(tmp_path / "x.png")) for name, names in world.classes.items()],
        {},
    )
    example = {
        "domain": "wild",
        "row": 0,
        "truth": Label("wild", "dog"),
        "predicted": Label("pets", "dog"),
        "zero_shot": Label("pets", "red fox"),
    }
    story = Story(
        "LADA, tiny",
        {"wall": {"learn": 1.5}},
        2.0,
        {"classes": 5},
        [("ask", "python -c 1")],
        ["a note"],
        "seed: 0",
    )
    packs = LadaModel.load(tmp_path / "run" / "model").packs
    digests = [pack.digest for pack in packs]
    write_report(store, accuracy_table(rows), (before, rows[-1]), digests, images, [example], story)
    html = store.read("report.html").decode()
    for text in (
        "LADA, tiny",
        "red fox",
        "wolf",
        packs[0].digest[:8],
        packs[1].digest[:8],
        "python -c 1",
        "data:image/",
    ):
        assert text in html, text
    assert "größe,1.png" in html
