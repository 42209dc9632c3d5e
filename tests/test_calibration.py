"""The side files of packs: read as they were written, all or nothing, and never silently missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lada_ray.calibration import (
    Calibration,
    PackCalibration,
    calibration_key,
    read_calibration,
    write_calibration,
)
from lada_ray.errors import IntegrityError
from lada_ray.method.calibration import Temperature
from lada_ray.store import open_store


def pack(seen: float, unseen: float, images: int) -> PackCalibration:
    outliers = {
        "outlier_means": np.eye(3, dtype=np.float32) * seen,
        "outlier_directions": np.ones((1, 3), np.float32),
        "outlier_quantiles": np.linspace(0, 1, 101, dtype=np.float32),
    }
    return PackCalibration(outliers, Temperature(seen, images), Temperature(unseen, 2 * images))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store, written = open_store(tmp_path), Calibration((pack(1.0, 2.0, 100), pack(8.0, 2.0, 50)))
    write_calibration(store, ["a", "b"], written)
    found = read_calibration(store, ["a", "b"])
    assert found.complete
    assert found.problem == ""
    assert found.digest == written.digest
    assert found.temperatures == pytest.approx((2.0, 2.0))
    for mine, theirs in zip(found.outliers, written.outliers, strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def test_one_missing_pack_leaves_none_that_counts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_calibration(store, ["a", "b"], Calibration((pack(5.0, 2.0, 100), None)))
    found = read_calibration(store, ["a", "b"])
    assert (found.temperatures, found.outliers, found.complete) == ((1.0, 1.0), [], False)
    assert found.problem.startswith("1 of the model's 2 packs are not calibrated")
    assert found.digest != read_calibration(store, ["a"]).digest


def test_nothing_learnt_needs_nothing(tmp_path: Path) -> None:
    found = read_calibration(open_store(tmp_path), [])
    assert (found.temperatures, found.problem, found.outliers) == ((1.0, 1.0), "", [])


@pytest.mark.parametrize("data", [b"", b"rubble", pack(1, 1, 1).to_bytes()[:-5]])
def test_a_damaged_file_is_told(tmp_path: Path, data: bytes) -> None:
    open_store(tmp_path).write(calibration_key("a"), data)
    with pytest.raises(IntegrityError, match=r"calibration/a.safetensors is damaged.*remove it"):
        read_calibration(open_store(tmp_path), ["a"])
