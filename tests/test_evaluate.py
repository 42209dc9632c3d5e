"""A row of the accuracy matrix, against one worked out by hand in two dimensions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from lada_ray.evaluate import (
    Evaluation,
    Row,
    TestSet,
    candidates,
    evaluate_row,
    load_tests,
    predict_examples,
)
from lada_ray.features.bank import FeatureBank
from lada_ray.features.text import text_key
from lada_ray.head import Prediction, make_head
from lada_ray.pack import Label, TaskPack
from lada_ray.store import open_store

# Directions in degrees. CLIP's own text features: a/x at 0, a/y at 90, b/x at 45.
OWN = {"a": [0, 90], "b": [45]}
# Test images: (direction, class).
IMAGES = {"a": [(5, 0), (42, 0), (85, 1)], "b": [(45, 0), (3, 0)]}
NAMES = {"a": ("x", "y"), "b": ("x",)}


def direction(degrees: float) -> list[float]:
    return [3 * float(np.cos(np.radians(degrees))), 3 * float(np.sin(np.radians(degrees)))]


def directions(*degrees: float) -> np.ndarray:
    return np.array([direction(d) for d in degrees], np.float32)


def pack_of(domain: str, text: list[float], memory: list[float], parent: str | None = None) -> TaskPack:
    tensors = {
        "text": directions(*text),
        "memory": directions(*memory)[:, None] / 3,
        "mask": np.ones((len(text), 1), np.uint8),
    }
    labels = [[domain, name] for name in NAMES[domain]]
    return TaskPack.build({"labels": labels, "config": {}, "samples": []}, parent, tensors)


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    bank = FeatureBank(open_store(tmp_path / "features"), "key", 2)
    tests = []
    for domain, images in IMAGES.items():
        shas = [f"{domain}{9 - i}" for i in range(len(images))]
        features = directions(*(d for d, _ in images))
        bank.table.enter([bank.write(shas, ["test"] * len(shas), features, "r")])
        prompts = tuple(f"{domain}/{name}" for name in NAMES[domain])
        bank.store.create(text_key(prompts), save({"text": directions(*OWN[domain])}))
        tests.append(
            TestSet(domain, NAMES[domain], prompts, tuple(shas), tuple(label for _, label in images))
        )
    return Evaluation(tuple(tests), bank, str(tmp_path / "model"), Prediction(10.0, 1.0, 5.0, "gated"))


def row(evaluation: Evaluation, *packs: TaskPack) -> Row:
    for pack in packs:
        pack.write(open_store(evaluation.model_uri))
    return evaluate_row(evaluation, [p.digest for p in packs], "name", load_tests(evaluation))


def test_zero_shot_by_hand(evaluation: Evaluation) -> None:
    # 42 degrees is nearest to b/x: the same class name in another domain is an error. 3 is nearest to a/x.
    found = row(evaluation)
    assert found == Row("name", {"a": [1, 1], "b": [1]}, {"a": [2, 1], "b": [2]})
    assert found.accuracy() == {"a": pytest.approx(200 / 3), "b": 50.0}


def test_a_learnt_text_feature_moves_the_gate(evaluation: Evaluation) -> None:
    # Learnt text of a/x at 40 degrees: 42 is taken for it now. The memories lie where the text is.
    found = row(evaluation, pack_of("a", [40, 90], [40, 90]))
    assert found.correct == {"a": [2, 1], "b": [1]}


def test_behind_the_gate_memory_decides(evaluation: Evaluation) -> None:
    # Text alone takes 42 degrees for b/x (45, unseen): the gate holds, whatever the memory of a/x says.
    learnt = pack_of("a", [0, 90], [42, 90])
    assert row(evaluation, learnt).correct == {"a": [1, 1], "b": [1]}
    additive = replace(evaluation, prediction=Prediction(1.0, 10.0, 5.0, "additive"))
    assert row(additive, learnt).correct == {"a": [2, 1], "b": [0]}
    # With both domains learnt there is no gate left; the memory of a/x at 42 outweighs the text of b/x.
    second = pack_of("b", [45], [100], learnt.digest)
    strong = replace(evaluation, prediction=Prediction(1.0, 10.0, 5.0, "gated"))
    assert row(strong, learnt, second).correct == {"a": [2, 1], "b": [0]}


def test_candidates_are_seen_ones_first(evaluation: Evaluation) -> None:
    pack = pack_of("b", [45], [45])
    labels, unseen = candidates(evaluation, make_head([pack], evaluation.prediction, 2))
    assert labels == [Label("b", "x"), Label("a", "x"), Label("a", "y")]
    np.testing.assert_allclose(unseen, directions(0, 90), atol=1e-6)
    labels, unseen = candidates(
        evaluation, make_head([pack, pack_of("a", [0, 1], [0, 1])], evaluation.prediction, 2)
    )
    assert (labels[0], unseen.shape) == (Label("b", "x"), (0, 2))


def test_a_label_learnt_in_part_is_seen(evaluation: Evaluation) -> None:
    part = pack_of("a", [0, 90], [0, 90])
    only_y = TaskPack.build(
        {"labels": [["a", "y"]], "config": {}, "samples": []},
        None,
        {n: t[1:] for n, t in part.tensors.items()},
    )
    labels, unseen = candidates(evaluation, make_head([only_y], evaluation.prediction, 2))
    assert labels == [Label("a", "y"), Label("a", "x"), Label("b", "x")]
    np.testing.assert_allclose(unseen, directions(0, 45), atol=1e-6)
    assert row(evaluation, only_y).correct == {"a": [1, 1], "b": [1]}


def test_classes_without_a_hit_or_an_image_count_zero(evaluation: Evaluation) -> None:
    a, b = evaluation.tests
    some = replace(evaluation, tests=(replace(a, shas=a.shas[:1], labels=a.labels[:1]), b))
    found = row(some)
    assert (found.correct["a"], found.total["a"]) == ([1, 0], [1, 0])
    assert found.accuracy()["a"] == 100.0


def test_rows_of_other_test_sets_have_another_digest(evaluation: Evaluation) -> None:
    a, b = evaluation.tests
    others = [
        evaluation,
        replace(evaluation, tests=(a,)),
        replace(evaluation, tests=(b, a)),
        replace(evaluation, tests=(replace(a, shas=a.shas[::-1]), b)),
        replace(evaluation, tests=(replace(a, prompts=("p", "q")), b)),
    ]
    assert len({e.digest for e in others}) == len(others)
    assert replace(evaluation, model_uri="/moved").digest == evaluation.digest


def test_examples_are_picked_by_content(evaluation: Evaluation) -> None:
    pack = pack_of("a", [40, 90], [40, 90])
    pack.write(open_store(evaluation.model_uri))
    examples = predict_examples(evaluation, [pack.digest], load_tests(evaluation), 2)
    # The last images have the smallest hashes.
    assert [(e["domain"], e["row"]) for e in examples] == [("a", 2), ("a", 1), ("b", 1), ("b", 0)]
    ax, ay, bx = Label("a", "x"), Label("a", "y"), Label("b", "x")
    assert [e["truth"] for e in examples] == [ay, ax, bx, bx]
    assert [e["zero_shot"] for e in examples] == [ay, bx, ax, bx]
    assert [e["predicted"] for e in examples] == [ay, ax, ax, bx]
