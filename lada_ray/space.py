"""What a sweep searches: keys of the configuration, each with one of Ray Tune's distributions, as data.

    method.beta: {loguniform: [0.3, 10]}
    method.memory_per_class: {choice: [4, 8, 16, 32]}

Distributions are Ray Tune's (`distributions.py`). Draws are made here all the same: configuration i follows from
(space, seed, i) alone, so a sweep that was killed, or gets more samples, has the same trials.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from lada_ray.config import StreamConfig, find_problems, known_keys, nearest_key, nested, read_yaml, shortened
from lada_ray.distributions import DISTRIBUTIONS, FORMS, LISTS, Distribution, Listed, Refused, numeric, refuse
from lada_ray.domains.base import did_you_mean
from lada_ray.errors import ConfigError

HEADING = "The search space is not valid"
ATTEMPTS = 200
FEW = 8
"""Draws in a row that may repeat earlier configurations, before what is left is listed."""
_EMPTY = "it searches nothing; name a parameter, as in method.beta: {loguniform: [0.3, 10]}"
_FIXED = (
    "may not be searched; only views and method.* may, but for method.kind (the seed, shots, encoder and domains are "
    "what a sweep is about: its trials are compared under the same ones)"
)


# ---------------------------------------------------------------- the space


@dataclass(frozen=True)
class Space:
    """What a sweep searches.

    Attributes:
        parameters: the distribution of each searched key of the configuration, in the order of the file.
    """

    parameters: Mapping[str, Distribution]

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a space.

        Args:
            path: YAML file, or the bare name of a shipped one ("beta").

        Raises:
            ConfigError: with every problem: unknown keys and distributions and the nearest known ones, arguments that
                do not fit, values that the configuration refuses.
        """
        bare = isinstance(path, str) and not Path(path).suffix and os.path.basename(path) == path
        file = shipped_space(str(path)) if bare else Path(path).expanduser().absolute()
        if not file.is_file():
            raise ConfigError([f"there is no file {file}"], "The search space cannot be read")
        try:
            raw = read_yaml(file)
        except ConfigError as error:
            raise ConfigError(error.problems, "The search space cannot be read") from None
        return cls.from_plain(raw, f"{HEADING} ({file})")

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any], heading: str = HEADING) -> Self:
        """Make a space of plain data, as in the YAML: {"method.beta": {"loguniform": [0.3, 10]}}.

        Raises:
            ConfigError: with every problem.
        """
        problems = [] if raw else [_EMPTY]
        parameters: dict[str, Distribution] = {}
        for key, given in raw.items():
            try:
                parameters[str(key)] = _parameter(str(key), given)
            except Refused as refused:
                problems += [f"{key}: {complaint}" for complaint in refused.complaints]
        if problems:
            raise ConfigError(problems, heading)
        return cls(parameters)

    def plain(self) -> dict[str, dict[str, list[Any]]]:
        """The space as plain data; `from_plain` of it gives an equal space."""
        return {key: {d.name: list(d.arguments)} for key, d in self.parameters.items()}

    def sample(self, number: int, seed: int) -> list[dict[str, Any]]:
        """Draw configurations, all different.

        Configuration i is a pure function of (space, seed, i): a larger number extends the list. `grid_search` is drawn
        from like `choice`.

        Args:
            number: how many.
            seed: another one draws others.

        Returns:
            Values by key; fewer than `number` only where the space holds no more.
        """
        drawn: dict[tuple[Any, ...], None] = {}
        for i in range(number):
            attempts = itertools.islice(self._draws(seed, i), ATTEMPTS)
            fresh = next((draw for draw in itertools.chain(attempts, self._all()) if draw not in drawn), None)
            if fresh is None:
                break
            drawn[fresh] = None
        return [dict(zip(self.parameters, values, strict=True)) for values in drawn]

    def grid(self, points: int = 4) -> list[dict[str, Any]]:
        """Every combination of all listed values and of evenly spaced ones of ranges; the last key changes fastest.

        Args:
            points: at most so many values of each range, evenly (or log-evenly) spaced, both ends included; of
                `randn` and `qrandn` within two standard deviations.
        """
        values = [distribution.points(points) for distribution in self.parameters.values()]
        return [dict(zip(self.parameters, choice, strict=True)) for choice in itertools.product(*values)]

    def listed(self) -> list[dict[str, Any]]:
        """Values that between them hold every value of the parameters which have few: choices, and small ranges."""
        heads = {key: list(itertools.islice(d.values() or (), FEW + 1)) for key, d in self.parameters.items()}
        few = {key: some for key, some in heads.items() if 0 < len(some) <= FEW}
        longest = max((len(some) for some in few.values()), default=1)
        return [{key: some[min(i, len(some) - 1)] for key, some in few.items()} for i in range(longest)]

    def tune(self) -> dict[str, Any]:
        """The space as Ray Tune's objects, for `OptunaSearch`.

        Raises:
            ConfigError: Optuna cannot search some of the distributions (`randn`, `qrandn`, `qloguniform`,
                `qlograndint`).
        """
        objects = {key: distribution.tune() for key, distribution in self.parameters.items()}
        problems = [
            f"{key}: Optuna cannot search {self.parameters[key].name}; write another distribution, or search at random"
            for key, found in objects.items()
            if found is None
        ]
        if problems:
            raise ConfigError(problems, HEADING)
        return objects

    def largest_views(self, default: int) -> int:
        """The largest number of augmented views that a trial can need; `default` where views are not searched."""
        return max(self.parameters["views"].ends()) if "views" in self.parameters else default

    def positions(self, values: Mapping[str, Any]) -> dict[str, float] | None:
        """Where a configuration's values stand in their distributions, each in [0, 1]; None: not in this space."""
        found = {
            key: d.position(values[key]) if key in values else None for key, d in self.parameters.items()
        }
        inside = {key: position for key, position in found.items() if position is not None}
        return inside if len(inside) == len(found) else None

    def _draws(self, seed: int, i: int) -> Iterator[tuple[Any, ...]]:
        """Endless draws of configuration i; a parameter's draws do not depend on the other parameters."""
        streams = [_generator(seed, key, i) for key in self.parameters]
        while True:
            pairs = zip(self.parameters.values(), streams, strict=True)
            yield tuple(distribution.value(stream.random()) for distribution, stream in pairs)

    def _all(self) -> Iterator[tuple[Any, ...]]:
        """Every configuration of a space that can be listed, none of others."""
        values = [d.values() for d in self.parameters.values()]
        listed = [v for v in values if v is not None]
        if len(listed) == len(values):
            yield from itertools.product(*listed)


def _generator(seed: int, key: str, i: int) -> np.random.Generator:
    """The stream of one parameter of one configuration; Philox gives the same one on every machine."""
    tag = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, tag, i])))


def shipped_space(name: str) -> Path:
    """The YAML file of a space that ships with the package (in a checkout: in tune_spaces/ beside it).

    Raises:
        ConfigError: there is none of this name; lists those there are.
    """
    package = Path(__file__).parent
    folders = [f for f in (package / "tune_spaces", package.parent / "tune_spaces") if f.is_dir()]
    shipped = {file.stem: file for folder in folders[:1] for file in sorted(folder.glob("*.yaml"))}
    if name not in shipped:
        near, all_names = did_you_mean(name, shipped), ", ".join(shipped) or "none"
        problem = f"no search space called {name!r} is shipped{near} (shipped: {all_names})"
        raise ConfigError([problem, f"for a file of your own write {name}.yaml, or its path"], HEADING)
    return shipped[name]


# ---------------------------------------------------------------- reading


def searchable() -> dict[str, FieldInfo]:
    """The keys of the configuration that may be searched: of the method all but its kind, and views."""
    keys = known_keys(StreamConfig)
    method = {key: field for key, field in keys.items() if key.startswith("method.") and key != "method.kind"}
    return {**method, "views": keys["views"]}


def _parameter(key: str, given: Any) -> Distribution:
    """Read one parameter of a file; raises Refused."""
    fields = searchable()
    if key not in fields:
        raise Refused(_not_searchable(key, fields))
    name, arguments = _name_and_arguments(given)
    if name in LISTS:
        return _listed(key, fields[key], name, arguments)
    distribution = _numeric(fields[key], name, arguments)
    _check_values(key, distribution)
    return distribution


def _not_searchable(key: str, fields: Mapping[str, FieldInfo]) -> str:
    if key == "method":
        return "a section; write its keys with dots, as in method.beta: {loguniform: [0.3, 10]}"
    section = key.partition(".")[0]
    known = known_keys(StreamConfig)
    if key in known or section in {k.partition(".")[0] for k in known} - {"method"}:
        return _FIXED
    return f"unknown parameter{nearest_key(key, fields)}"


def _name_and_arguments(given: Any) -> tuple[str, list[Any]]:
    if not isinstance(given, Mapping) or len(given) != 1:
        raise Refused(f"must be one distribution, as in {{loguniform: [0.3, 10]}} (got {shortened(given)})")
    ((name, arguments),) = given.items()
    if name not in DISTRIBUTIONS:
        near = did_you_mean(str(name), DISTRIBUTIONS)
        raise Refused(f"unknown distribution {name!r}{near} (one of {', '.join(DISTRIBUTIONS)})")
    if not isinstance(arguments, list | tuple):
        raise Refused(f"{name} takes a list (got {shortened(arguments)})")
    return name, list(arguments)


def _listed(key: str, field: FieldInfo, name: str, values: Sequence[Any]) -> Listed:
    """Values as the configuration reads them: YAML takes 1e-3 for text, the configuration for a number."""
    if not values:
        raise Refused(f"{name} needs at least one value")
    _check_values(key, Listed(name, tuple(values)))
    reader: TypeAdapter[Any] = TypeAdapter(field.annotation or Any)
    settled = [reader.validate_python(value) for value in values]
    twice = dict.fromkeys(repr(value) for value in settled if settled.count(value) > 1)
    if twice:
        raise Refused(f"{name} has {', '.join(twice)} more than once")
    return Listed(name, tuple(settled))


def _numeric(field: FieldInfo, name: str, given: Sequence[Any]) -> Distribution:
    form = FORMS[name]
    types = {kind for kind in get_args(field.annotation) or [field.annotation] if kind is not type(None)}
    if not types <= {int, float}:
        raise Refused(f"is no number, so {name} cannot draw it; write choice: [...]")
    if float not in types and form.instead:
        raise Refused(f"takes whole numbers, so write {form.instead} instead of {name}")
    return numeric(name, given)


def _check_values(key: str, distribution: Distribution) -> None:
    """Refuse a distribution that can give what the configuration does not accept."""
    lines = [
        line.removeprefix(f"{key}: ")
        for value in distribution.ends()
        for line in find_problems(nested({key: value}))
        if line.startswith(f"{key}: ")
    ]
    refuse(f"{line}, which {distribution} can give" for line in dict.fromkeys(lines))
