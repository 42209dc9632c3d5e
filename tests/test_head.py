"""Heads against plain NumPy: what each learner's packs make of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lada_ray.head import Prediction, make_head
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


def test_without_packs_it_is_zero_shot() -> None:
    head = make_head([], PREDICTION, D)
    expected = (unit(FEATURES) @ unit(UNSEEN).T).argmax(axis=1)
    assert head.predict(FEATURES, UNSEEN).tolist() == expected.tolist()
    assert head.logits(FEATURES, UNSEEN).shape == (40, 3)
