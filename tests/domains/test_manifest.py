"""Tables of images, labels and splits, and what goes wrong with them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lada_ray.domains import Domain, ManifestSpec, read_bytes
from lada_ray.errors import InputError
from lada_ray.store import join, open_store
from tests.xtail import jpeg, mnist_files, write

PATHS = {
    "a #1, ü.jpg": ("red_fox", "train"),
    "b/1.jpg": ("cat", "train"),
    "b/2.jpg": ("cat", "test"),
    "b/3.jpg": ("cat", "val"),
    "c/4.jpg": ("red_fox", "test"),
}


def table(paths: dict[str, tuple[str, str]] = PATHS, header: str = "path,label,split") -> bytes:
    return "\n".join([header, *(f'"{p}",{label},{split}' for p, (label, split) in paths.items())]).encode()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write(tmp_path / "images", {path: jpeg(path) for path in PATHS})


def load(file: Path | str, **keys: Any) -> Domain:
    return ManifestSpec.model_validate({"name": "d", "file": str(file), **keys}).load("unused")


def refused(file: Path | str, **keys: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(file, **keys)
    return caught.value.problems


def check(domain: Domain) -> None:
    assert domain.class_names == ("cat", "red fox")
    assert [(s.path, s.label) for s in domain.train] == [("a #1, ü.jpg", 1), ("b/1.jpg", 0)]
    assert [(s.path, s.label) for s in domain.test] == [("b/2.jpg", 0), ("c/4.jpg", 1)]
    for sample in (*domain.train, *domain.test):
        assert read_bytes(sample.uri) == jpeg(sample.path)
        assert sample.size == len(jpeg(sample.path))


def test_a_csv_beside_its_images_or_elsewhere(images: Path, tmp_path: Path) -> None:
    (images / "all.csv").write_bytes(table())
    check(load(images / "all.csv"))
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbf" + table().replace(b"\n", b"\r\n"))
    check(load(tmp_path / "table.csv", root=str(images)))
    sample = load(images / "all.csv").train[1]
    assert sample.version == str((images / "b/1.jpg").stat().st_mtime_ns)


def test_a_parquet_table_with_other_columns(images: Path) -> None:
    columns = {
        "file": list(PATHS),
        "species": [label for label, _ in PATHS.values()],
        "use": [{"train": "0", "test": "1", "val": "2"}[split] for _, split in PATHS.values()],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    (images / "t.parquet").write_bytes(buffer.getvalue())
    names = {"path_column": "file", "label_column": "species", "split_column": "use"}
    check(load(images / "t.parquet", **names, train_split="0", test_split="1"))


def test_in_an_object_store_with_images_in_both(s3: str, images: Path, tmp_path: Path) -> None:
    root = join(s3, "listed")
    for path in PATHS:
        open_store(root).write(path, jpeg(path))
    open_store(root).write("all.csv", table())
    check(load(join(root, "all.csv")))
    mixed = {f"{root}/b/1.jpg": ("cat", "train"), str(images / "b/2.jpg"): ("cat", "test")}
    (tmp_path / "mixed.csv").write_bytes(table(mixed))
    domain = load(tmp_path / "mixed.csv")
    assert [read_bytes(s.uri) for s in (*domain.train, *domain.test)] == [jpeg("b/1.jpg"), jpeg("b/2.jpg")]
    assert domain.train[0].uri == f"{root}/b/1.jpg"


def test_an_image_may_be_a_part_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, mnist_files())
    name = "t10k-images-idx3-ubyte.gz"
    (tmp_path / "t.csv").write_bytes(table({f"{name}#1": ("one", "train"), f"{name}#11": ("one", "test")}))
    domain = load(tmp_path / "t.csv")
    assert domain.train[0].size == (tmp_path / name).stat().st_size
    assert read_bytes(domain.train[0].uri).startswith(b"\x89PNG")


def test_no_such_file_or_columns(images: Path) -> None:
    assert refused(images / "all.csv") == [f"d: there is no file {images}/all.csv"]
    (images / "all.csv").write_bytes(table(header="path,labels,set"))
    assert refused(images / "all.csv") == [
        f"d: {images}/all.csv has no column 'label'; did you mean labels? (it has path, labels, set)",
        f"d: {images}/all.csv has no column 'split'; did you mean set? (it has path, labels, set)",
    ]
    (images / "all.parquet").write_bytes(table())
    (problem,) = refused(images / "all.parquet")
    assert problem.startswith(f"d: {images}/all.parquet cannot be read: Parquet magic bytes not found")
    (images / "latin.csv").write_bytes("path\nü".encode("latin-1"))
    assert refused(images / "latin.csv")[0].startswith(f"d: {images}/latin.csv cannot be read: 'utf-8' codec")


def test_images_that_are_not_there(images: Path) -> None:
    (images / "b/2.jpg").unlink()
    (images / "all.csv").write_bytes(table())
    assert refused(images / "all.csv") == [f"d: 1 of 4 listed images are not in {images}: b/2.jpg"]
    assert refused(images / "all.csv", root=str(images / "b")) == [
        f"d: none of the 4 listed images is there; they belong into {images}/b, {images}/b/b, {images}/b/c"
    ]


def test_rows_that_say_nothing_or_contradict(images: Path) -> None:
    rows = [b"", b"b/1.jpg,dog,train", b",cat,train", b"b/2.jpg,,test", b"https://host/x.jpg,cat,train"]
    (images / "all.csv").write_bytes(table() + b"\n".join(rows))
    assert refused(images / "all.csv") == [
        "d: rows without path or label: 7, 8",
        "d: 1 paths are of a kind that cannot be read: https://host/x.jpg",
    ]
    (images / "all.csv").write_bytes(table() + b"\nb/1.jpg,red_fox,test")
    assert refused(images / "all.csv") == [
        "d: 1 images are listed under two classes: b/1.jpg (cat and red_fox)"
    ]


def test_a_split_that_is_not_there(images: Path) -> None:
    (images / "all.csv").write_bytes(table())
    assert refused(images / "all.csv", test_split="tets") == [
        f"d: no row of {images}/all.csv has split 'tets' (it has 'test', 'val'; see test_split)"
    ]
