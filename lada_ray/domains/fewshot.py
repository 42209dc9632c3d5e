"""Which training images a run learns from: the first few of each class in a seeded order."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection

from lada_ray.domains.base import Domain, Sample


def choose(domain: Domain, shots: int | None, seed: int, bad: Collection[str] = frozenset()) -> list[Sample]:
    """Choose the training images of a domain; the same on every machine, whatever order it was listed in.

    The order within a class depends on nothing but the arguments and that class's own images, so a damaged
    image is replaced by the next one, and all other choices stay.

    Args:
        domain: its training samples.
        shots: images per class (fewer where a class has fewer); None: all, in path order.
        seed: another seed chooses other images.
        bad: paths of images known to be unreadable.

    Returns:
        The chosen samples, by label, within a class in the seeded (or path) order.
    """
    unreadable = frozenset(bad)
    by_label: dict[int, list[Sample]] = defaultdict(list)
    for sample in domain.train:
        if sample.path not in unreadable:
            by_label[sample.label].append(sample)
    chosen = []
    for label in sorted(by_label):
        ordered = seeded_order(domain.name, domain.class_names[label], by_label[label], seed)
        chosen += ordered[:shots] if shots is not None else sorted(by_label[label], key=lambda s: s.path)
    return chosen


def seeded_order(domain: str, class_name: str, samples: Collection[Sample], seed: int) -> list[Sample]:
    """Order the samples of one class by SHA-256(seed, domain, class, path)."""

    def rank(sample: Sample) -> tuple[bytes, str]:
        key = "\n".join([str(seed), domain, class_name, sample.path])
        return hashlib.sha256(key.encode(errors="surrogateescape")).digest(), sample.path

    return sorted(samples, key=rank)
