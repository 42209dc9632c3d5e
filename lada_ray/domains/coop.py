"""Domains in CoOp's layout: a folder of images, and a split_zhou_*.json that says which are for training and testing.

{"train": [["face/image_0001.jpg", 0, "face"], ...], "val": [...], "test": [...]}, paths relative to the image folder
(KaiyangZhou/CoOp, datasets/oxford_pets.py: read_split).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

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
    top_names,
)
from lada_ray.errors import InputError
from lada_ray.store import Store, join, open_store

IMAGES = {
    "split_zhou_Caltech101.json": "101_ObjectCategories",
    "split_zhou_DescribableTextures.json": "images",
    "split_zhou_EuroSAT.json": "2750",
    "split_zhou_Food101.json": "images",
    "split_zhou_OxfordFlowers.json": "jpg",
    "split_zhou_OxfordPets.json": "images",
    "split_zhou_StanfordCars.json": "",
    "split_zhou_SUN397.json": "SUN397",
    "split_zhou_UCF101.json": "UCF-101-midframes",
}
"""CoOp's image folder of each dataset; "": the paths begin with it (cars_train/00001.jpg)."""
LAYOUT = "split_zhou_*.json beside the image folder, as in CoOp's DATASETS.md"


class CoopSpec(DomainSpec):
    """A dataset in CoOp's layout: images, and a JSON file that splits them.

    As in CoOp, RAIL and LADA, shots come from its "train" part, and "val" is not used.
    """

    path_fields: ClassVar[tuple[str, ...]] = ("root",)

    kind: Literal["coop"] = "coop"
    """coop"""
    root: Location
    """The dataset's folder, or s3:// or gs:// prefix; a relative one counts from data or the YAML's folder."""
    split_file: str | None = None
    """Its split file (null: the split_zhou_*.json that is there)."""
    images: str | None = None
    """Folder, relative to root, from which the split's paths count (null: CoOp's for this split file)."""
    use_val: bool = False
    """Train on the split's "val" images too."""

    def load(self, storage: str) -> Domain:
        """Read the split and list the image folder; see `DomainSpec.load`."""
        store = open_store(self.root)
        check_root(self.name, store, LAYOUT)
        split_file = self.split_file or _only_split(self.name, store)
        split = _read_split(self.name, store, split_file)
        folder = self.images if self.images is not None else IMAGES.get(split_file, "")
        classes, problems = _classes(self.name, split)
        rows = list(_rows(split, folder.strip("/"), self.use_val))
        entries = entries_of(store, (row.path for row in rows))
        samples, more = files_as_samples(self.name, store.uri, rows, classes, entries)
        return listed_domain(self, classes, samples, [*problems, *more])


Item = tuple[str, int, str]
"""Path, label, class name."""


def _only_split(name: str, store: Store) -> str:
    """The one split file in a root; an object store is asked for CoOp's names, as listing it would list all images."""
    there = [file for file in IMAGES if store.exists(file)]
    there += [
        f for f in top_names(store) if f.startswith("split_") and f.endswith(".json") and f not in there
    ]
    if len(there) == 1:
        return there[0]
    if there:
        raise InputError(
            [f"{name}: {', '.join(there)} are in {store.uri}; say which with split_file"], HEADING
        )
    found = f" (there is {some(names)})" if (names := top_names(store)) else ""
    raise InputError([f"{name}: no split_zhou_*.json in {store.uri}{found}; expected {LAYOUT}"], HEADING)


def _read_split(name: str, store: Store, split_file: str) -> dict[str, list[Item]]:
    """Read and check a split file; "val" may be absent."""
    where = join(store.uri, split_file)
    text = read_listed(store, split_file, name, LAYOUT)
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError([f"{name}: {where} is no JSON ({error}); fetch it again"], HEADING) from None
    parts = raw if isinstance(raw, dict) else {}
    absent = [part for part in ("train", "test") if not isinstance(parts.get(part), list)]
    if absent:
        problem = (
            f"{name}: {where} has no list {' and no list '.join(map(repr, absent))}; it is no CoOp split"
        )
        raise InputError([problem], HEADING)
    items = {part: parts.get(part) or [] for part in ("train", "val", "test")}
    wrong = [json.dumps(item) for part in items.values() for item in part if not _is_item(item)]
    if wrong:
        problem = f"{name}: {where} has entries that are not [path, label, class name]: {some(wrong)}"
        raise InputError([problem], HEADING)
    return items


def _is_item(item: Any) -> bool:
    return isinstance(item, list) and [type(value) for value in item] == [str, int, str]


def _classes(name: str, split: dict[str, list[Item]]) -> tuple[list[str], list[str]]:
    """Class names in order of their labels, and problems: labels with several names, names with several labels."""
    names: dict[int, set[str]] = defaultdict(set)
    labels: dict[str, set[int]] = defaultdict(set)
    for items in split.values():
        for _, label, class_name in items:
            names[label].add(class_name)
            labels[class_name].add(label)
    problems = [
        f"{name}: the split calls label {label} {' and '.join(map(repr, sorted(found)))}"
        for label, found in sorted(names.items())
        if len(found) > 1
    ]
    problems += [
        f"{name}: the split gives {class_name!r} the labels {' and '.join(map(str, sorted(found)))}"
        for class_name, found in sorted(labels.items())
        if len(found) > 1
    ]
    return sorted(labels, key=lambda class_name: min(labels[class_name])), problems


def _rows(split: dict[str, list[Item]], folder: str, use_val: bool) -> Iterable[Row]:
    of: list[tuple[Split, Sequence[Item]]] = [("train", split["train"]), ("test", split["test"])]
    if use_val:
        of.insert(1, ("train", split["val"]))
    for part, items in of:
        for path, _, class_name in items:
            yield Row(f"{folder}/{path}" if folder else path, class_name, part)
