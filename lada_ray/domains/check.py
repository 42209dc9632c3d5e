"""The checks that refuse bad input before anything expensive starts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from lada_ray.domains.base import Domain, DomainSpec
from lada_ray.errors import InputError

MAX_OVERLAP = 0.01
"""Largest share of a domain's test images that may stand among its training images too."""


def load_domains(specs: Sequence[DomainSpec], storage: str) -> tuple[Domain, ...]:
    """List all domains of a stream, in order.

    Raises:
        InputError: with the problems of all domains.
    """
    domains: list[Domain] = []
    found: list[str] = []
    for spec in specs:
        try:
            domains.append(spec.load(storage))
        except InputError as error:
            found += error.problems
    found += problems(domains)
    if found:
        raise InputError(found, "The domains cannot be used")
    return tuple(domains)


def problems(domains: Sequence[Domain]) -> list[str]:
    """Everything that keeps these domains from being learnt, one line each."""
    names = [domain.name for domain in domains]
    repeated = sorted({name for name in names if names.count(name) > 1})
    lines = [f"{name}: {names.count(name)} domains have this name; give each its own" for name in repeated]
    return lines + [line for domain in domains for line in domain_problems(domain)]


def domain_problems(domain: Domain) -> list[str]:
    """Everything that keeps one domain from being learnt, one line each."""
    if not domain.class_names:
        return [f"{domain.name}: no classes"]
    return [*_name_problems(domain), *_image_problems(domain)]


def _name_problems(domain: Domain) -> list[str]:
    """Two classes with one name could not be told apart by the text encoder, nor in any table."""
    lines = [
        f"{domain.name}: class {index} has an empty name"
        for index, name in enumerate(domain.class_names)
        if not name.strip()
    ]
    counted = Counter(name for name in domain.class_names if name.strip())
    return lines + [
        f"{domain.name}: {count} classes are displayed as {name!r}; rename one with class_names"
        for name, count in sorted(counted.items())
        if count > 1
    ]


def _image_problems(domain: Domain) -> list[str]:
    lines = []
    trained = {sample.label for sample in domain.train}
    if not trained:
        lines.append(f"{domain.name}: no training images")
    else:
        lines += [
            f"{domain.name}: class {name!r} has no training images"
            for label, name in enumerate(domain.class_names)
            if label not in trained
        ]
    if not domain.test:
        advice = "put some into test/<class>/, or use one <class>/* level, of which test_share is held out"
        lines.append(f"{domain.name}: no test images; {advice}")
    return lines


def shared_class_names(domains: Sequence[Domain]) -> dict[str, tuple[str, ...]]:
    """Class names that several domains have, with the domains' names; for a warning, not an error.

    Each domain keeps its own label, and taking one for the other counts as a mistake (X-TAIL).
    """
    owners: dict[str, list[str]] = defaultdict(list)
    for domain in domains:
        for name in dict.fromkeys(domain.class_names):
            owners[name].append(domain.name)
    return {name: tuple(having) for name, having in sorted(owners.items()) if len(having) > 1}


def overlap(domain: Domain, sha_of: Mapping[str, str]) -> list[tuple[str, str]]:
    """Find test images whose bytes stand in the training set too: (train path, test path), by test path.

    Args:
        domain: its samples.
        sha_of: content hash of each image, by `Sample.path`; images without one (damaged ones) are left out.

    Returns:
        One pair per test image, naming the first training image in path order with the same bytes.
    """
    first: dict[str, str] = {}
    for path in sorted(sample.path for sample in domain.train if sample.path in sha_of):
        first.setdefault(sha_of[path], path)
    tested = sorted(sample.path for sample in domain.test if sample.path in sha_of)
    return [(first[sha_of[path]], path) for path in tested if sha_of[path] in first]


def overlap_refused(domain: Domain, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether so many test images are training images (over 1 %) that accuracies would mean nothing."""
    return len(pairs) > MAX_OVERLAP * len(domain.test)


def overlap_lines(domain: Domain, pairs: Sequence[tuple[str, str]], shown: int = 5) -> list[str]:
    """Put the overlap in words, for a warning or an error: how many, what share, the first few pairs."""
    if not pairs:
        return []
    head = (
        f"{domain.name}: {len(pairs)} of {len(domain.test)} test images "
        f"({100 * len(pairs) / len(domain.test):.1f} %) are training images too"
    )
    tail = ["; ".join(f"{test} = {train}" for train, test in pairs[:shown])]
    more = [f"and {len(pairs) - shown} more"] if len(pairs) > shown else []
    return [f"{head}: " + "; ".join(tail + more)]


def overlaps(domains: Iterable[Domain], sha_of: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Check every domain for training images in its test set.

    Args:
        domains: to be checked.
        sha_of: content hash by domain name and `Sample.path`.

    Returns:
        Warnings, one line per domain with an overlap small enough to go on.

    Raises:
        InputError: naming the domains in which more than 1 % of the test images are training images.
    """
    warnings: list[str] = []
    refused: list[str] = []
    for domain in domains:
        pairs = overlap(domain, sha_of.get(domain.name, {}))
        (refused if overlap_refused(domain, pairs) else warnings).extend(overlap_lines(domain, pairs))
    if refused:
        raise InputError(refused, "Training images stand in the test set (at most 1 % is let through)")
    return warnings
