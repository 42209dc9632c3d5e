"""Heads against plain NumPy: what each learner's packs make of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lada_ray.head import HEADS, Head, Prediction, make_head
from lada_ray.pack import Label, TaskPack

D = 6


def make_pack(labels: Sequence[tuple[str, str]], parent: str | None = None, seed: int = 0) -> TaskPack:
    rng = np.random.default_rng(seed)
    classes = len(labels)
    tensors = {
        "text": rng.normal(size=(classes, D)).astype(np.float32),
        "memory": rng.normal(size=(classes, 2, D)).astype(np.float32) / 3,
        "mask": rng.integers(0, 2, (classes, 2)).astype(np.uint8) | np.array([1, 0], np.uint8),
    }
    return TaskPack.build(
        {"labels": [list(label) for label in labels], "config": {}, "samples": []}, parent, tensors
    )


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def memory_of(pack: TaskPack, z: np.ndarray, beta: float) -> np.ndarray:
    """Σ_l exp(-β (1 - z·w_l)) over the vectors that exist, [N, C], a class at a time."""
    columns = []
    for vectors, mask in zip(pack.tensors["memory"], pack.tensors["mask"], strict=True):
        columns.append(np.exp(-beta * (1 - z @ vectors[mask == 1].T)).sum(axis=1))
    return np.stack(columns, axis=1)


X, Y, Z = ("a", "x"), ("a", "y"), ("b", "z")
PREDICTION = Prediction(tau=20.0, alpha=1.5, beta=2.0, fusion="gated")
RNG = np.random.default_rng(9)
FEATURES, UNSEEN = (RNG.normal(size=shape).astype(np.float32) for shape in [(40, D), (3, D)])


def test_logits_are_text_plus_memory() -> None:
    packs = [make_pack([X, Y]), make_pack([Z], seed=1)]
    z = unit(FEATURES)
    text = 20.0 * z @ unit(np.concatenate([packs[0].tensors["text"], packs[1].tensors["text"], UNSEEN])).T
    memory = np.concatenate([memory_of(pack, z, 2.0) for pack in packs], axis=1)
    head = make_head(packs, PREDICTION, D)
    assert head.labels == [Label(*X), Label(*Y), Label(*Z)]
    np.testing.assert_allclose(head.logits(FEATURES), text[:, :3] + 1.5 * memory, rtol=2e-5, atol=1e-5)
    both = head.logits(FEATURES, UNSEEN)
    assert (both.shape, both.dtype) == ((40, 6), np.float32)
    np.testing.assert_allclose(both[:, 3:], text[:, 3:], rtol=2e-5, atol=1e-5)

    gate, learnt = text.argmax(axis=1), (text[:, :3] + 1.5 * memory).argmax(axis=1)
    expected = np.where(gate < 3, learnt, gate)
    assert len({*expected.tolist()}) > 3
    assert head.predict(FEATURES, UNSEEN).tolist() == expected.tolist()
    additive = make_head(packs, replace(PREDICTION, fusion="additive"), D)
    assert additive.predict(FEATURES, UNSEEN).tolist() == both.argmax(axis=1).tolist()


def test_a_label_in_two_packs_has_the_better_memory_and_the_newest_text() -> None:
    old, new = make_pack([X, Y]), make_pack([Y, Z], seed=1)
    head = make_head([old, new], PREDICTION, D)
    assert head.labels == [Label(*X), Label(*Y), Label(*Z)]
    z = unit(FEATURES)
    first, second = memory_of(old, z, 2.0), memory_of(new, z, 2.0)
    memory = np.stack([first[:, 0], np.maximum(first[:, 1], second[:, 0]), second[:, 1]], axis=1)
    texts = np.stack([old.tensors["text"][0], new.tensors["text"][0], new.tensors["text"][1]])
    expected = 20.0 * z @ unit(texts).T + 1.5 * memory
    np.testing.assert_allclose(head.logits(FEATURES), expected, rtol=2e-5, atol=1e-5)


def test_temperatures_change_scores_by_side_of_the_gate_and_nothing_else() -> None:
    packs = [make_pack([X, Y]), make_pack([Z], seed=1)]
    plain, warm = (make_head(packs, PREDICTION, D, temperatures) for temperatures in ((1.0, 1.0), (2.0, 5.0)))
    logits = plain.logits(FEATURES, UNSEEN)
    chosen, scores = warm.predict_scored(FEATURES, UNSEEN)
    assert chosen.tolist() == plain.predict(FEATURES, UNSEEN).tolist()
    seen = chosen < 3
    assert seen.any()
    assert not seen.all()
    sure = np.where(seen, softmax(logits[:, :3] / 2).max(axis=1), softmax(logits[:, 3:] / 5).max(axis=1))
    np.testing.assert_allclose(scores, sure, rtol=1e-4)
    every = warm.scores(logits, chosen)
    np.testing.assert_allclose(every.sum(axis=1), 1, rtol=1e-5)
    assert not every[np.ix_(seen, [3, 4, 5])].any()
    # Without a gate all classes compete, at the first.
    additive = make_head(packs, replace(PREDICTION, fusion="additive"), D, (2.0, 5.0))
    np.testing.assert_allclose(
        additive.predict_scored(FEATURES, UNSEEN)[1], softmax(logits / 2).max(axis=1), rtol=1e-4
    )


def test_without_packs_it_is_zero_shot() -> None:
    head = make_head([], PREDICTION, D)
    expected = (unit(FEATURES) @ unit(UNSEEN).T).argmax(axis=1)
    assert head.predict(FEATURES, UNSEEN).tolist() == expected.tolist()
    assert head.logits(FEATURES, UNSEEN).shape == (40, 3)


# ---------------------------------------------------------------- rivals


def own_pack(
    labels: Sequence[tuple[str, str]], seed: int, method: dict[str, Any] | None = None, **tensors: np.ndarray
) -> TaskPack:
    """A pack of a learner that keeps these tensors beside the text, and says this of its method."""
    text = make_pack(labels, seed=seed).tensors["text"]
    floats: dict[str, Any] = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    config = {} if method is None else {"method": method}
    return TaskPack.build(
        {"labels": [list(label) for label in labels], "config": config, "samples": []},
        None,
        {"text": text, **floats},
    )


def head_of(kind: str, packs: Sequence[TaskPack], tau: float = 20.0) -> Head:
    head = make_head(packs, replace(PREDICTION, kind=kind, tau=tau), D)
    assert type(head) is HEADS[kind]
    return head


def text_logits(texts: Sequence[np.ndarray], tau: float = 20.0) -> np.ndarray:
    return tau * unit(FEATURES) @ unit(np.concatenate(texts)).T


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def mixed(text: np.ndarray, regression: np.ndarray, mix: float = 0.8) -> np.ndarray:
    """RAIL's prediction (rivals.md), a row at a time: 0.2 p + 0.8 of the regression where zero-shot says "seen"."""
    p, seen = softmax(text), regression.shape[1]
    for row, values in zip(p, regression, strict=True):
        if row.argmax() < seen:
            row *= 1 - mix
            row[:seen] += mix * values
    return p


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_zero_shot_with_packs_is_zero_shot() -> None:
    packs = [own_pack([X, Y], 0), own_pack([Z], 1)]
    head = head_of("zero_shot", packs)
    assert head.labels == [Label(*X), Label(*Y), Label(*Z)]
    expected = text_logits([packs[0].tensors["text"], packs[1].tensors["text"], UNSEEN])
    np.testing.assert_allclose(head.logits(FEATURES, UNSEEN), expected, rtol=2e-5, atol=1e-5)
    chosen, scores = head.predict_scored(FEATURES, UNSEEN)
    assert chosen.tolist() == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(scores, softmax(expected).max(axis=1), rtol=1e-4)


def test_nearest_mean_decides_behind_the_gate() -> None:
    packs = [
        own_pack([X, Y], 0, prototypes=unit(random(2, D, seed=5))),
        own_pack([Y, Z], 1, prototypes=unit(random(2, D, seed=6))),
    ]
    head = head_of("ncm", packs)
    first, second = (pack.tensors for pack in packs)
    # A label that stands in both has the newer mean, and the newer text.
    means = np.stack([first["prototypes"][0], *second["prototypes"]])
    text = text_logits([first["text"][:1], second["text"], UNSEEN])
    own = 20.0 * unit(FEATURES) @ means.T
    logits = head.logits(FEATURES, UNSEEN)
    np.testing.assert_allclose(logits, np.concatenate([own, text[:, 3:]], axis=1), rtol=2e-5, atol=1e-5)
    gate = text.argmax(axis=1)
    expected = np.where(gate < 3, own.argmax(axis=1), gate)
    assert min(gate) < 3 <= max(gate)
    assert expected.tolist() != logits.argmax(axis=1).tolist()  # the gate is worth something here
    chosen, scores = head.predict_scored(FEATURES, UNSEEN)
    assert chosen.tolist() == head.predict(FEATURES, UNSEEN).tolist() == expected.tolist()
    # Among the classes on the chosen side of the gate.
    sure = np.where(gate < 3, softmax(own).max(axis=1), softmax(text[:, 3:]).max(axis=1))
    np.testing.assert_allclose(scores, sure, rtol=1e-4)


def test_rail_primal_blends_its_regression_in() -> None:
    projection = random(D, 50, seed=7)
    old = own_pack([X, Y], 0, projection=projection, weights=random(50, 2, seed=8))
    new = own_pack([Z], 1, weights=random(50, 3, seed=9) / 20)
    text = text_logits([old.tensors["text"], new.tensors["text"], UNSEEN])
    regression = np.maximum(unit(FEATURES) @ projection, 0) @ new.tensors["weights"]
    check_rail(head_of("rail_primal", [old, new]), text, regression)
    # Without the newest pack its own solution holds.
    short = head_of("rail_primal", [old])
    regression = np.maximum(unit(FEATURES) @ projection, 0) @ old.tensors["weights"]
    check_rail(short, text_logits([old.tensors["text"], UNSEEN]), regression)


def test_rail_dual_blends_its_regression_in() -> None:
    features = [unit(random(4, D, seed=10)), unit(random(3, D, seed=11))]
    old = own_pack([X, Y], 0, features=features[0], coefficients=random(4, 2, seed=12))
    new = own_pack([Z], 1, features=features[1], coefficients=random(7, 3, seed=13))
    text = text_logits([old.tensors["text"], new.tensors["text"], UNSEEN])
    x = np.concatenate(features)
    distances = ((unit(FEATURES)[:, None] - x[None]) ** 2).sum(axis=2)
    regression = np.exp(-0.1 * distances) @ new.tensors["coefficients"]
    check_rail(head_of("rail_dual", [old, new]), text, regression)


def test_rail_predicts_with_the_constants_of_its_newest_pack() -> None:
    features = [unit(random(4, D, seed=10)), unit(random(3, D, seed=11))]
    then = {"kind": "rail_dual", "ridge": 1e-3, "gamma": 0.4, "mix": 0.6}
    tensors = [{"features": features[0], "coefficients": random(4, 2, seed=12)}]
    tensors += [{"features": features[1], "coefficients": random(7, 3, seed=13)}]
    old = own_pack([X, Y], 0, {**then, "gamma": 9.0, "mix": 0.1}, **tensors[0])
    new = own_pack([Z], 1, then, **tensors[1])
    text = text_logits([old.tensors["text"], new.tensors["text"], UNSEEN])
    distances = ((unit(FEATURES)[:, None] - np.concatenate(features)[None]) ** 2).sum(axis=2)
    regression = np.exp(-0.4 * distances) @ new.tensors["coefficients"]
    check_rail(head_of("rail_dual", [old, new]), text, regression, mix=0.6)


def check_rail(head: Head, text: np.ndarray, regression: np.ndarray, mix: float = 0.8) -> None:
    expected = mixed(text, regression, mix)
    np.testing.assert_allclose(head.logits(FEATURES, UNSEEN), expected, rtol=1e-4, atol=1e-5)
    chosen, scores = head.predict_scored(FEATURES, UNSEEN)
    assert chosen.tolist() == head.predict(FEATURES, UNSEEN).tolist() == expected.argmax(axis=1).tolist()
    seen = text.argmax(axis=1) < len(head.labels)
    assert seen.any()
    assert not seen.all()
    # Not what zero-shot says of the seen ones, and exactly that of the unseen ones.
    assert (chosen[seen] != text.argmax(axis=1)[seen]).any()
    assert (chosen[~seen] == text.argmax(axis=1)[~seen]).all()
    np.testing.assert_allclose(scores, expected.max(axis=1).clip(0, 1), rtol=1e-4, atol=1e-5)
    assert head.logits(FEATURES).shape == (40, len(head.labels))


@pytest.mark.parametrize("kind", HEADS)
def test_without_packs_every_learner_is_zero_shot(kind: str) -> None:
    head = head_of(kind, [])
    text = text_logits([UNSEEN])
    chosen, scores = head.predict_scored(FEATURES, UNSEEN)
    assert chosen.tolist() == text.argmax(axis=1).tolist()
    np.testing.assert_allclose(scores, softmax(text).max(axis=1), rtol=1e-4)
    expected = softmax(text) if kind.startswith("rail") else text
    np.testing.assert_allclose(head.logits(FEATURES, UNSEEN), expected, rtol=2e-5, atol=1e-5)
    assert head.labels == []
    assert head.predict(FEATURES[:0], UNSEEN).shape == (0,)


@pytest.mark.parametrize("kind", HEADS)
def test_features_of_another_encoder_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"features must be \[N, {D}\]"):
        head_of(kind, []).predict(FEATURES[:, 1:], UNSEEN)


def test_joint_predicts_as_lada_does() -> None:
    packs = [make_pack([X, Y, Z])]
    lada, joint = (make_head(packs, replace(PREDICTION, kind=kind), D) for kind in ("lada", "joint"))
    assert np.array_equal(lada.logits(FEATURES, UNSEEN), joint.logits(FEATURES, UNSEEN))
    assert lada.predict(FEATURES, UNSEEN).tolist() == joint.predict(FEATURES, UNSEEN).tolist()
