"""URIs that name a part of a file, and those that only look like it."""

from __future__ import annotations

import pytest

from lada_ray.domains.parts import IdxImage, ParquetRow, split_part


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("/d/train-images-idx3-ubyte", IdxImage(17)),
        ("s3://b/t10k-images.idx3-ubyte.gz", IdxImage(0)),
        ("/d #1/train.parquet", ParquetRow("image", 12)),
        ("s3://b/x.parquet", ParquetRow("my column & co#1", 1_000_000)),
    ],
)
def test_round_trip(file: str, part: IdxImage | ParquetRow) -> None:
    assert split_part(f"{file}{part}") == (file, part)


def test_numbers_need_no_zeros() -> None:
    assert split_part("x-idx3-ubyte.gz#17") == ("x-idx3-ubyte.gz", IdxImage(17))
    assert split_part("x.parquet#column=a&row=2") == ("x.parquet", ParquetRow("a", 2))


@pytest.mark.parametrize(
    "uri", ["50% off #row=1.png", "x.parquet", "x.png#17", "x.parquet#row=1", "a-idx3-ubyte"]
)
def test_whole_files(uri: str) -> None:
    assert split_part(uri) == (uri, None)


def test_paths_are_in_the_order_of_rows() -> None:
    assert sorted(map(str, (ParquetRow("a", n) for n in (10, 9, 100)))) == [
        "#column=a&row=000009",
        "#column=a&row=000010",
        "#column=a&row=000100",
    ]
