"""Made-up runs to compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lada_ray.comparison import Outcome, paired, summary

EVIL = "<script>alert('x')</script> [red]$_|*x*\n#"
DOMAINS = ("digits", "signs")


def outcome(
    variant: str,
    seed: int = 0,
    last: float | None = 80.0,
    order: int = 0,
    learnt: tuple[str, ...] | None = None,
    **other: Any,
) -> Outcome:
    """Make up a run on two domains, of which the second comes first in odd orders."""
    names = DOMAINS if order % 2 == 0 else DOMAINS[::-1]
    rows = names if learnt is None else learnt
    end = 50.0 if last is None else last
    values = np.array([[end - 20, 30.0], [end - 4, end + 4]])[-len(rows) :]
    metrics = {"transfer": 30.0, "average": 55.0, "last": last, "forgetting": 2.0, "backward_transfer": -1.0}
    zero_shot = {"zero_shot": 35.0, "zero_shot_per_domain": {"digits": 40.0, "signs": 30.0}}
    accuracy = pd.DataFrame(values, index=list(rows), columns=list(names))
    folder = f"/runs/{order}-{seed}"
    return Outcome(variant, order, seed, metrics | zero_shot | other, accuracy, 10.0 * (seed + 1), folder)


def three_seeds() -> list[Outcome]:
    """Last 80, 82, 84 against 78, 81, 81: differences -2, -1, -3."""
    lada = [outcome("lada", seed, last) for seed, last in enumerate((80, 82, 84))]
    return [*lada, *(outcome("rail_dual", seed, last) for seed, last in enumerate((78, 81, 81)))]


def without_shots(variant: str, *last: float) -> list[Outcome]:
    """A learner that learns the same from each of three seeds; Last of each order."""
    return [outcome(variant, seed, value, order) for order, value in enumerate(last) for seed in range(3)]


def joint(seed: int, last: float) -> Outcome:
    """A joint learner: one row, and no metric that needs a sequence."""
    undefined: dict[str, Any] = dict.fromkeys(("transfer", "average", "forgetting", "backward_transfer"))
    return outcome("joint", seed, last, learnt=("all",), **undefined)


def mean(outcomes: list[Outcome], variant: str, metric: str = "last") -> dict[str, Any]:
    """One metric of the summary."""
    row: dict[Any, Any] = summary(outcomes).to_dict("index")[variant]
    return {name: value for (of, name), value in row.items() if of == metric}


def difference(outcomes: list[Outcome], variant: str, metric: str = "last") -> dict[str, Any]:
    """One row of the differences to lada."""
    rows: dict[Any, Any] = paired(outcomes, "lada").to_dict("index")
    return rows[variant, metric]
