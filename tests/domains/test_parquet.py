"""Parquet files as the Hugging Face hub stores them, plainer ones, and what goes wrong with them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lada_ray.domains import Domain, ParquetSpec, parquet, read_bytes, rows
from lada_ray.errors import InputError
from lada_ray.store import join, open_store
from tests.xtail import jpeg, write

NAMES = ["apple_pie", "waffles", "sushi"]
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(shard: str, row: int) -> bytes:
    return jpeg(f"{row % 3}/{shard}/{row}")


def hf_file(shard: str, count: int, names: list[str] | None = NAMES, group: int = 4) -> bytes:
    """A shard as `datasets` writes it: struct images, ClassLabel integers, features in the schema's metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    schema = pa.schema([("image", HF_IMAGE), ("label", pa.int64())], metadata=metadata)
    images = [{"bytes": picture(shard, row), "path": f"{row}.jpg"} for row in range(count)]
    return parquet_file(
        pa.table({"image": images, "label": [row % 3 for row in range(count)]}, schema=schema), group
    )


def parquet_file(table: pa.Table, group: int = 4) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group)
    return buffer.getvalue()


HUB = {
    "README.md": b"card",
    "data/train-00000-of-00002.parquet": hf_file("a", 9),
    "data/train-00001-of-00002.parquet": hf_file("b", 6),
    "data/test-00000-of-00001.parquet": hf_file("c", 6),
}


def load(root: Path | str, **keys: Any) -> Domain:
    return ParquetSpec.model_validate({"name": "d", "root": str(root), **keys}).load("unused")


def refused(root: Path | str, **keys: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(root, **keys)
    return caught.value.problems


def plain(root: Path, **columns: Any) -> Path:
    """One file with a split column and whatever columns."""
    return write(root, {"all.parquet": parquet_file(pa.table(columns))})


def check_hub(domain: Domain, root: str) -> None:
    assert domain.class_names == ("apple pie", "waffles", "sushi")
    assert [s.label for s in domain.train] == [0, 1, 2] * 5
    assert [s.label for s in domain.test] == [0, 1, 2] * 2
    for shard, samples in (("a", domain.train[:9]), ("b", domain.train[9:]), ("c", domain.test)):
        assert [read_bytes(s.uri) for s in samples] == [picture(shard, row) for row in range(len(samples))]
    first = domain.train[0]
    assert first.path == "data/train-00000-of-00002.parquet#column=image&row=000000"
    assert first.uri == f"{root}/{first.path}"


def test_as_on_the_hub(tmp_path: Path) -> None:
    check_hub(load(write(tmp_path, HUB)), str(tmp_path))
    file = tmp_path / "data/test-00000-of-00001.parquet"
    sample = load(tmp_path).test[0]
    assert (sample.size, sample.version) == (file.stat().st_size, str(file.stat().st_mtime_ns))


def test_in_an_object_store(s3: str) -> None:
    root = join(s3, "hub")
    for path, data in HUB.items():
        open_store(root).write(path, data)
    check_hub(load(root), root)


def test_a_row_is_read_without_its_file_and_a_file_not_row_by_row(tmp_path: Path) -> None:
    domain = load(write(tmp_path, {**HUB, "data/train-00000-of-00002.parquet": hf_file("a", 40)}))
    rows._column.cache_clear()
    for sample in domain.train[:40]:
        read_bytes(sample.uri)
    found = rows._column.cache_info()
    assert (found.misses, found.hits) == (10, 30)  # ten row groups of four rows each
    assert found.currsize <= rows.GROUPS


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    store = open_store(write(tmp_path, HUB))
    sample = load(tmp_path).test[0]
    assert read_bytes(sample.uri) == picture("c", 0)
    store.write("data/test-00000-of-00001.parquet", hf_file("d", 6))
    assert read_bytes(sample.uri) == picture("d", 0)


def test_a_file_that_was_damaged_after_it_was_listed(tmp_path: Path) -> None:
    sample = load(write(tmp_path, HUB)).test[0]
    write(tmp_path, {"data/test-00000-of-00001.parquet": HUB["data/test-00000-of-00001.parquet"][:-50]})
    with pytest.raises(OSError, match=r"test-00000-of-00001.parquet: .*[Pp]arquet"):
        read_bytes(sample.uri)


def test_a_split_column(tmp_path: Path) -> None:
    splits = ["fit", "fit", "check", "other", "check", "fit"]
    images = [picture("x", i) for i in range(6)]
    plain(tmp_path, photo=images, kind=["b_c", "a", "a", "zzz", "b_c", "a"], part=splits, number=range(6))
    domain = load(
        tmp_path, split_column="part", train_split="fit", test_split="check", label_column="kind", epochs=3
    )
    assert domain.class_names == ("a", "b c")  # a row of another split brings no class
    assert [(s.path[-6:], s.label) for s in domain.train] == [("000000", 1), ("000001", 0), ("000005", 0)]
    assert [read_bytes(s.uri) for s in domain.test] == [images[2], images[4]]
    assert domain.epochs == 3
    assert refused(tmp_path, split_column="part", label_column="kind") == [
        f"d: {tmp_path}/all.parquet: column 'part' has 'check', 'fit', 'other'; set train_split and test_split"
    ]


def test_integers_without_names_are_in_order_and_can_be_named(tmp_path: Path) -> None:
    images = [picture("x", i) for i in range(6)]
    plain(tmp_path, image=images, label=[10, 9, 2, 10, 9, 2], split=["train"] * 3 + ["test"] * 3)
    assert load(tmp_path, split_column="split").class_names == ("2", "9", "10")
    assert load(tmp_path, split_column="split", class_names={"9": "nine"}).class_names == ("2", "nine", "10")


def test_a_missing_split_says_what_is_there(tmp_path: Path) -> None:
    files = {path.replace("test", "validation"): data for path, data in HUB.items()}
    assert refused(write(tmp_path, files)) == [
        f"d: no file in {tmp_path} matches test_files '*test*.parquet'; there are "
        "data/train-00000-of-00002.parquet, data/train-00001-of-00002.parquet, "
        "data/validation-00000-of-00001.parquet"
    ]
    assert len(load(tmp_path, test_files="*validation*").test) == 6
    (both, _) = refused(tmp_path, train_files="data/*", test_files="*validation*"), None
    assert both == ["d: data/validation-00000-of-00001.parquet match both train_files and test_files"]


def test_a_wrong_root(tmp_path: Path) -> None:
    assert refused(tmp_path / "x") == [f"d: no folder {tmp_path}/x; expected Parquet files"]
    assert refused(tmp_path) == [f"d: no .parquet files in {tmp_path}"]


def test_shards_that_disagree(tmp_path: Path) -> None:
    files = {
        **HUB,
        "data/test-00000-of-00001.parquet": hf_file("c", 6, names=["waffles", "apple_pie", "sushi"]),
    }
    assert refused(write(tmp_path, files)) == [
        "d: data/train-00001-of-00002.parquet and data/test-00000-of-00001.parquet have different lists of class names"
    ]


def test_all_bad_shards_at_once(tmp_path: Path) -> None:
    files = {
        **HUB,
        "data/train-00000-of-00002.parquet": b"PAR1",
        "data/train-00001-of-00002.parquet": hf_file("b", 6, names=["apple_pie", "waffles"]),
    }
    cut, outside = refused(write(tmp_path, files))
    assert cut.startswith(f"d: {tmp_path}/data/train-00000-of-00002.parquet: Parquet file size is 4 bytes")
    assert outside == (
        f"d: {tmp_path}/data/train-00001-of-00002.parquet: "
        "column 'label' has 2 values without a class name, such as 2"
    )


def test_columns_that_are_not_there_or_not_clear(tmp_path: Path) -> None:
    where = f"d: {tmp_path}/all.parquet"
    plain(tmp_path, image=[b"x"], mask=[b"y"], text=["a"], split=["train"])
    keys = {"split_column": "split"}
    assert refused(tmp_path, **keys) == [
        f"{where}: 2 columns could be the images (image, mask); say which with image_column"
    ]
    assert refused(tmp_path, **keys, image_column="image") == [
        f"{where}: no columns could be the labels (image, mask, text, split); say which with label_column"
    ]
    assert refused(tmp_path, **keys, image_column="image", label_column="txt") == [
        f"{where}: has no column 'txt'; did you mean text?"
    ]


def test_rows_without_label_or_image(tmp_path: Path) -> None:
    plain(tmp_path, image=[None, b"y"], label=["a", None], split=["train", "test"])
    assert refused(tmp_path, split_column="split") == [
        f"d: {tmp_path}/all.parquet: column 'label' has 1 values that are no label, such as None"
    ]
    plain(tmp_path, image=[None, b"y"], label=["a", "a"], split=["train", "test"])
    domain = load(tmp_path, split_column="split")
    with pytest.raises(OSError, match="row=0: column 'image' holds no image bytes there"):
        read_bytes(domain.train[0].uri)
    with pytest.raises(OSError, match="row=7: the file has 2 rows"):
        read_bytes(f"{tmp_path}/all.parquet#column=image&row=7")
    with pytest.raises(OSError, match="has no column 'x'"):
        read_bytes(f"{tmp_path}/all.parquet#column=x&row=0")


def test_row_groups_that_no_process_should_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP", 1000)
    problems = refused(write(tmp_path, HUB))
    assert len(problems) == 3
    assert "write it with pyarrow's row_group_size=100" in problems[0]
