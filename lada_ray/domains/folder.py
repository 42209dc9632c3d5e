"""Domains that are folders of images: train/<class>/* and test/<class>/*, or one level <class>/*."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from lada_ray.domains.base import Domain, DomainSpec, Location, Sample
from lada_ray.domains.check import domain_problems
from lada_ray.errors import InputError
from lada_ray.store import Entry, is_remote, join, open_store

HEADING = "The domains cannot be used"
EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
LAYOUTS = "expected train/<class>/* and test/<class>/*, or one level <class>/*"


class FolderSpec(DomainSpec):
    """A folder of images: train/<class>/* and test/<class>/*, or one <class>/* level that is split by a seed.

    Folders below a class's are read too. Hidden files are left out; files that are no images are listed.
    """

    path_fields: ClassVar[tuple[str, ...]] = ("root",)

    kind: Literal["folder"] = "folder"
    """folder"""
    root: Location
    """Folder, or s3:// or gs:// prefix, with the images; a relative one counts from data or the YAML's folder."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """With one <class>/* level: share of the images that is held out for testing."""
    split_seed: int = 0
    """With one <class>/* level: another seed holds out other images."""

    def load(self, storage: str) -> Domain:
        """List the folder; see `DomainSpec.load`."""
        return folder_domain(self, self.root, test_share=self.test_share, split_seed=self.split_seed)


@dataclass(frozen=True)
class Listing:
    """What lies under a folder: image files, and the paths of other files; in path order, keys relative."""

    images: tuple[Entry, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """An image with the folder name of its class and the part of the domain it belongs to."""

    entry: Entry
    folder: str
    test: bool


def list_images(root: str) -> Listing:
    """List all files under a root at once, hidden ones left out, told apart by extension.

    Args:
        root: local folder or object-store prefix.
    """
    images, others = [], []
    for entry in open_store(root).list():
        parts = entry.key.split("/")
        if any(part.startswith(".") for part in parts):
            continue
        if parts[-1].rpartition(".")[2].lower() in EXTENSIONS:
            images.append(entry)
        else:
            others.append(entry.key)
    return Listing(tuple(images), tuple(others))


def folder_domain(spec: DomainSpec, root: str, test_share: float = 0.2, split_seed: int = 0) -> Domain:
    """List a folder as a domain. Every kind that ends up with class folders can use it.

    Args:
        spec: gives name, renames, prompt, augmentation and epochs.
        root: the folder; classes are its class folders in alphabetical order.
        test_share: share of held-out images where there is no test/ folder, 0 to 1.
        split_seed: decides which.

    Raises:
        InputError: with every problem of this domain.
    """
    where = open_store(root).uri
    if not is_remote(where) and not Path(where).is_dir():
        raise InputError([f"{spec.name}: no folder {where}; {LAYOUTS}"], HEADING)
    listing = list_images(where)
    found, stray = _placed(listing.images, test_share, split_seed)
    if not found:
        raise InputError([_nothing_found(spec.name, where, listing)], HEADING)
    domain = _assembled(spec, where, found, tuple(sorted((*listing.others, *stray))))
    problems = [*spec.rename_problems({image.folder for image in found}), *_refusals(domain, listing.images)]
    if problems:
        raise InputError(problems, HEADING)
    return domain


def in_test(path: str, test_share: float, split_seed: int) -> bool:
    """Whether an image is held out for testing, by its path alone, so that adding images moves none."""
    digest = hashlib.sha256(f"{split_seed}\n{path}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < test_share


def _split_folders(images: Iterable[Entry]) -> dict[str, bool]:
    """Find the top-level folders that are parts of a split, and whether each is the test part; {}: no split.

    A class may be called "train" too (vehicles, say): its images lie one level higher than those of a split.
    """
    depths: dict[str, set[bool]] = {"train": set(), "test": set()}
    tops: dict[str, bool] = {}
    for image in images:
        top, *rest = image.key.split("/")
        if top.lower() in depths and rest:
            depths[top.lower()].add(len(rest) > 1)
            tops[top] = top.lower() == "test"
    both = all(True in depth for depth in depths.values())
    one = any(depth == {True} for depth in depths.values()) and not any(False in d for d in depths.values())
    return tops if both or one else {}


def _placed(images: Sequence[Entry], test_share: float, seed: int) -> tuple[list[_Found], list[str]]:
    """Give each image its class folder and part; images outside the layout are returned as paths."""
    split = _split_folders(images)
    found, stray = [], []
    for image in images:
        parts = image.key.split("/")
        if split and parts[0] in split and len(parts) > 2:
            found.append(_Found(image, parts[1], split[parts[0]]))
        elif not split and len(parts) > 1:
            found.append(_Found(image, parts[0], in_test(image.key, test_share, seed)))
        else:
            stray.append(image.key)
    return found, stray


def _assembled(spec: DomainSpec, root: str, found: Sequence[_Found], ignored: tuple[str, ...]) -> Domain:
    folders = sorted({image.folder for image in found})
    label = {folder: index for index, folder in enumerate(folders)}

    def samples(test: bool) -> tuple[Sample, ...]:
        return tuple(
            Sample(join(root, e.key), e.key, label[image.folder], e.size, e.version)
            for image in found
            if image.test is test
            for e in [image.entry]
        )

    names = tuple(spec.displayed(folder) for folder in folders)
    return Domain(
        spec.name, names, samples(False), samples(True), spec.prompt, spec.augment, spec.epochs, ignored
    )


def _refusals(domain: Domain, images: Sequence[Entry]) -> list[str]:
    """List the domain's problems, with what this layout can say about their cause."""
    lines = domain_problems(domain)
    if _split_folders(images):
        tested = {sample.label for sample in domain.test}
        without = [name for label, name in enumerate(domain.class_names) if label not in tested]
        if domain.test:
            lines += [f"{domain.name}: class {name!r} stands in train/ and not in test/" for name in without]
        return lines + _other_folders(domain, images)
    if any("training images" in line for line in lines):
        lines.append(
            f"{domain.name}: the split held out all images there; "
            "try a smaller test_share or another split_seed"
        )
    return lines


def _other_folders(domain: Domain, images: Sequence[Entry]) -> list[str]:
    """Name folders beside train/ when test/ is missing: a "val" is most likely meant to be it."""
    if domain.test and domain.train:
        return []
    split = _split_folders(images)
    others = sorted({e.key.split("/")[0] for e in images if "/" in e.key} - split.keys())
    return (
        [f"{domain.name}: beside {', '.join(sorted(split))} there is {', '.join(others)}; {LAYOUTS}"]
        if others
        else []
    )


def _nothing_found(name: str, where: str, listing: Listing) -> str:
    if listing.images:
        return f"{name}: {len(listing.images)} images in {where}, none of them in a class folder; {LAYOUTS}"
    if listing.others:
        return (
            f"{name}: {len(listing.others)} files in {where}, none an image ({', '.join(sorted(EXTENSIONS))})"
        )
    return f"{name}: no images in {where}; {LAYOUTS}"
