"""FGVC-Aircraft in its own layout: images/*.jpg, and lists of the images and variants of each split.

variants.txt has a class name per line, images_variant_train.txt lines such as "1025794 707-320".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from lada_ray.domains.base import Domain, DomainSpec, Location
from lada_ray.domains.listed import (
    HEADING,
    Row,
    Split,
    check_root,
    entries_of,
    files_as_samples,
    listed_domain,
    read_listed,
    some,
)
from lada_ray.errors import InputError
from lada_ray.store import Store, is_remote, join, open_store

VARIANTS = "variants.txt"
LAYOUT = "the archive's data/: images/, variants.txt and images_variant_{train,val,test}.txt"


class AircraftSpec(DomainSpec):
    """FGVC-Aircraft: the folder data/ of its archive.

    As in CoOp, RAIL and LADA, shots come from the list "train", and "val" is not used.
    """

    path_fields: ClassVar[tuple[str, ...]] = ("root",)

    kind: Literal["aircraft"] = "aircraft"
    """aircraft"""
    root: Location
    """That folder, or s3:// or gs:// prefix; a relative one counts from data or the YAML's folder."""
    use_val: bool = False
    """Train on the images of images_variant_val.txt too."""

    def load(self, storage: str) -> Domain:
        """Read the lists and list the images; see `DomainSpec.load`."""
        store = open_store(self.root)
        check_root(self.name, store, LAYOUT)
        _check_level(self.name, store)
        lists: list[tuple[Split, str]] = [("train", "train"), ("test", "test")]
        if self.use_val:
            lists.insert(1, ("train", "val"))
        classes, rows, problems = _read_lists(self.name, store, lists)
        entries = entries_of(store, ["images/"])
        samples, more = files_as_samples(self.name, store.uri, rows, classes, entries)
        return listed_domain(self, classes, samples, [*problems, *more])


def _check_level(name: str, store: Store) -> None:
    """Refuse a root one level too high, saying so."""
    below = [
        folder for folder in ("data", "fgvc-aircraft-2013b/data") if store.exists(f"{folder}/{VARIANTS}")
    ]
    if below and not store.exists(VARIANTS):
        where = join(store.uri, below[0])
        raise InputError(
            [f"{name}: {VARIANTS} is not in {store.uri} but in {where}: that is the root"], HEADING
        )


def _read_lists(
    name: str, store: Store, lists: Sequence[tuple[Split, str]]
) -> tuple[list[str], list[Row], list[str]]:
    """Read variants and the lists of images; missing lists are all named at once."""
    texts: dict[str, str] = {}
    problems: list[str] = []
    for key in (VARIANTS, *(f"images_variant_{part}.txt" for _, part in lists)):
        try:
            texts[key] = read_listed(store, key, name, LAYOUT)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError([*problems, *_images_missing(name, store)], HEADING)
    classes = [line.strip() for line in texts[VARIANTS].splitlines() if line.strip()]
    known, rows = set(classes), []
    for split, part in lists:
        key = f"images_variant_{part}.txt"
        found = [line.strip().partition(" ") for line in texts[key].splitlines() if line.strip()]
        unknown = [
            f"{variant!r}" for variant in dict.fromkeys(v.strip() for *_, v in found) if variant not in known
        ]
        if unknown:
            problems.append(f"{name}: {key} has variants that {VARIANTS} has not: {some(unknown)}")
        rows += [Row(f"images/{image}.jpg", v.strip(), split) for image, _, v in found if v.strip() in known]
    return classes, rows, problems


def _images_missing(name: str, store: Store) -> list[str]:
    there = is_remote(store.uri) or Path(store.uri, "images").is_dir()
    return [] if there else [f"{name}: no folder {join(store.uri, 'images')}"]
