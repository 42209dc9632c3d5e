"""Issue 5's bar on forgetting, on real images: exact where it learns again, without effect elsewhere where not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from torch import tensor

from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.features.bank import FeatureBank, banks
from lada_ray.forget import Subject, forget
from lada_ray.gate import Limits
from lada_ray.known import read_known
from lada_ray.model import LadaModel
from lada_ray.production import Settings
from lada_ray.store import open_store
from lada_ray.stream import run_stream
from lada_ray.versions import read_production
from tests.accept.conftest import show

LEARNT = ("pacs_sketch", "dtd", "rsscn7_satellite", "mnist")
UNSEEN = ("a photo of a lamp.", "a photo of a menorah.", "a photo of a packet of milk.")
FORGOTTEN = "dtd"
QUIET = Console(quiet=True)
LAX = Limits(max_drop=100)


def learn(base: Path, storage: Path, name: str, names: tuple[str, ...]) -> Path:
    """Learn some of the six domains with few epochs; returns the run's folder."""
    six = StreamConfig.from_yaml(base)
    domains = {spec.name: spec for spec in six.domains}
    small = {"name": name, "storage": str(storage), "shots": 16, "views": 1, "method.epochs": 3}
    more = {**small, "resources.train_workers": 0, "tracking.uri": f"sqlite:///{storage}/mlflow.db"}
    config = StreamConfig.from_yaml(base, overrides=more)
    config = config.model_copy(update={"domains": tuple(domains[one] for one in names)})
    return Path(run_stream(config, console=QUIET).folder)


@pytest.fixture(scope="module")
def learnt(six_domains: Path, tmp_path_factory: pytest.TempPathFactory, streams: Any) -> Path:
    """A storage with a model of four domains; not to be changed."""
    storage = tmp_path_factory.mktemp("forget")
    learn(six_domains, storage, "lada", LEARNT)
    return storage


@pytest.fixture
def storage(learnt: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learnt, tmp_path / "storage"))


def settings(storage: Path) -> Settings:
    more = {"resources": {"train_workers": 0}, "tracking": {"uri": f"sqlite:///{storage}/mlflow.db"}}
    return Settings.model_validate({"model": "lada", "storage": str(storage), **more})


def features_of(storage: Path) -> np.ndarray:
    """Features of all test images that the model knows, [n, d]."""
    config = settings(storage)
    file = read_production(config.store.child("model"))[0]
    known = [read_known(config.store, entry.key) for entry in config.store.list("domains")]
    features = open_store(storage / "features")
    bank = FeatureBank.open(features, next(key for key, _ in banks(features)))
    assert len(known) == len(file.packs)
    return bank.fetch([sha for one in known for sha in one.tests.shas], ["test"])[:, 0]


def asked(model: LadaModel, features: np.ndarray, unseen: np.ndarray) -> tuple[list[Any], list[Any]]:
    """The gate's class and the final class of each image, by name."""
    names = [*model.class_names, *UNSEEN]
    text = np.concatenate([model.head.text, unseen])
    gate = (F.normalize(tensor(features), dim=-1) @ F.normalize(tensor(text), dim=-1).T).argmax(1).tolist()
    final = model.predict_features(features, unseen).tolist()
    return [names[i] for i in gate], [names[i] for i in final]


@pytest.mark.timeout(1800)
def test_learning_again_is_exact(learnt: Path, storage: Path, six_domains: Path) -> None:
    never = learn(six_domains, learnt, "never", tuple(name for name in LEARNT if name != FORGOTTEN))
    done = forget(settings(storage), Subject(FORGOTTEN), relearn=True, limits=LAX, console=QUIET)
    assert done.finished
    ours, theirs = storage / "lada" / "model" / "packs", never / "model" / "packs"
    files = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    same = [path for path in files if (ours / path).read_bytes() == (theirs / path).read_bytes()]
    show(
        "forget --relearn",
        f"{len(same)} of {len(files)} files of packs are those of the stream",
        "all, byte by byte",
    )
    assert same == files
    assert sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file()) == files


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("class_name", [None, "banded texture"])
def test_forgetting_changes_no_other_prediction(storage: Path, class_name: str | None) -> None:
    subject = Subject(FORGOTTEN, class_name)
    features, before = features_of(storage), LadaModel.load(storage / "lada" / "model")
    unseen = before.encoder.encode_text(UNSEEN)
    gate, final = asked(before, features, unseen)
    assert forget(settings(storage), subject, limits=LAX, console=QUIET).finished
    after = LadaModel.load(storage / "lada" / "model")
    new_gate, new_final = asked(after, features, unseen)

    def gone(label: Any) -> bool:
        return not isinstance(label, str) and subject.in_labels([label])

    others = [i for i in range(len(features)) if not gone(gate[i]) and not gone(final[i])]
    same = sum((gate[i], final[i]) == (new_gate[i], new_final[i]) for i in others)
    sides = {isinstance(final[i], str) for i in others}
    show(f"forget {subject.said}", f"{same} of {len(others)} other predictions are unchanged", "all")
    assert same == len(others) > len(features) / 4
    assert sides == {True, False}
    assert not any(subject.in_labels([label]) for label in after.class_names)
