"""Taking a version along as a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lada_ray.errors import InputError
from lada_ray.export import export
from lada_ray.model import LadaModel
from lada_ray.production import Settings


@pytest.fixture
def settings(two_versions: Path) -> Settings:
    return Settings(model="lada", storage=str(two_versions))


def test_the_champion_or_any_version_is_written(settings: Settings, tmp_path: Path) -> None:
    champion = LadaModel.load(export(settings, str(tmp_path / "champion")))
    first = LadaModel.load(export(settings, str(tmp_path / "first"), 1))
    assert champion.domains == ["fruit", "flags"]
    assert first.domains == ["fruit", "flags", "toys"]
    for model in (champion, first):
        assert model.file.history == ()
        assert model.calibration.complete
    original = LadaModel.load(settings.store.child("model").uri)
    features = np.random.default_rng(0).normal(size=(8, original.packs[0].tensors["text"].shape[1]))
    logits = [m.head.logits(features.astype(np.float32)) for m in (original, champion)]
    assert np.array_equal(*map(np.asarray, logits))


def test_nothing_is_overwritten(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match=r"mine is not empty: name a new folder"):
        export(settings, str(tmp_path / "mine"))
    with pytest.raises(InputError, match=r"no version 9 \(versions: 1 to 2\)"):
        export(settings, str(tmp_path / "new"), 9)
    assert not (tmp_path / "new").exists()
