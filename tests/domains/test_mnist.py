"""MNIST's files as a domain, and what goes wrong with them."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lada_ray.domains import Domain, MnistSpec, read_bytes
from lada_ray.domains.mnist import LAYOUT
from lada_ray.errors import InputError
from lada_ray.store import join, open_store
from tests.xtail import TEST, TRAIN, digits, idx, mnist_files, write


def load(root: Path | str, **keys: Any) -> Domain:
    return MnistSpec.model_validate({"name": "d", "root": str(root), **keys}).load("unused")


def refused(root: Path | str, **keys: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(root, **keys)
    return caught.value.problems


def check_images(domain: Domain) -> None:
    for samples, (images, labels) in zip(
        (domain.train, domain.test), (digits("train", TRAIN), digits("t10k", TEST)), strict=True
    ):
        assert [s.label for s in samples] == labels.tolist()
        for sample, image in zip(samples, images, strict=True):
            found = Image.open(io.BytesIO(read_bytes(sample.uri)))
            assert (found.format, found.mode) == ("PNG", "L")
            assert (np.asarray(found) == image).all()


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
def test_as_fetched_and_as_torchvision_lays_it_out(gz: bool, folder: str, tmp_path: Path) -> None:
    write(tmp_path / folder, mnist_files(gz))
    domain = load(tmp_path)
    check_images(domain)
    assert domain.class_names[:2] == ("0 - zero", "1 - one")  # torchvision's, which RAIL and LADA take
    assert domain.prompt == 'a photo of a number: "{}".'
    file = tmp_path / folder / ("train-images-idx3-ubyte" + (".gz" if gz else ""))
    first = domain.train[0]
    assert (first.uri, first.path) == (f"{file}#000000", "train-images-idx3-ubyte#000000")
    assert (first.size, first.version) == (file.stat().st_size, str(file.stat().st_mtime_ns))


def test_names_with_a_dot(tmp_path: Path) -> None:
    write(tmp_path, {name.replace("-idx", ".idx"): data for name, data in mnist_files(gz=False).items()})
    check_images(load(tmp_path))
    assert load(tmp_path).train[0].path == "train-images-idx3-ubyte#000000"


def test_relatives_of_mnist(tmp_path: Path) -> None:
    names = {str(i): f"garment_{i}" for i in range(10)}
    domain = load(write(tmp_path, mnist_files()), class_names=names, prompt="a photo of a {}.")
    assert domain.class_names[9] == "garment 9"
    assert domain.prompt == "a photo of a {}."
    assert load(tmp_path, prompt=None).prompt is None
    assert refused(tmp_path, class_names={"10": "bag"}) == [
        "d: class_names renames '10', which is no class here; did you mean 1?"
    ]


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path / "raw", mnist_files())
    (tmp_path / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert refused(tmp_path) == [
        f"d: no t10k-labels-idx1-ubyte in {tmp_path} (there is raw); expected {LAYOUT}"
    ]
    assert refused(tmp_path / "x") == [f"d: no folder {tmp_path}/x; expected {LAYOUT}"]


def test_all_damaged_files_at_once(tmp_path: Path) -> None:
    files = mnist_files(gz=False)
    files["train-images-idx3-ubyte"] = files["train-images-idx3-ubyte"][:-1]
    files["t10k-labels-idx1-ubyte"] = idx(np.zeros(3, np.uint8))
    assert refused(write(tmp_path, files)) == [
        f"d: {tmp_path}/train-images-idx3-ubyte: has 39215 bytes; its header promises 39216. Fetch it again",
        f"d: {tmp_path}/t10k-images-idx3-ubyte has 20 images, t10k-labels-idx1-ubyte 3 labels",
    ]


def test_a_gzip_file_that_was_cut_off(tmp_path: Path) -> None:
    files = mnist_files()
    name = "train-images-idx3-ubyte.gz"
    (problem,) = refused(write(tmp_path, {**files, name: files[name][:-500]}))
    assert problem.startswith(f"d: {tmp_path}/{name}: is cut off or no gzip file")


def test_gzipped_in_pieces(tmp_path: Path) -> None:
    name, plain = "train-images-idx3-ubyte", mnist_files(gz=False)["train-images-idx3-ubyte"]
    pieces = gzip.compress(plain[:100]) + gzip.compress(plain[100:])
    check_images(load(write(tmp_path, {**mnist_files(), f"{name}.gz": pieces})))


def test_in_an_object_store(s3: str) -> None:
    for gz in (True, False):
        root = join(s3, f"mnist {gz}")
        for path, data in mnist_files(gz).items():
            open_store(root).write(path, data)
        check_images(load(root))
