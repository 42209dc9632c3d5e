"""Which images a run needs, under which views: the chosen training images and all test images of every domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lada_ray.domains.base import Domain, Sample
from lada_ray.domains.fewshot import choose
from lada_ray.features.index import BadImage
from lada_ray.views import TEST_VIEW, training_views


@dataclass(frozen=True)
class Selection:
    """One domain's images: bad ones left out, few-shot choice made."""

    domain: Domain
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    views: tuple[str, ...]
    """The views training draws from."""
    bad: tuple[BadImage, ...]
    """Images that were wanted and cannot be used."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Training and test samples."""
        return self.train + self.test

    @property
    def train_labels(self) -> npt.NDArray[np.int64]:
        """Class of each training image within the domain, [n]."""
        return np.array([s.label for s in self.train], np.int64)

    @property
    def test_labels(self) -> npt.NDArray[np.int64]:
        """Class of each test image within the domain, [n]."""
        return np.array([s.label for s in self.test], np.int64)

    def needs(self) -> list[tuple[Sample, str]]:
        """(sample, view) of everything that has to be in the bank."""
        views = dict.fromkeys([TEST_VIEW, *self.views])
        return [(s, view) for s in self.train for view in views] + [(s, TEST_VIEW) for s in self.test]


def select(domain: Domain, spoilt: Mapping[str, str], shots: int | None, views: int, seed: int) -> Selection:
    """Choose a domain's images.

    Args:
        domain: the listed domain.
        spoilt: reason by URI, of images known to be unusable. Among chosen shots the next image in the seeded order
            takes their place.
        shots: images per class; None takes all.
        views: augmented views per training image.
        seed: of the few-shot choice.
    """
    # Only what the choice stumbles over is listed, so that the list does not depend on what other runs found.
    bad: dict[str, Sample] = {}
    train = choose(domain, shots, seed)
    while fresh := {s.path: s for s in train if s.uri in spoilt}:
        bad |= fresh
        train = choose(domain, shots, seed, bad)
    bad |= {s.path: s for s in domain.test if s.uri in spoilt}
    return Selection(
        domain,
        tuple(train),
        tuple(s for s in domain.test if s.uri not in spoilt),
        tuple(training_views(domain.augment, views)),
        tuple(BadImage(s.uri, spoilt[s.uri]) for s in bad.values()),
    )


def emptied(selections: Sequence[Selection]) -> list[str]:
    """A line for each class that bad images left without training images, or domain without the test images it had."""
    lines = []
    for selection in selections:
        name, classes = selection.domain.name, selection.domain.class_names
        left = set(selection.train_labels.tolist())
        lines += [
            f"{name}: every training image of {c!r} is unusable"
            for i, c in enumerate(classes)
            if i not in left
        ]
        if selection.domain.test and not selection.test:
            lines.append(f"{name}: every test image is unusable")
    return lines
