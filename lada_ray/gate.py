"""The promotion gate: whether a candidate may take the champion's place, judged image by image on held-out images.

A check compares whether two models were right on the same n images. The difference of an image is +1, 0 or -1, the
estimate is the mean of the differences in points, and it has to reach a limit:

    max_drop            a domain learnt before   candidate - champion    at least -max_drop
    min_gain            a new domain             candidate - zero-shot   at least min_gain
    max_transfer_drop   a guard domain           candidate - champion    at least -max_transfer_drop

Its 95 % interval comes from the paired bootstrap (`interval`). A check is

    passed      when the estimate reaches the limit,
    blocked     when it does not and that is no chance: the interval lies wholly below 0 (a drop is a drop), or below
                the gain that is asked for,
    undecided   when it does not and it may be chance: it passes, flagged.

What few images can say:

- No test images: nothing is known, so the check is undecided.
- Fewer than 6 (`FEWEST`): a failing check stays undecided. Even if the candidate lost all of 5 images, a sign test
  would give that a probability of 6 % (2 / 2^5) between two equally good models.
- All differences equal, identical predictions above all: every resample is the same, so the bootstrap would claim to
  know the mean exactly. The interval is the exact binomial one instead. Identical predictions pass as no drop; as a
  gain of 0 they are undecided among few images, and blocked once these rule out min_gain (about 370 for 1 point).
- Zero-shot CLIP is wrong on fewer than min_gain points: no more gain is asked for than there is room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from lada_ray.domains.base import STRICT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Bools = npt.NDArray[np.bool_]
Role = Literal["earlier", "new", "guard"]
Rule = Literal["max_drop", "min_gain", "max_transfer_drop"]
Verdict = Literal["passed", "undecided", "blocked"]

RULES: dict[Role, Rule] = {"earlier": "max_drop", "new": "min_gain", "guard": "max_transfer_drop"}
"""Which limit holds for a domain."""
RESAMPLES = 10_000
OUTSIDE = 0.025
"""Share of the resamples beyond each end of the interval."""
FEWEST = 6
"""Test images without which no check blocks."""


class Limits(BaseModel):
    """What the gate asks for, in points of accuracy (0 to 100)."""

    model_config = STRICT

    max_drop: float = Field(default=1.0, ge=0, le=100)
    """Points of accuracy that a domain learnt before may lose against the champion."""
    min_gain: float = Field(default=1.0, ge=0, le=100)
    """Points by which the new domain has to beat zero-shot CLIP."""
    max_transfer_drop: float = Field(default=1.0, ge=0, le=100)
    """Points that a guard domain, which is not learnt, may lose against the champion."""


@dataclass(frozen=True)
class Scores:
    """Which of a domain's held-out test images three models get right, [n] each, image by image the same.

    Attributes:
        domain: its name.
        role: `earlier`: learnt before, more images of its classes now or not; `new`: learnt by the candidate alone;
            `guard`: learnt by neither.
        candidate: of the model that may be promoted.
        champion: of the one that it would replace; before there is one, zero-shot CLIP.
        zero_shot: of CLIP as it is.

    Raises:
        ValueError: an array is not of bools, not [n], or they differ in length.
    """

    domain: str
    role: Role
    candidate: Bools
    champion: Bools
    zero_shot: Bools

    def __post_init__(self) -> None:
        arrays = {name: getattr(self, name) for name in ("candidate", "champion", "zero_shot")}
        shapes = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
        # Predicted indices, say, would silently count as right wherever they are not 0.
        if any(a.dtype != np.bool_ or a.ndim != 1 for a in arrays.values()) or len({*shapes.values()}) > 1:
            raise ValueError(f"{self.domain}: scores have to be bools of one shape [n] (got {shapes})")


@dataclass(frozen=True)
class Check:
    """One comparison and what came of it.

    Attributes:
        name: the limit that it is about.
        domain: whose images.
        before: accuracy in % of what the candidate is compared with; NaN without images, as the next four.
        after: accuracy in % of the candidate.
        estimate: after - before, in points.
        low: lower end of the estimate's 95 % interval, in points.
        high: its upper end.
        limit: what the estimate has to reach, in points; negative where a drop is allowed.
        n: test images.
        verdict: `passed`, `undecided` (passes, flagged) or `blocked`.
    """

    name: Rule
    domain: str
    before: float
    after: float
    estimate: float
    low: float
    high: float
    limit: float
    n: int
    verdict: Verdict

    @property
    def missed_by(self) -> float:
        """Points by which the estimate falls short of the limit; 0 where it does not, NaN without images."""
        return math.nan if math.isnan(self.estimate) else max(self.limit - self.estimate, 0.0)

    @property
    def said(self) -> str:
        """The check in one line, for people."""
        head = f"{self.domain} ({self.name})"
        if self.n == 0:
            return f"{head}: no test images, so nothing is known; passes"
        against = "zero-shot CLIP" if self.name == "min_gain" else "the champion"
        change = f"{self.before:.1f} % to {self.after:.1f} %, {self.estimate:+.2f} points against {against}"
        sure = f"95 % interval {self.low:+.2f} to {self.high:+.2f}, {_images(self.n)}"
        return f"{head}: {change} ({sure}); at least {self.limit:+.2f} is asked for: {self._ruling}"

    @property
    def _ruling(self) -> str:
        if self.verdict == "passed":
            return "passed"
        missed = f"missed by {self.missed_by:.2f}"
        if self.verdict == "blocked":
            return f"{missed}, BLOCKED"
        return (
            f"{missed}, which {'so few images cannot prove' if self.n < FEWEST else 'may be chance'}; passes"
        )

    def to_json(self) -> dict[str, Any]:
        """The check as JSON has it: NaN is null; with the line for people."""
        fields = {k: None if v != v else v for k, v in asdict(self).items()}
        return {**fields, "said": self.said}


@dataclass(frozen=True)
class Gate:
    """All checks of a candidate, in the order of its scores."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the candidate may be promoted."""
        return not self.blocked

    @property
    def blocked(self) -> tuple[Check, ...]:
        """The checks that keep it from that."""
        return tuple(check for check in self.checks if check.verdict == "blocked")

    @property
    def flagged(self) -> tuple[Check, ...]:
        """The checks that failed or could not be made, and do not keep it from that."""
        return tuple(check for check in self.checks if check.verdict == "undecided")

    @property
    def said(self) -> str:
        """The result in one line, for people."""
        checks = f"{len(self.checks)} check" + "s" * (len(self.checks) != 1)
        flagged = f"; undecided: {_named(self.flagged)}" if self.flagged else ""
        if self.passed:
            return f"the gate is passed ({checks}{flagged})"
        return f"the gate is closed: {len(self.blocked)} of {checks} blocked, {_named(self.blocked)}{flagged}"

    def to_json(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {
            "passed": self.passed,
            "said": self.said,
            "blocked": [f"{check.name} {check.domain}" for check in self.blocked],
            "flagged": [f"{check.name} {check.domain}" for check in self.flagged],
            "checks": [check.to_json() for check in self.checks],
        }


def judge(scores: Sequence[Scores], limits: Limits) -> Gate:
    """Hold a candidate against the limits; the same scores give the same result, whatever the images' order.

    Args:
        scores: of every domain to be checked, one check each.
        limits: in points.

    Raises:
        ValueError: there is nothing to check, and no check is no proof.
    """
    if not scores:
        raise ValueError("a gate needs the scores of at least one domain")
    return Gate(tuple(_check(one, limits) for one in scores))


def interval(lost: int, same: int, won: int) -> tuple[float, float]:
    """Where the mean difference between two models lies, in points, by the paired bootstrap.

    Resampling images with replacement draws from three kinds of them, so a multinomial draw of their counts is the
    exact paired bootstrap (Efron 1979, percentile interval), in a time that does not depend on the number of images.
    When all differences are equal, the share u of images that would differ otherwise is bounded by the exact binomial
    interval (Clopper and Pearson 1934): (1 - u)^n = 2.5 %.

    Args:
        lost: images that only the model compared with gets right.
        same: images on which both are right, or both wrong.
        won: images that only the candidate gets right; together at least one.

    Returns:
        2.5 % and 97.5 % ends, -100 to 100. The draws are seeded by the counts.
    """
    counts = (lost, same, won)
    n = sum(counts)
    if n in counts:
        other, mean = 1 - OUTSIDE ** (1 / n), (won - lost) / n
        return 100 * (mean - other * (mean + 1)), 100 * (mean + other * (1 - mean))
    drawn = np.random.default_rng(counts).multinomial(n, np.array(counts) / n, RESAMPLES)
    net = np.sort(drawn[:, 2] - drawn[:, 0])
    outside = int(OUTSIDE * RESAMPLES)
    # Divided last, as the estimate is: an end that is the limit is that number to the bit.
    return 100 * int(net[outside - 1]) / n, 100 * int(net[-outside]) / n


def _check(scores: Scores, limits: Limits) -> Check:
    """Compare the candidate with what its limit is about."""
    name = RULES[scores.role]
    reference = scores.zero_shot if name == "min_gain" else scores.champion
    n, right, now = len(reference), int(reference.sum()), int(scores.candidate.sum())
    limit = _limit(name, limits, n, right)
    if n == 0:
        nan = math.nan
        return Check(name, scores.domain, nan, nan, nan, nan, nan, limit, n, "undecided")
    lost = int((reference & ~scores.candidate).sum())
    won = int((scores.candidate & ~reference).sum())
    low, high = interval(lost, n - lost - won, won)
    # One correctly rounded division: losing 7 of 1000 images is -0.7 exactly, and no more than 0.7.
    estimate = 100 * (won - lost) / n
    verdict = _verdict(estimate, high, limit, n)
    return Check(name, scores.domain, 100 * right / n, 100 * now / n, estimate, low, high, limit, n, verdict)


def _limit(name: Rule, limits: Limits, n: int, right: int) -> float:
    """What the estimate has to reach, in points, where the model compared with gets `right` of n images right."""
    asked = float(getattr(limits, name))
    if name != "min_gain":
        return -asked
    return min(asked, 100 * (n - right) / n) if n else asked


def _verdict(estimate: float, high: float, limit: float, n: int) -> Verdict:
    if estimate >= limit:
        return "passed"
    return "blocked" if n >= FEWEST and high < max(limit, 0.0) else "undecided"


def _images(n: int) -> str:
    return f"{n} image" + "s" * (n != 1)


def _named(checks: Sequence[Check]) -> str:
    return ", ".join(f"{check.domain} ({check.name})" for check in checks)


# ---------------------------------------------------------------- for the terminal


def print_gate(gate: Gate, console: Console) -> None:
    """Print the checks as a table and, below it, the result and a line for each that is not passed.

    Args:
        gate: what came of the checks.
        console: where to print.
    """
    from rich.text import Text

    from lada_ray.report import print_columns  # pandas, which the gate itself does not need

    print_columns(console, [check.domain for check in gate.checks], _columns(gate))
    console.print(Text(gate.said, style="bold green" if gate.passed else "bold red"))
    for check in (*gate.blocked, *gate.flagged):
        console.print(Text(check.said), soft_wrap=True)


def _columns(gate: Gate) -> dict[str, list[Text]]:
    """The table's cells by heading; accuracies in %, the rest in points."""
    from rich.text import Text

    styles = {"passed": "green", "undecided": "yellow", "blocked": "bold red"}
    rows = [
        {
            "check": c.name,
            "before": _number(c.before, ".1f"),
            "after": _number(c.after, ".1f"),
            "change": _number(c.estimate, "+.2f"),
            "95 % interval": f"{_number(c.low, '+.2f')} to {_number(c.high, '+.2f')}" if c.n else "",
            "at least": f"{c.limit:+.2f}",
            "images": str(c.n),
            "verdict": c.verdict,
        }
        for c in gate.checks
    ]
    return {
        heading: [
            Text(row[heading], style=styles.get(row["verdict"], "") * (heading == "verdict")) for row in rows
        ]
        for heading in rows[0]
    }


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
