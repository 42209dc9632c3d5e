"""The inbox: a folder or bucket in which new domains arrive, and the checks that each has to pass before it is learnt.

    <inbox>/<entry>/domain.yaml      name, kind and that kind's keys, prompt, class_names, owner, shots, ...
    <inbox>/<entry>/...              its data, as its kind has it
    <inbox>/<entry>/_READY           written last: without it nobody looks at the rest
    <inbox>/<entry>/_REJECTED.json   written by us: why it was not learnt

On the way to being learnt an entry goes through `scan`, `validate`, the hashing of its images, and `recognise`; what
is wrong with it goes to `reject`, and the others go on. Whoever writes into an inbox need not be trusted: all that an
entry names has to lie in its own folder, and its YAML may neither be large nor repeat itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model

from lada_ray.config import find_problems, is_relative
from lada_ray.domains import KINDS, Domain, DomainSpec, FolderSpec, load_domains
from lada_ray.domains.base import STRICT, absolute, check_name, did_you_mean
from lada_ray.domains.listed import some
from lada_ray.domains.parts import split_part
from lada_ray.errors import InputError, LadaError
from lada_ray.gate import FEWEST
from lada_ray.store import Entry as Stored
from lada_ray.store import is_remote, join, open_store

CARD = "domain.yaml"
READY = "_READY"
REJECTED = "_REJECTED.json"
OURS = frozenset({CARD, READY, REJECTED})
"""What lies beside the data without being any of it."""
CARD_LIMIT = 2**20
"""Bytes of a domain.yaml: room for names of ten thousand classes, and not for a reader's hour."""
ADVICE = (
    f"Correct this, leaving {READY} in place: the entry is tried again once a file in its folder changes. If what has "
    f"to change lies elsewhere, write {READY} again."
)


class Card(BaseModel):
    """What domain.yaml says beside the keys of its kind."""

    model_config = STRICT

    owner: str | None = Field(default=None, min_length=1, max_length=200)
    """Who answers for the domain; kept in the model's history."""
    shots: int | None = Field(default=None, ge=1)
    """Training images per class (null: as the model learns its other domains)."""
    extends: bool = False
    """Whether these are more images of classes that the known domain of this name has."""


@dataclass(frozen=True)
class Entry:
    """A folder of the inbox that is complete.

    Attributes:
        name: of the folder.
        uri: of the folder.
        arrived: when its `_READY` was written, unix seconds.
        fingerprint: of its listing; it changes with any file but `_REJECTED.json`, and when `_READY` is written again.
    """

    name: str
    uri: str
    arrived: float
    fingerprint: str


@dataclass(frozen=True)
class Scan:
    """What lies in an inbox.

    Attributes:
        entries: to be looked at, in order of arrival.
        incomplete: names of folders without `_READY`.
        rejected: names of entries that were rejected and did not change since.
    """

    entries: tuple[Entry, ...]
    incomplete: tuple[str, ...]
    rejected: tuple[str, ...]


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
class Arrival:
    """An entry that can be learnt, as far as can be told without its images' bytes.

    Attributes:
        entry: where it came from.
        card: owner, shots, extends.
        spec: as in a configuration.
        domain: listed.
        notes: what its owner should know; nothing that keeps it from being learnt.
    """

    entry: Entry
    card: Card
    spec: DomainSpec
    domain: Domain
    notes: tuple[str, ...] = ()


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


# ---------------------------------------------------------------- scanning


def scan(inbox: str | Path) -> Scan:
    """List an inbox: every folder directly in it is an entry. Nothing but listings and rejections is read.

    Args:
        inbox: local folder or object-store prefix.

    Returns:
        Entries by the time of their `_READY`, then by name. Hidden folders and loose files are left out.

    Raises:
        InputError: there is no such folder.
        LadaError: the storage cannot be reached.
    """
    store = open_store(inbox)
    if not is_remote(store.uri) and not Path(store.uri).is_dir():
        raise InputError([f"there is no folder {store.uri}; make it, or correct --inbox"], "No inbox")
    entries, incomplete, rejected = [], [], []
    inside = (file for file in store.list() if "/" in file.key and not file.key.startswith("."))
    # By key, so the files of a folder stand together.
    for name, files in groupby(inside, key=lambda file: file.key.partition("/")[0]):
        entry, marked = _entry(name, join(store.uri, name), files)
        if entry is None:
            incomplete.append(name)
        elif marked and _rejected_as(entry) == entry.fingerprint:
            rejected.append(name)
        else:
            entries.append(entry)
    entries.sort(key=lambda entry: (entry.arrived, entry.name))
    return Scan(tuple(entries), tuple(incomplete), tuple(rejected))


def _entry(name: str, uri: str, files: Iterable[Stored]) -> tuple[Entry | None, bool]:
    """Make an entry of a folder's listing, None without `_READY`; and tell whether it was rejected before."""
    digest, arrived, marked = hashlib.sha256(), None, False
    for file in files:
        key = file.key.removeprefix(f"{name}/")
        if key == REJECTED:
            marked = True
            continue
        said = [key, file.size, file.version]
        if key == READY:
            # Its time too: an empty object that is written again keeps its etag.
            arrived = file.modified
            said.append(file.modified)
        digest.update(json.dumps(said).encode() + b"\n")
    return None if arrived is None else Entry(name, uri, arrived, digest.hexdigest()), marked


def _rejected_as(entry: Entry) -> str | None:
    """The fingerprint under which an entry was rejected; None where that cannot be read."""
    found = open_store(entry.uri).read_version(REJECTED)
    try:
        said = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None
    return said.get("fingerprint") if isinstance(said, dict) else None


# ---------------------------------------------------------------- rejecting


def reject(entry: Entry, problems: Sequence[str], when: datetime | None = None, advice: str = ADVICE) -> str:
    """Write beside a domain why it was not learnt; it is skipped from then on, until something in its folder changes.

    Args:
        entry: as it was scanned: if it changed since, it is tried again.
        problems: all of them, one line each.
        when: now, unless given.
        advice: what its owner can do.

    Returns:
        The URI of what was written.

    Raises:
        LadaError: it cannot be written there.
    """
    said = {
        "problems": [_one_line(problem) for problem in problems],
        "what_to_do": advice,
        "when": (when or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
        "fingerprint": entry.fingerprint,
    }
    open_store(entry.uri).write(REJECTED, json.dumps(said, indent=1, ensure_ascii=False).encode() + b"\n")
    return join(entry.uri, REJECTED)


def clear_rejection(entry: Entry) -> None:
    """Remove what an earlier `reject` wrote, once the domain was learnt after all."""
    open_store(entry.uri).delete(REJECTED)


def _one_line(text: str) -> str:
    """A message that no name from outside can break: line ends, terminal codes and bytes that are no text escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---------------------------------------------------------------- validating


def validate(entry: Entry, known: Sequence[Known], storage: str, outside: bool = False) -> Arrival:
    """Read an entry's domain.yaml and list its domain; reads no image.

    Args:
        entry: from `scan`.
        known: what the model learnt; images are not needed here.
        storage: URI under which a kind that makes its own images keeps them.
        outside: let paths, rows of tables and links lead out of the entry's folder.

    Raises:
        InputError: with every problem of the entry that can be found without its images' bytes.
        LadaError: the storage cannot be reached, which is nobody's fault.
    """
    raw, problems = _read_card(entry)
    spec, card, faults = _specify(entry, raw, outside)
    problems += faults
    links = [] if outside else _links_out(entry.uri)
    domain, found = _load(entry, spec, storage) if spec and not links else (None, [])
    problems += links + found
    if spec is not None and domain is not None:
        problems += [] if outside or not spec.path_fields else _images_out(entry, domain)
        problems += _domain_problems(domain, card.extends)
    problems += _name_problems(spec, card, domain, known, bool(problems))
    if problems or spec is None or domain is None:
        raise _refusal(entry, problems)
    domain = replace(domain, ignored=tuple(path for path in domain.ignored if path not in OURS))
    return Arrival(entry, card, spec, domain, tuple(_notes(domain)))


def _refusal(entry: Entry, problems: Sequence[str]) -> InputError:
    return InputError([_one_line(line) for line in problems], f"{_one_line(entry.uri)} cannot be learnt")


def _load(entry: Entry, spec: DomainSpec, storage: str) -> tuple[Domain | None, list[str]]:
    """List the domain, or say what is wrong with it."""
    try:
        return load_domains([spec], storage)[0], []
    except InputError as error:
        return None, error.problems
    # Whatever foreign files make a reader raise costs this entry, and not the others.
    except Exception as error:
        # Storage that cannot be reached is not the entry's fault: this raises then.
        open_store(entry.uri).stat(CARD)
        return None, [f"{spec.name}: cannot be read: {str(error) or type(error).__name__}"]


# ---------------------------------------------------------------- domain.yaml


class _CardLoader(yaml.SafeLoader):
    """Reads YAML of strangers: no aliases, which make gigabytes of a few lines; keys that stand twice are listed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read here", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Note keys that stand twice; the last would silently hold."""
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        line = node.start_mark.line + 1
        self.twice += [
            f"{CARD}: key {key!r} stands twice (from line {line})" for key, n in keys.items() if n > 1
        ]
        return super().construct_mapping(node, deep)


def _read_card(entry: Entry) -> tuple[dict[str, Any], list[str]]:
    """The keys of an entry's domain.yaml, and those that stand twice.

    Raises:
        InputError: it is not there, too large, no YAML, or no mapping.
    """
    store = open_store(entry.uri)
    try:
        size = store.stat(CARD).size
    except FileNotFoundError:
        raise _refusal(entry, [_no_card(entry)]) from None
    if size > CARD_LIMIT:
        raise _refusal(entry, [f"{CARD}: has {size} bytes, and at most {CARD_LIMIT} are read"])
    raw, problems = parse_card(store.read(CARD))
    if problems and not raw:
        raise _refusal(entry, problems)
    return raw, problems


def _no_card(entry: Entry) -> str:
    names = {file.key for file in open_store(entry.uri).list() if "/" not in file.key} - OURS
    return f"there is no {CARD}{did_you_mean(CARD, sorted(names))}"


def parse_card(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """Read a domain.yaml.

    Args:
        data: its bytes, UTF-8.

    Returns:
        Its keys and values, {} where it cannot be read; and what is wrong with it as YAML.
    """
    try:
        loader = _CardLoader(data.decode("utf-8-sig"))
        raw = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return {}, [f"{CARD}{where}: {error.problem or error.context}"]
    except RecursionError:
        return {}, [f"{CARD}: is nested too deeply"]
    except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:  # "2025-13-01" is a ValueError
        return {}, [f"{CARD}: {error}"]
    if not isinstance(raw, dict):
        return {}, [f"{CARD}: must be keys with values, as in `name: pets`"]
    return {str(key): value for key, value in raw.items()}, loader.twice


def _specify(
    entry: Entry, raw: Mapping[str, Any], outside: bool
) -> tuple[DomainSpec | None, Card, list[str]]:
    """Make the specification that domain.yaml asks for.

    Returns:
        It, or what can be made of the keys that are right, to look at the images too (None: nothing can); what else
        the card says; and the problems.
    """
    kind = raw.get("kind")
    spec = KINDS.get(kind) if isinstance(kind, str) else None
    problems = [] if spec else [_kind_problem(kind)]
    raw, out = _with_paths(entry, spec or FolderSpec, raw, outside)
    faults = _faults(spec, raw) | out
    problems += [f"{CARD}: {line}" for line in faults.values()]
    right = {key: value for key, value in raw.items() if key not in faults}
    own = {key: right.pop(key) for key in Card.model_fields if key in right}
    return _made(entry, spec, right), Card.model_validate(own), problems


def _made(entry: Entry, spec: type[DomainSpec] | None, right: dict[str, Any]) -> DomainSpec | None:
    """The specification, named after the folder where its name is wrong; None where too much is."""
    if spec is None:
        return None
    try:
        return spec.model_validate({"name": _stand_in(entry.name), **right})
    except ValidationError:
        return None


def _stand_in(folder: str) -> str:
    try:
        return check_name(folder)
    except ValueError:
        return "domain"


def _faults(spec: type[DomainSpec] | None, raw: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each key of a card; with an unknown kind, only the keys that all kinds have are told."""
    base = (Card, spec or FolderSpec)
    model: type[BaseModel] = create_model("DomainCard", __base__=base)
    given = dict(raw) if spec else {k: v for k, v in raw.items() if k in model.model_fields and k != "kind"}
    try:
        model.model_validate(given)
    except ValidationError as error:
        keys = [str(detail["loc"][0]) for detail in error.errors(include_url=False)]
        faults: dict[str, str] = {}
        for key, line in zip(keys, find_problems(given, model), strict=True):
            faults[key] = f"{faults[key]}; {line}" if key in faults else line
        return faults
    return {}


def _kind_problem(kind: Any) -> str:
    known = ", ".join(sorted(KINDS))
    if kind is None:
        return f"{CARD}: kind: missing; one of {known}"
    return (
        f"{CARD}: kind: unknown kind {str(kind)[:60]!r}{did_you_mean(str(kind)[:60], KINDS)} (one of {known})"
    )


# ---------------------------------------------------------------- where its data may lie


def _with_paths(
    entry: Entry, spec: type[DomainSpec], raw: Mapping[str, Any], outside: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """A card's keys with paths counted from the entry's folder; and, by key, what leads out of it."""
    result, out = dict(raw), {}
    root = spec.model_fields.get("root")
    if root is not None and root.is_required() and raw.get("root") is None:
        result["root"] = entry.uri
    for key in spec.path_fields:
        value = raw.get(key)
        if not isinstance(value, str) or not value.strip():
            continue  # absent, or refused with the other keys
        try:
            result[key] = _located(value, entry.uri)
        except (ValueError, LadaError):
            continue
        if not outside and not _inside(result[key], entry.uri):
            out[key] = f"{key}: {value!r} leads out of {entry.uri}; {_OUTSIDE}"
    return result, out


_OUTSIDE = "the data has to lie in the entry's own folder, unless whoever runs the job allows more"


def _located(value: str, folder: str) -> str:
    """Where a path or URI in domain.yaml leads, a relative one counted from the entry's folder."""
    if not is_relative(value):
        return absolute(value)
    if not is_remote(folder):
        return os.path.normpath(os.path.join(folder, value))
    scheme, _, path = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, value))}"


def _inside(uri: str, folder: str) -> bool:
    """Whether a path or URI leads into a folder, ".." and "." taken for what they mean."""
    where, base = _normal(split_part(uri)[0]), _normal(folder)
    return where == base or where.startswith(base.rstrip("/") + "/")


def _normal(uri: str) -> str:
    if not is_remote(uri):
        return open_store(uri).uri
    scheme, _, path = uri.partition("://")
    return f"{scheme.lower()}://{posixpath.normpath(path)}"


def _images_out(entry: Entry, domain: Domain) -> list[str]:
    """One line about images that a table names outside the entry's folder."""
    out = [s.path for s in (*domain.train, *domain.test) if not _inside(s.uri, entry.uri)]
    if not out:
        return []
    return [f"{domain.name}: images outside {entry.uri}: {some(out)}; {_OUTSIDE}"]


def _links_out(folder: str) -> list[str]:
    """One line about links in an entry's folder that leave it; none in an object store, which has no links."""
    if is_remote(folder):
        return []
    real, inbox = os.path.realpath(folder), os.path.realpath(os.path.dirname(folder))
    if not _inside(real, inbox):
        return [f"{folder} is a link that leads out of {inbox}; {_OUTSIDE}"]
    out = sorted(
        os.path.relpath(link, folder) for link in _links(folder) if not _inside(os.path.realpath(link), real)
    )
    return [f"links that lead out of {folder}: {some(out)}; {_OUTSIDE}"] if out else []


def _links(folder: str) -> Iterator[str]:
    """Every link in and below a folder; linked folders are not entered."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.path
            elif entry.is_dir():
                yield from _links(entry.path)


# ---------------------------------------------------------------- what a domain lacks


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
    strange = [repr(name) for name in domain.class_names if not name.isprintable()]
    lines = [f"{domain.name}: names of classes with characters that cannot be shown: {some(strange)}"]
    untold = [
        repr(s.path) for s in (*domain.train, *domain.test) if any("\ud800" <= c <= "\udfff" for c in s.path)
    ]
    lines.append(f"{domain.name}: names of files that are no UTF-8: {some(untold)}; rename them")
    return [line for line, found in zip(lines, (strange, untold), strict=True) if found]


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
        return [_taken(spec.name, "if these are other images, ")] if classes and others else []
    if not classes:
        near = did_you_mean(spec.name, {k.name for k in known})
        return [f"{spec.name}: extends is true, and the model knows no domain of this name{near}"]
    new = [name for name in domain.class_names if name not in classes] if domain else []
    if not new:
        return []
    near = did_you_mean(new[0], classes)
    said = f"extends is true, and the known domain has no class {some([repr(name) for name in new])}{near}"
    return [f"{spec.name}: {said}; new classes make a domain of their own"]


def _taken(name: str, condition: str = "") -> str:
    return (
        f"{name}: a known domain has this name; {condition}choose another one, or say extends: true if they are more "
        "images of its classes"
    )


def _notes(domain: Domain) -> Iterator[str]:
    """What the owner should know of a domain that can be learnt."""
    tested = {sample.label for sample in domain.test}
    without = [repr(name) for label, name in enumerate(domain.class_names) if label not in tested]
    if without:
        yield f"{domain.name}: classes without test images: {some(without)}"
    if domain.ignored:
        yield f"{domain.name}: files that are no images of it: {some(domain.ignored)}"


# ---------------------------------------------------------------- recognising


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
    name, content = arrival.domain.name, content_key(images)
    same = next((k.name for k in known if k.images and _is_same(k, content, images)), None)
    if same is None and arrival.card.extends and _holds(images, [k for k in known if k.name == name]):
        same = name
    if same is not None:
        note = f"{name}: all its images are those of the known domain {same}: there is nothing to learn"
        return Recognition(content, same, (note,))
    if not arrival.card.extends and any(k.name == name for k in known):
        raise InputError(
            [*_shared(name, images, known), _taken(name)], f"{arrival.entry.uri} cannot be learnt"
        )
    return Recognition(content, None, tuple(_shared(name, images, known)))


def _is_same(known: Known, content: str, images: Mapping[str, Collection[str]]) -> bool:
    """Whether a known domain has this content; if few shots of it are known, whether these are all among the images."""
    if known.complete:
        return known.content == content
    classes = [set(shas) for shas in images.values()]
    return all(any(set(shas) <= one for one in classes) for shas in known.images.values())


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
