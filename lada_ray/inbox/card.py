"""`domain.yaml`, read from strangers: small, without aliases, each key once, all that is wrong at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model

from lada_ray.config import find_problems
from lada_ray.domains import KINDS, Domain, DomainSpec, FolderSpec
from lada_ray.domains.base import STRICT, check_name, did_you_mean
from lada_ray.errors import InputError
from lada_ray.inbox.entries import CARD, OURS, Entry, one_line
from lada_ray.inbox.place import with_paths
from lada_ray.store import open_store

CARD_LIMIT = 2**20
"""Bytes of a domain.yaml: room for names of ten thousand classes, and not for a reader's hour."""


NAME_LIMIT, PROMPT_LIMIT, EPOCHS_LIMIT = 200, 1000, 10_000
"""Characters of a class's name and of a prompt, and passes over a domain, that a stranger may ask for."""


class Card(BaseModel):
    """What domain.yaml says beside the keys of its kind."""

    model_config = STRICT

    owner: str | None = Field(default=None, min_length=1, max_length=200)
    """Who answers for the domain; kept in the model's history."""
    shots: int | None = Field(default=None, ge=1)
    """Training images per class (null: as the model learns its other domains)."""
    extends: bool = False
    """Whether these are more images of classes that the known domain of this name has."""


class _Limited(DomainSpec):
    """Narrower than what whoever writes a configuration may say."""

    name: Annotated[str, Field(max_length=100), AfterValidator(check_name)]
    prompt: str | None = Field(default=None, max_length=PROMPT_LIMIT)
    class_names: dict[str, Annotated[str, Field(max_length=NAME_LIMIT)]] = Field(default_factory=dict)
    epochs: int | None = Field(default=None, ge=1, le=EPOCHS_LIMIT)


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


def refusal(entry: Entry, problems: Sequence[str]) -> InputError:
    """The error that says why an entry cannot be learnt."""
    return InputError([one_line(line) for line in problems], f"{one_line(entry.uri)} cannot be learnt")


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


def read_card(entry: Entry) -> tuple[dict[str, Any], list[str]]:
    """The keys of an entry's domain.yaml, and those that stand twice.

    Raises:
        InputError: it is not there, too large, no YAML, or no mapping.
    """
    store = open_store(entry.uri)
    try:
        size = store.stat(CARD).size
    except FileNotFoundError:
        raise refusal(entry, [_no_card(entry)]) from None
    if size > CARD_LIMIT:
        raise refusal(entry, [f"{CARD}: has {size} bytes, and at most {CARD_LIMIT} are read"])
    raw, problems = parse_card(store.read(CARD))
    if problems and not raw:
        raise refusal(entry, problems)
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


def specify(entry: Entry, raw: Mapping[str, Any], outside: bool) -> tuple[DomainSpec | None, Card, list[str]]:
    """Make the specification that domain.yaml asks for.

    Returns:
        It, or what can be made of the keys that are right, to look at the images too (None: nothing can); what else
        the card says; and the problems.
    """
    kind = raw.get("kind")
    spec = KINDS.get(kind) if isinstance(kind, str) else None
    problems = [] if spec else [_kind_problem(kind)]
    raw, out = with_paths(entry, spec or FolderSpec, raw, outside)
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
    base = (Card, _Limited, spec or FolderSpec)
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
