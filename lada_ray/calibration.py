"""What a pack's training images say about scores and outliers: a side file, outside of the pack and its digest.

    <model>/calibration/<pack digest>.safetensors
        outlier_means, outlier_directions, outlier_quantiles    see method/outliers.py
        temperatures, temperature_images                        T_seen and T_unseen, and images they were fitted to

`calibrate.py` makes the files; the same pack gives the same bytes. A model without them predicts as well: its scores
are then at temperature 1, and nothing can be said about outliers (`Calibration.problem`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lada_ray.errors import IntegrityError
from lada_ray.method.calibration import Temperature, shared_temperature
from lada_ray.store import Store

OUTLIERS = ("outlier_means", "outlier_directions", "outlier_quantiles")
NO_TEMPERATURE = Temperature(1.0, 0)
"""Of a side of the gate for which a learner has no logits that a temperature would fit."""


@dataclass(frozen=True)
class PackCalibration:
    """The calibration of one pack."""

    outliers: Mapping[str, npt.NDArray[Any]]
    """What `method.outliers.fit_outliers` returns."""
    seen: Temperature = NO_TEMPERATURE
    unseen: Temperature = NO_TEMPERATURE

    def to_bytes(self) -> bytes:
        """The bytes of its file."""
        from safetensors.numpy import save

        both = (self.seen, self.unseen)
        arrays = {
            **{name: np.ascontiguousarray(self.outliers[name]) for name in OUTLIERS},
            "temperatures": np.array([t.value for t in both], np.float64),
            "temperature_images": np.array([t.images for t in both], np.int64),
        }
        return save(arrays)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> PackCalibration:
        """Read a file found at `where`.

        Raises:
            IntegrityError: it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(data)
            pairs = zip(arrays["temperatures"].tolist(), arrays["temperature_images"].tolist(), strict=True)
            seen, unseen = (Temperature(value, images) for value, images in pairs)
            return cls({name: arrays[name] for name in OUTLIERS}, seen, unseen)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise IntegrityError(
                f"{where} is damaged: {error}; remove it, and start the job that learnt the model again to make it anew"
            ) from error


@dataclass(frozen=True)
class Calibration:
    """The calibration of a model: of each of its packs, in order; None where there is none."""

    packs: tuple[PackCalibration | None, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all packs are calibrated. If not, none counts: what one pack lacks would look like an outlier."""
        return None not in self.packs

    @property
    def temperatures(self) -> tuple[float, float]:
        """T_seen and T_unseen, shared by all packs; 1 where one is not calibrated."""
        if not self.complete:
            return 1.0, 1.0
        packs = [pack for pack in self.packs if pack]
        return (
            shared_temperature([pack.seen for pack in packs]),
            shared_temperature([pack.unseen for pack in packs]),
        )

    @property
    def outliers(self) -> list[Mapping[str, npt.NDArray[Any]]]:
        """The outlier tensors of every pack; [] where one is not calibrated."""
        return [pack.outliers for pack in self.packs if pack] if self.complete else []

    @property
    def problem(self) -> str:
        """What is missing, and what that means; "" if nothing is."""
        missing = sum(pack is None for pack in self.packs)
        if not missing:
            return ""
        return (
            f"{missing} of the model's {len(self.packs)} packs are not calibrated: scores are at temperature 1, and "
            "nothing tells outliers; start the job that learnt the model again, which makes what is missing"
        )

    @cached_property
    def digest(self) -> str:
        """Names the files, as predictions that were made with others differ."""
        data = [hashlib.sha256(pack.to_bytes() if pack else b"").hexdigest() for pack in self.packs]
        return hashlib.sha256("\n".join(data).encode()).hexdigest()


def calibration_key(digest: str) -> str:
    """Where, in a model's folder, the calibration of the pack with this digest lies."""
    return f"calibration/{digest}.safetensors"


def read_calibration(store: Store, digests: Iterable[str]) -> Calibration:
    """Read the calibration of a model's packs from its folder.

    Raises:
        IntegrityError: a file is damaged.
    """
    return Calibration(tuple(_read_pack(store, digest) for digest in digests))


def write_calibration(store: Store, digests: Sequence[str], calibration: Calibration) -> None:
    """Write what there is of it into a model's folder."""
    for digest, pack in zip(digests, calibration.packs, strict=True):
        if pack is not None:
            store.write(calibration_key(digest), pack.to_bytes())


def _read_pack(store: Store, digest: str) -> PackCalibration | None:
    key = calibration_key(digest)
    found = store.read_version(key)
    return PackCalibration.from_bytes(found[0], f"{store.uri}/{key}") if found else None
