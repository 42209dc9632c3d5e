"""From rows that say which image has which label to a domain: what all kinds that read lists have in common."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lada_ray.domains.base import Domain, DomainSpec, Sample
from lada_ray.domains.check import domain_problems
from lada_ray.errors import InputError
from lada_ray.store import Entry, Store, is_remote, join

HEADING = "The domains cannot be used"
SHOWN = 3
"""How many of many missing things a message names."""

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Row:
    """One line of a list: an image by its path relative to the domain's root, and its class as it is stored."""

    path: str
    stored: str
    split: Split


def listed_domain(
    spec: DomainSpec,
    classes: Sequence[str],
    samples: Mapping[Split, Sequence[Sample]],
    problems: Sequence[str],
) -> Domain:
    """Make a domain of listed samples.

    Args:
        spec: gives name, renames, prompt, augmentation and epochs.
        classes: names as stored; samples' labels index them.
        samples: of each split, in any order; one that stands in it twice is taken once.
        problems: found so far.

    Raises:
        InputError: with these problems and those of the domain made.
    """
    names = tuple(spec.displayed(name) for name in classes)
    train, test = (
        tuple(sorted({s.path: s for s in samples.get(split, ())}.values(), key=lambda s: s.path))
        for split in ("train", "test")
    )
    domain = Domain(spec.name, names, train, test, spec.prompt, spec.augment, spec.epochs)
    found = [*problems, *spec.rename_problems(classes)]
    # What is wrong with the lists would be said once more, as classes without images.
    found = found or domain_problems(domain)
    if found:
        raise InputError(found, HEADING)
    return domain


def files_as_samples(
    name: str, root: str, rows: Sequence[Row], classes: Sequence[str], entries: Mapping[str, Entry]
) -> tuple[dict[Split, list[Sample]], list[str]]:
    """Find the files that a list names.

    Args:
        name: of the domain, for messages.
        root: the domain's, from which the rows' paths count.
        rows: the list.
        classes: all classes as stored, in order of their labels.
        entries: the files that are there, by path.

    Returns:
        Samples by split; and problems: files that are not there, paths with two classes.
    """
    label = {stored: index for index, stored in enumerate(classes)}
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for row in rows:
        if (entry := entries.get(row.path)) is not None:
            sample = Sample(join(root, row.path), row.path, label[row.stored], entry.size, entry.version)
            samples[row.split].append(sample)
    paths = dict.fromkeys(row.path for row in rows)
    missing = [path for path in paths if path not in entries]
    return samples, [*missing_files(name, root, missing, len(paths)), *two_classes(name, rows)]


def missing_files(name: str, root: str, missing: Sequence[str], total: int) -> list[str]:
    """One line about files that a list names and that are not there; none if nothing is missing."""
    if not missing:
        return []
    if len(missing) == total:
        folders = sorted({join(root, *path.split("/")[:1]) if "/" in path else root for path in missing})
        return [f"{name}: none of the {total} listed images is there; they belong into {some(folders)}"]
    return [f"{name}: {len(missing)} of {total} listed images are not in {root}: {some(missing)}"]


def entries_of(store: Store, paths: Iterable[str]) -> dict[str, Entry]:
    """List the top folders that paths lie in, and nothing else of what may lie beside them; by path."""
    tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
    return {entry.key: entry for top in sorted(tops) for entry in store.list(top)}


def two_classes(name: str, rows: Iterable[Row]) -> list[str]:
    """One line about images that are listed under two classes; none if there are none."""
    stored: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        stored[row.path].add(row.stored)
    torn = [f"{path} ({' and '.join(sorted(names))})" for path, names in stored.items() if len(names) > 1]
    return [f"{name}: {len(torn)} images are listed under two classes: {some(torn)}"] if torn else []


def some(things: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return ", ".join(things[:SHOWN]) + more


def check_root(name: str, store: Store, expected: str) -> None:
    """Refuse a root that is not there (a prefix in an object store is there if anything is in it).

    Args:
        name: of the domain, for messages.
        store: the root's.
        expected: what belongs there.

    Raises:
        InputError: says where it was looked for.
    """
    if not is_remote(store.uri) and not Path(store.uri).is_dir():
        raise InputError([f"{name}: no folder {store.uri}; expected {expected}"], HEADING)


def read_listed(store: Store, key: str, name: str, expected: str) -> str:
    """Read a list of the domain as text.

    Raises:
        InputError: it is not there, or is no UTF-8; names the nearest file of that folder.
    """
    try:
        return store.read(key).decode("utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(key, top_names(store), n=1, cutoff=0.5)
        found = f" (the nearest there is {near[0]})" if near else ""
        problem = f"{name}: no {key} in {store.uri}{found}; expected {expected}"
    except UnicodeDecodeError as error:
        problem = f"{name}: {join(store.uri, key)} is no UTF-8 text ({error.reason} at byte {error.start})"
    raise InputError([problem], HEADING)


def top_names(store: Store) -> list[str]:
    """Names of files and folders directly in a local folder; [] for an object store, which would list all."""
    if is_remote(store.uri):
        return []
    folder = Path(store.uri)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def in_order(stored: Iterable[str]) -> list[str]:
    """Class names in the order of labels: by number if all are numbers, else alphabetically."""
    names = set(stored)
    numbers = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)
