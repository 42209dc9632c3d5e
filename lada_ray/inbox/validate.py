"""The checks that an entry has to pass before any of its images is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lada_ray.domains import Domain, DomainSpec, load_domains
from lada_ray.domains.base import did_you_mean
from lada_ray.domains.listed import some
from lada_ray.domains.manifest import ManifestSpec
from lada_ray.errors import InputError
from lada_ray.gate import FEWEST
from lada_ray.inbox.card import NAME_LIMIT, Arrival, Card, read_card, refusal, specify
from lada_ray.inbox.content import Known, taken
from lada_ray.inbox.entries import CARD, OURS, Entry, check_there
from lada_ray.inbox.place import images_out, links_out


def validate(entry: Entry, known: Sequence[Known], storage: str, outside: bool = False) -> Arrival:
    """Read an entry's domain.yaml and list its domain; reads no image.

    Args:
        entry: from `scan`.
        known: what the model learnt; images are not needed here.
        storage: URI under which a kind that makes its own images keeps them.
        outside: let paths, rows of tables and links lead out of the entry's folder.

    Raises:
        InputError: with every problem of the entry that can be found without its images' bytes; links that are not
            allowed stand alone.
        LadaError: the storage cannot be reached, which is nobody's fault.
    """
    # Before anything is read: what a link leads to could be told in a message.
    if not outside and (links := links_out(entry.uri)):
        raise refusal(entry, links)
    raw, problems = read_card(entry)
    spec, card, faults = specify(entry, raw, outside)
    domain, found = _load(entry, spec, storage, outside) if spec else (None, [])
    problems += faults + found
    if spec is not None and domain is not None:
        uris = {sample.path: sample.uri for sample in (*domain.train, *domain.test)}
        problems += [] if outside or not spec.path_fields else images_out(entry, domain.name, uris)
        problems += _domain_problems(domain, card.extends)
    problems += _name_problems(spec, card, domain, known, bool(problems))
    if problems or spec is None or domain is None:
        raise refusal(entry, problems)
    domain = replace(domain, ignored=tuple(path for path in domain.ignored if path not in OURS))
    return Arrival(entry, card, spec, domain, tuple(_notes(domain)))


def _load(entry: Entry, spec: DomainSpec, storage: str, outside: bool) -> tuple[Domain | None, list[str]]:
    """List the domain, or say what is wrong with it."""
    try:
        # Rows that lead out are not even looked up: whether a file is there is nobody's business.
        if isinstance(spec, ManifestSpec) and not outside:
            out = images_out(entry, spec.name, spec.located())
            if out:
                return None, out
        return load_domains([spec], storage)[0], []
    except InputError as error:
        return None, error.problems
    # Whatever foreign files make a reader raise costs this entry, and not the others.
    except Exception as error:
        check_there(entry, CARD)
        return None, [f"{spec.name}: cannot be read: {str(error) or type(error).__name__}"]


def _domain_problems(domain: Domain, extends: bool) -> list[str]:
    """What keeps a domain that could be learnt by hand from being learnt unattended."""
    images = Counter(sample.label for sample in (*domain.train, *domain.test))
    lines = [
        f"{domain.name}: class {name!r} has {images[label]} image, and needs two: one to learn from, one to test on"
        for label, name in enumerate(domain.class_names)
        if images[label] == 1
    ]
    # An extended domain has test images already.
    if not extends and len(domain.test) < FEWEST:
        lines.append(
            f"{domain.name}: {len(domain.test)} test images; with fewer than {FEWEST} nobody can tell whether it was "
            "learnt: add images, or hold out more of them (test_share)"
        )
    return lines + _text_problems(domain)


def _text_problems(domain: Domain) -> list[str]:
    """Names that could not be written down or shown."""
    long = [repr(f"{name[:30]}…") for name in domain.class_names if len(name) > NAME_LIMIT]
    lines = [f"{domain.name}: names of classes with more than {NAME_LIMIT} characters: {some(long)}"]
    strange = [repr(name[:NAME_LIMIT]) for name in domain.class_names if not name.isprintable()]
    lines.append(f"{domain.name}: names of classes with characters that cannot be shown: {some(strange)}")
    untold = [
        repr(s.path) for s in (*domain.train, *domain.test) if any("\ud800" <= c <= "\udfff" for c in s.path)
    ]
    lines.append(f"{domain.name}: names of files that are no UTF-8: {some(untold)}; rename them")
    return [line for line, found in zip(lines, (long, strange, untold), strict=True) if found]


def _name_problems(
    spec: DomainSpec | None, card: Card, domain: Domain | None, known: Sequence[Known], others: bool
) -> list[str]:
    """What is wrong with an entry's name; whether a name that is taken is a problem, its images say (`recognise`).

    Args:
        spec: None where there is none.
        card: whether it extends a known domain.
        domain: None where it could not be listed.
        known: what the model learnt.
        others: whether there are other problems: its images will not be looked at then.
    """
    if spec is None:
        return []
    classes = {name for k in known if k.name == spec.name for name in k.class_names}
    if not card.extends:
        return [taken(spec.name, "if these are other images, ")] if classes and others else []
    if not classes:
        near = did_you_mean(spec.name, {k.name for k in known})
        return [f"{spec.name}: extends is true, and the model knows no domain of this name{near}"]
    new = [name for name in domain.class_names if name not in classes] if domain else []
    if not new:
        return []
    near = did_you_mean(new[0], classes)
    said = f"extends is true, and the known domain has no class {some([repr(name) for name in new])}{near}"
    return [f"{spec.name}: {said}; new classes make a domain of their own"]


def _notes(domain: Domain) -> Iterator[str]:
    """What the owner should know of a domain that can be learnt."""
    tested = {sample.label for sample in domain.test}
    without = [repr(name) for label, name in enumerate(domain.class_names) if label not in tested]
    if without:
        yield f"{domain.name}: classes without test images: {some(without)}"
    if domain.ignored:
        yield f"{domain.name}: files that are no images of it: {some(domain.ignored)}"
