"""What a model knows of images: kept by content, read back as it was, less a class where one is forgotten."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lada_ray.errors import IntegrityError
from lada_ray.known import REST, SCHEMA, TEST, TRAIN, KnownDomain, read_known
from lada_ray.store import open_store

ROWS = [
    (TRAIN, 0, "train/cat/0.png", "a"),
    (TRAIN, 1, "train/dog/0.png", "b"),
    (TRAIN, 2, "train/fox/0.png", "c"),
    (TRAIN, 2, "train/fox/1.png", "d"),
    (TEST, 1, "test/dog/0.png", "e"),
    (TEST, 2, "test/fox/0.png", "f"),
    (REST, 0, "train/cat/9.png", "g"),
]
PETS = KnownDomain(
    "pets", ("cat", "dog", "fox"), ("a cat.", "a dog.", "a fox."), pd.DataFrame(ROWS, columns=SCHEMA.names)
)


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    key = PETS.write(store)
    read = read_known(store, key)
    assert (read.name, read.class_names, read.prompts, read.complete) == (
        "pets",
        PETS.class_names,
        PETS.prompts,
        True,
    )
    assert list(read.rows.itertuples(index=False, name=None)) == ROWS
    # Its key names all that stands in it, so that an audit can tell a changed one.
    assert read.key == key
    assert PETS.write(store) == key


def test_it_tells_training_and_test_images() -> None:
    assert PETS.trained == (("a", "b", "c", "d"), (0, 1, 2, 2))
    tests = PETS.tests
    assert (tests.shas, tests.labels, tests.paths) == (
        ("e", "f"),
        (1, 2),
        ("test/dog/0.png", "test/fox/0.png"),
    )
    assert PETS.images == {"cat": {"a", "g"}, "dog": {"b", "e"}, "fox": {"c", "d", "f"}}
    assert PETS.known.images == PETS.images


def test_without_a_class_the_labels_after_it_move_up() -> None:
    less = PETS.without("dog")
    assert (less.class_names, less.prompts) == (("cat", "fox"), ("a cat.", "a fox."))
    assert less.trained == (("a", "c", "d"), (0, 1, 1))
    assert (less.tests.shas, less.tests.labels) == (("f",), (1,))
    assert less.images == {"cat": {"a", "g"}, "fox": {"c", "d", "f"}}
    assert less.key != PETS.key


@pytest.mark.parametrize("damage", [b"", b"PAR1 no table", None])
def test_a_damaged_record_is_told(tmp_path: Path, damage: bytes | None) -> None:
    store = open_store(tmp_path)
    key = PETS.write(store)
    store.delete(key) if damage is None else store.write(key, damage)
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_known(store, key)
