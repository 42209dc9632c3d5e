"""A model's packs without a class: its rows gone, everything else as it was; what cannot be taken apart is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lada_ray.console import Console
from lada_ray.errors import InputError, LadaError
from lada_ray.forget import packs as module
from lada_ray.forget.packs import Remains, remains_of, take_out
from lada_ray.forget.subject import Subject, packs_of
from lada_ray.known import SCHEMA, TRAIN, KnownDomain
from lada_ray.pack import TaskPack
from lada_ray.store import open_store

D = 4
STREAM: Any = None
"""What calibrates the packs, which is another test's business."""
CLASSES = [("pets", ("cat", "dog")), ("wild", ("wolf",)), ("pets", ("dog",))]
"""The third task brought more images of a class that the first one learnt."""


def record(task: int) -> KnownDomain:
    name, classes = CLASSES[task]
    rows = [(TRAIN, label, f"{task}/{c}", f"sha {task} {c}") for label, c in enumerate(classes)]
    return KnownDomain(name, classes, tuple(classes), pd.DataFrame(rows, columns=SCHEMA.names))


def tensors(task: int) -> dict[str, Any]:
    rng, n = np.random.default_rng(task), len(CLASSES[task][1])
    return {
        "text": rng.normal(size=(n, D)).astype(np.float32),
        "memory": rng.normal(size=(n, 2, D)).astype(np.float32),
        "mask": np.ones((n, 2), np.uint8),
        # Two components of each class, the last class's first.
        "means": rng.normal(size=(2 * n, D)).astype(np.float32),
        "variances": rng.uniform(size=2 * n).astype(np.float32),
        "weights": rng.uniform(size=2 * n).astype(np.float32),
        "labels": np.repeat(np.arange(n)[::-1], 2).astype(np.int64),
    }


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[TaskPack], list[KnownDomain]]:
    """A production model of three tasks, as far as its packs are asked for."""
    store = open_store(tmp_path)
    known, packs = [record(i) for i in range(3)], []
    for i, one in enumerate(known):
        samples = [[path, sha] for path, sha in zip(one.rows["path"], one.rows["sha256"], strict=True)]
        labels = [[one.name, c] for c in one.class_names]
        identity = {"labels": labels, "config": {"prompt": "{}"}, "samples": samples}
        packs.append(TaskPack.build(identity, packs[-1].digest if packs else None, tensors(i)))
        packs[-1].write(store.child("model"))
    config = SimpleNamespace(method=SimpleNamespace(kind="lada"))
    run = SimpleNamespace(model_store=store.child("model"))
    monkeypatch.setattr(module, "_calibrate", lambda *arguments: None)
    production = SimpleNamespace(config=config, run=run, store=store, console=Console(quiet=True))
    return production, packs, known


def remains(made: Any, subject: Subject) -> Remains:
    production, packs, known = made
    return remains_of(subject, [pack.digest for pack in packs], known, production)


def read(production: Any, digests: tuple[str, ...]) -> list[TaskPack]:
    return [TaskPack.read(production.run.model_store, digest) for digest in digests]


def test_a_class_goes_from_every_pack_that_has_it(made: Any) -> None:
    production, old, _ = made
    dog = Subject("pets", "dog")
    left = remains(made, dog)
    assert (left.untouched, left.packs, left.beside) == (0, (old[0].digest, old[1].digest), ("wild",))
    assert [one.class_names for one in left.known] == [("cat",), ("wolf",)]
    pets, wild = read(production, take_out(production, STREAM, dog, left))
    assert (pets.parent, wild.parent) == (None, pets.digest)
    assert [label.name for label in pets.labels] == ["cat"]
    assert pets.meta["samples"] == [["0/cat", "sha 0 cat"]]
    assert np.array_equal(pets.tensors["text"], old[0].tensors["text"][:1])
    # The class's components stood last.
    assert np.array_equal(pets.tensors["means"], old[0].tensors["means"][2:])
    assert pets.tensors["labels"].tolist() == [0, 0]
    assert all(np.array_equal(wild.tensors[name], array) for name, array in old[1].tensors.items())
    kept = {pets.digest, wild.digest}
    assert packs_of(dog, production.run.model_store, kept) == {pack.digest for pack in old}


def test_a_domain_goes_with_all_its_tasks_and_what_was_before_stays(made: Any) -> None:
    production, old, _ = made
    left = remains(made, Subject("wild"))
    assert (left.untouched, left.beside) == (1, ("pets",))
    first, second = take_out(production, STREAM, Subject("wild"), left)
    assert first == old[0].digest
    assert TaskPack.read(production.run.model_store, second).parent == first
    # Both packs of the domain, though another one stands between them.
    assert remains(made, Subject("pets")).packs == (old[1].digest,)
    assert packs_of(Subject("wild"), production.run.model_store, {first, second}) == {
        old[1].digest,
        old[2].digest,
    }


def test_one_solution_for_all_classes_cannot_lose_one(made: Any) -> None:
    production, old, _ = made
    production.config.method.kind = "rail_primal"
    with pytest.raises(InputError, match="give --relearn"):
        take_out(production, STREAM, Subject("wild"), remains(made, Subject("wild")))
    # What was learnt last can: the pack before it holds the solution without it.
    production.config.method.kind = "rail_dual"
    last = Remains(2, (old[0].digest, old[1].digest), (), ({}, {}), ())
    assert take_out(production, STREAM, Subject("last"), last) == (old[0].digest, old[1].digest)


def test_rows_of_a_tensor_that_nobody_knows_are_not_guessed(made: Any) -> None:
    production, old, known = made
    strange = old[0].rebuilt(None, tensors={**old[0].tensors, "strange": np.zeros(2, np.float32)})
    strange.write(production.run.model_store)
    dog = Subject("pets", "dog")
    left = remains_of(dog, [strange.digest], known[:1], production)
    with pytest.raises(LadaError, match="which rows of strange"):
        take_out(production, STREAM, dog, left)


def test_half_a_pack_is_taken_for_rubble(made: Any) -> None:
    production, old, _ = made
    production.run.model_store.delete(f"packs/{old[2].digest}/pack.json")
    assert packs_of(Subject("nobody"), production.run.model_store, set()) == {old[2].digest}


def test_a_record_that_is_not_the_packs_own_is_refused(made: Any) -> None:
    production, packs, known = made
    known[0].rows.loc[0, "sha256"] = "other"
    with pytest.raises(LadaError, match="not those that are known of it"):
        remains_of(Subject("pets", "dog"), [p.digest for p in packs], known, production)
