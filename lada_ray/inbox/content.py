"""Telling by their content whether images are known: whatever their names, folders and splits are now."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lada_ray.domains import Domain
from lada_ray.errors import InputError
from lada_ray.inbox.card import Arrival


@dataclass(frozen=True)
class Known:
    """What a model learnt in one task; a domain that was extended has several.

    Attributes:
        name: of the domain.
        class_names: as displayed.
        images: SHA-256s of all images by class, training and test; {} where they are not known.
        complete: whether these are all; where few shots were learnt, the others may never have been read.
    """

    name: str
    class_names: tuple[str, ...]
    images: Mapping[str, Collection[str]] = field(default_factory=dict)
    complete: bool = True

    @cached_property
    def content(self) -> str:
        """See `content_key`."""
        return content_key(self.images)


@dataclass(frozen=True)
class Recognition:
    """What an arrival's images say about it.

    Attributes:
        content: its `content_key`.
        same: the known domain whose images these are: there is nothing to learn. None: they are new.
        notes: as of `Arrival`.
    """

    content: str
    same: str | None
    notes: tuple[str, ...] = ()


def images_by_class(domain: Domain, hashes: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """SHA-256s of a domain's images by class as displayed, training and test; what `Known` keeps.

    Args:
        domain: listed.
        hashes: SHA-256 by URI; images without one (damaged ones) are left out.
    """
    found: dict[str, set[str]] = {name: set() for name in domain.class_names}
    for sample in (*domain.train, *domain.test):
        if sample.uri in hashes:
            found[domain.class_names[sample.label]].add(hashes[sample.uri])
    return {name: frozenset(shas) for name, shas in found.items()}


def content_key(images: Mapping[str, Collection[str]]) -> str:
    """Name a domain by its images alone: which there are, and which of them belong to one class.

    Renaming the domain, its classes, folders or files, moving images between training and test, and copies of an
    image within its class change nothing.

    Args:
        images: SHA-256s by class; classes without images do not count.

    Returns:
        hex digest.
    """
    classes = sorted(_digest(sorted(set(shas))) for shas in images.values() if shas)
    return _digest(classes)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def overlap_share(images: Mapping[str, Collection[str]], known: Mapping[str, Collection[str]]) -> float:
    """Which share of a domain's different images another one has too, whatever their classes; 0 to 1.

    Args:
        images: of the domain, SHA-256s by class.
        known: of the other one.
    """
    mine, theirs = ({sha for shas in some.values() for sha in shas} for some in (images, known))
    return len(mine & theirs) / len(mine) if mine else 0.0


def recognise(arrival: Arrival, images: Mapping[str, Collection[str]], known: Sequence[Known]) -> Recognition:
    """Tell by content whether an arrival is known already.

    Args:
        arrival: from `validate`.
        images: of its domain, from `images_by_class`.
        known: what the model learnt, with its images.

    Raises:
        InputError: its name is that of a known domain with other images, and it does not extend it.
    """
    name, content, extends = arrival.domain.name, content_key(images), arrival.card.extends
    same = next((k for k in known if k.images and _is_same(k, content, images, extends)), None)
    if same is not None and not (same.complete or extends):
        has = f"its classes have the images that were learnt of the known domain {same.name}"
        return Recognition(content, same.name, (f"{name}: {has}: there is nothing to learn",))
    if same is not None or (extends and _holds(images, [k for k in known if k.name == name])):
        other = same.name if same is not None else name
        note = f"{name}: all its images are those of the known domain {other}: there is nothing to learn"
        return Recognition(content, other, (note,))
    if not extends and any(k.name == name for k in known):
        raise InputError(
            [*_shared(name, images, known), taken(name)], f"{arrival.entry.uri} cannot be learnt"
        )
    return Recognition(content, None, tuple(_shared(name, images, known)))


def _is_same(known: Known, content: str, images: Mapping[str, Collection[str]], extends: bool) -> bool:
    """Whether a known domain has this content; if few shots of it are known, whether each class has those of one.

    Not so for what extends it: its known images may have come along with new ones.
    """
    if known.complete or extends:
        return known.content == content
    arrived = [set(shas) for shas in images.values() if shas]
    before = [set(shas) for shas in known.images.values() if shas]
    return all(any(old <= new for new in arrived) for old in before) and all(
        any(old <= new for old in before) for new in arrived
    )


def _holds(images: Mapping[str, Collection[str]], known: Sequence[Known]) -> bool:
    """Whether there are images, and known tasks have all of them in the same classes."""
    return any(images.values()) and all(
        set(shas) <= {sha for k in known for sha in k.images.get(name, ())} for name, shas in images.items()
    )


def _shared(name: str, images: Mapping[str, Collection[str]], known: Sequence[Known]) -> list[str]:
    """One line for each task that has some of these images."""
    total = len({sha for shas in images.values() for sha in shas})
    shares = [(k.name, overlap_share(images, k.images)) for k in known]
    return [
        f"{name}: {round(share * total)} of its {total} images ({100 * share:.1f} %) are those of the known "
        f"domain {other}"
        for other, share in shares
        if share > 0
    ]


def taken(name: str, condition: str = "") -> str:
    """What to say of a name that a known domain has; `condition` stands before the advice."""
    return (
        f"{name}: a known domain has this name; {condition}choose another one, or say extends: true if they are more "
        "images of its classes"
    )
