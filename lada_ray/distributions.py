"""How a parameter of a sweep is drawn: Ray Tune's distributions, each as a map from positions in [0, 1] to values.

They have Ray Tune's names, arguments and bounds (`ray.tune.search.sample`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import Any

from lada_ray.config import shortened


@dataclass(frozen=True)
class Distribution(ABC):
    """How one parameter is drawn.

    Attributes:
        name: as Ray Tune calls it.
        arguments: as in the file, numbers read as numbers.
    """

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name} {shortened(list(self.arguments))}"

    @abstractmethod
    def value(self, position: float) -> Any:
        """The value at a position in [0, 1]: the inverse of the cumulative distribution."""

    @abstractmethod
    def position(self, value: Any) -> float | None:
        """Where a value stands in [0, 1], in the middle of its share; None: it is no value of this distribution."""

    @abstractmethod
    def points(self, number: int) -> list[Any]:
        """Values for a grid: at most `number`, evenly spaced on the distribution's scale; all of listed values."""

    def ends(self) -> Collection[Any]:
        """The values that the configuration has to accept for it to accept all: the smallest and the largest."""
        return self.value(0.0), self.value(1.0)

    def values(self) -> Iterable[Any] | None:
        """Every value there is; None: they cannot be listed."""
        return None

    def tune(self) -> Any:
        """The same as an object of Ray Tune that Optuna can search; None: Optuna cannot."""
        return None


@dataclass(frozen=True)
class Listed(Distribution):
    """`choice` and `grid_search`: each of the arguments is as likely as the others."""

    def value(self, position: float) -> Any:
        """See `Distribution.value`."""
        return self.arguments[min(int(position * len(self.arguments)), len(self.arguments) - 1)]

    def position(self, value: Any) -> float | None:
        """See `Distribution.position`."""
        at = self.arguments.index(value) if value in self.arguments else None
        return None if at is None else (at + 0.5) / len(self.arguments)

    def points(self, number: int) -> list[Any]:
        """All values, whatever the number."""
        return list(self.arguments)

    def ends(self) -> Collection[Any]:
        """All values: they need not lie between two of them."""
        return self.arguments

    def values(self) -> Iterable[Any]:
        """See `Distribution.values`."""
        return self.arguments

    def tune(self) -> Any:
        """See `Distribution.tune`; a searcher takes no grid, so `grid_search` becomes a choice."""
        from ray import tune

        return tune.choice(list(self.arguments))


@dataclass(frozen=True)
class Ranged(Distribution):
    """A distribution between two numbers, even on a linear or on a logarithmic scale."""

    lower: float
    upper: float
    log: bool

    def _at(self, position: float, upper: float) -> float:
        """The number at a position between the lower bound and an upper one."""
        lower, rest = self.lower, 1 - position
        number = lower**rest * upper**position if self.log else lower * rest + upper * position
        return min(max(number, lower), upper)

    def _share(self, number: float) -> float:
        """The position of a number between the bounds: the inverse of `_at`."""
        scale = math.log if self.log else float
        return (scale(number) - scale(self.lower)) / (scale(self.upper) - scale(self.lower))


@dataclass(frozen=True)
class Interval(Ranged):
    """`uniform`, `loguniform`, and with multiples of q alone, upper bound included: `quniform`, `qloguniform`."""

    q: float | None

    def value(self, position: float) -> float:
        """See `Distribution.value`."""
        number = self._at(position, self.upper)
        return number if self.q is None else multiple(number, self.q)

    def position(self, value: Any) -> float | None:
        """See `Distribution.position`."""
        if not self.lower <= value <= self.upper:
            return None
        # A multiple of q stands for all that is rounded to it; the first and the last for half as much.
        half = self.q / 2 if self.q else 0.0
        edges = max(value - half, self.lower), min(value + half, self.upper)
        return sum(map(self._share, edges)) / 2

    def points(self, number: int) -> list[float]:
        """See `Distribution.points`."""
        return list(dict.fromkeys(self.value(position) for position in evenly(number)))

    def values(self) -> Iterable[float] | None:
        """See `Distribution.values`."""
        if self.q is None:
            return None
        q = self.q
        return (multiple(k * q, q) for k in range(round(self.lower / q), round(self.upper / q) + 1))

    def tune(self) -> Any:
        """See `Distribution.tune`; Optuna would drop the q of `qloguniform`."""
        from ray import tune

        if self.q is None:
            return (tune.loguniform if self.log else tune.uniform)(self.lower, self.upper)
        return None if self.log else tune.quniform(self.lower, self.upper, self.q)


@dataclass(frozen=True)
class Whole(Ranged):
    """`randint` and `lograndint`, upper bound excluded; `qrandint` and `qlograndint`, included unless q is 1.

    As in Ray, what is drawn is how many times `step` a value is, from `lower` to below `upper`.
    """

    lower: int
    upper: int
    step: int

    def value(self, position: float) -> int:
        """See `Distribution.value`."""
        return min(math.floor(self._at(position, self.upper)), self.upper - 1) * self.step

    def position(self, value: Any) -> float | None:
        """See `Distribution.position`."""
        if value not in self.values():
            return None
        times = value // self.step
        return (self._share(times) + self._share(times + 1)) / 2

    def points(self, number: int) -> list[int]:
        """See `Distribution.points`; the smallest and the largest value are among them."""
        times = [round(self._at(position, self.upper - 1)) for position in evenly(number)]
        return [k * self.step for k in dict.fromkeys(times)]

    def values(self) -> range:
        """See `Distribution.values`."""
        return range(self.lower * self.step, self.upper * self.step, self.step)

    def tune(self) -> Any:
        """See `Distribution.tune`; Optuna takes no q on a logarithmic scale.

        It would include the upper bound where q is 1, and count multiples from the lower bound. So it gets no q
        of 1, and bounds that are multiples.
        """
        from ray import tune

        if self.step == 1:
            return (tune.lograndint if self.log else tune.randint)(self.lower, self.upper)
        values = self.values()
        return None if self.log else tune.qrandint(values[0], values[-1], self.step)


@dataclass(frozen=True)
class Normal(Distribution):
    """`randn`, and rounded to multiples of q: `qrandn`. No draw is further than 8.3 standard deviations away."""

    mean: float
    deviation: float
    q: float | None

    def value(self, position: float) -> float:
        """See `Distribution.value`."""
        # The middle of one of 2^52 cells: never 0 or 1, where the normal distribution has no value.
        inside = (min(math.floor(position * 2**52), 2**52 - 1) + 0.5) / 2**52
        return self._rounded(NormalDist().inv_cdf(inside))

    def position(self, value: Any) -> float | None:
        """See `Distribution.position`."""
        return NormalDist(self.mean, self.deviation).cdf(value)

    def points(self, number: int) -> list[float]:
        """Evenly spaced within two standard deviations of the mean."""
        return list(dict.fromkeys(self._rounded(4 * position - 2) for position in evenly(number)))

    def _rounded(self, deviations: float) -> float:
        number = self.mean + self.deviation * deviations
        return number if self.q is None else multiple(number, self.q)


def multiple(number: float, q: float) -> float:
    """The multiple of q nearest to a number, without the noise of binary fractions: 0.3, not 3 · 0.1."""
    return float(Decimal(str(q)) * round(number / q))


def evenly(number: int) -> list[float]:
    """Positions in [0, 1], both ends included; the middle if there is one."""
    return [i / (number - 1) for i in range(number)] if number > 1 else [0.5]


# ---------------------------------------------------------------- reading


class Refused(Exception):
    """A parameter that cannot be searched as written; carries all that is wrong with it."""

    def __init__(self, *complaints: str) -> None:
        self.complaints = complaints
        super().__init__(*complaints)


@dataclass(frozen=True)
class Form:
    """What a distribution takes: names of its arguments, how many it needs, whether it gives whole numbers."""

    arguments: tuple[str, ...] = ()
    needed: int = 0
    log: bool = False
    instead: str | None = None
    """What to write for a parameter of whole numbers; None: this gives whole numbers itself."""


BOUNDS = ("lower", "upper")
FORMS = {
    "uniform": Form(BOUNDS, 2, instead="randint"),
    "quniform": Form((*BOUNDS, "q"), 3, instead="qrandint"),
    "loguniform": Form(BOUNDS, 2, log=True, instead="lograndint"),
    "qloguniform": Form((*BOUNDS, "q"), 3, log=True, instead="qlograndint"),
    "randn": Form(("mean", "sd"), 0, instead="randint"),
    "qrandn": Form(("mean", "sd", "q"), 3, instead="qrandint"),
    "randint": Form(BOUNDS, 2),
    "qrandint": Form((*BOUNDS, "q"), 2),
    "lograndint": Form(BOUNDS, 2, log=True),
    "qlograndint": Form((*BOUNDS, "q"), 3, log=True),
}
LISTS = ("choice", "grid_search")
DISTRIBUTIONS = (*FORMS, *LISTS)
"""Ray Tune's distributions that a space may name."""


def numeric(name: str, given: Sequence[Any]) -> Distribution:
    """Make a distribution of numbers.

    Args:
        name: one of `FORMS`.
        given: its arguments; text that is a number counts as one, for YAML takes 1e-3 for text.

    Raises:
        Refused: the arguments do not fit.
    """
    form = FORMS[name]
    if not form.needed <= len(given) <= len(form.arguments):
        raise Refused(f"{name} takes [{', '.join(form.arguments)}] (got {shortened(list(given))})")
    numbers = [_number(value, whole=form.instead is None) for value in given]
    refuse(f"{name}: {problem}" for problem in numbers if isinstance(problem, str))
    arguments = tuple(number for number in numbers if not isinstance(number, str))
    return _normal(name, arguments) if name.endswith("randn") else _ranged(name, form, arguments)


def _number(value: Any, whole: bool) -> float | str:
    """A finite number, of text too (YAML takes 1e-3 for text); else what is wrong, as text."""
    try:
        number = value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        return f"{shortened(value)} is no number"
    if isinstance(value, bool) or not math.isfinite(number):
        return f"{shortened(value)} is no finite number"
    if whole and number != int(number):
        return f"{shortened(value)} is no whole number"
    return int(number) if whole else number


def _normal(name: str, arguments: tuple[float, ...]) -> Normal:
    given = dict(zip(("mean", "sd", "q"), arguments, strict=False))
    refuse(
        f"{name}: {k} must be greater than 0 (got {v})" for k, v in given.items() if k != "mean" and v <= 0
    )
    return Normal(name, arguments, given.get("mean", 0.0), given.get("sd", 1.0), given.get("q"))


def _ranged(name: str, form: Form, arguments: tuple[float, ...]) -> Ranged:
    lower, upper, q = (*arguments, 0)[:3]
    given = len(arguments) > 2
    said = f"{name} {list(arguments)}"
    refuse(f"{said}: {problem}" for problem in _range_problems(lower, upper, q if given else None, form.log))
    if form.instead is None:
        return _whole(name, form, arguments)
    if given:
        refuse(f"{said}: {bound} is no multiple of q" for bound in (lower, upper) if not _divides(q, bound))
    return Interval(name, arguments, float(lower), float(upper), form.log, q if given else None)


def _whole(name: str, form: Form, arguments: tuple[float, ...]) -> Whole:
    """Count in steps of q: from the first multiple in the bounds to behind the last."""
    lower, upper, step = (int(number) for number in (*arguments, 1)[:3])
    behind = upper // step + (0 if step == 1 else 1)
    found = Whole(name, arguments, -(-lower // step), behind, form.log, step)
    if not found.values():
        raise Refused(f"{name} {list(arguments)}: no multiple of q lies between the bounds")
    return found


def _range_problems(lower: float, upper: float, q: float | None, log: bool) -> Iterator[str]:
    if lower >= upper:
        yield f"the lower bound {lower} is not below the upper bound {upper}"
    if log and min(lower, upper) <= 0:
        yield "both bounds must be greater than 0, for the scale is logarithmic"
    if q is not None and q <= 0:
        yield f"q must be greater than 0 (got {q})"


def _divides(q: float, bound: float) -> bool:
    return math.isclose(bound / q, round(bound / q))


def refuse(complaints: Iterable[str]) -> None:
    """Raise Refused if there are any complaints."""
    found = tuple(complaints)
    if found:
        raise Refused(*found)
