"""The numbers that a run records, those that its rows give, and where they differ."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lada_ray.evaluate import Row
from lada_ray.results import accuracy_table, metrics_of
from lada_ray.store import Store

MATRIX, METRICS = "accuracy_matrix.csv", "metrics.json"
# Accuracies are ratios of counts: those that are really different differ by far more than rounding does.
SAME = 1e-9

Number = float | None
Numbers = dict[tuple[str, str, str], Number]
"""A number, or None where there is none, by (file, row or metric, domain)."""


@dataclass(frozen=True)
class Difference:
    """A number that is not the recorded one."""

    file: str
    row: str
    """What was learnt last, or the metric."""
    domain: str
    recorded: Number
    """None: it is not there, or no number."""
    recomputed: Number
    tested: int = 0
    """Test images of which it is a share; 0 for a mean over domains."""

    @property
    def images(self) -> str:
        """How many more images are right than recorded, of how many."""
        if not self.tested or self.recorded is None or self.recomputed is None:
            return ""
        return f"{round((self.recomputed - self.recorded) * self.tested / 100):+d} of {self.tested}"


def recorded_numbers(store: Store) -> tuple[Numbers, list[str]]:
    """What accuracy_matrix.csv and metrics.json of a run's folder say, and why they cannot be read."""
    numbers: Numbers = {}
    problems = []
    for name, parse in ((MATRIX, _matrix_numbers), (METRICS, _metric_numbers)):
        try:
            numbers |= parse(store.read(name))
        except FileNotFoundError:
            problems.append(f"{name} is missing: the run was stopped before its end; start it again")
        except (ValueError, AttributeError, IndexError) as error:
            problems.append(f"{name} is damaged: {error}")
    return numbers, problems


def recomputed_numbers(rows: Sequence[Row]) -> Numbers:
    """What accuracy_matrix.csv and metrics.json should say, given the zero-shot row and those after each pack."""
    cells = {
        (MATRIX, row.learnt, domain): value for row in rows[1:] for domain, value in row.accuracy().items()
    }
    return {**cells, **_flat(metrics_of(accuracy_table(rows[1:]), rows[0], 0))}


def compare(recorded: Numbers, recomputed: Numbers, tested: Row) -> list[Difference]:
    """The numbers that are not the same, or stand on one side alone; any row tells how many images were tested on."""
    count = {domain: sum(total) for domain, total in tested.total.items()}
    return [
        Difference(*key, recorded.get(key), recomputed.get(key), count.get(key[2], 0))
        for key in dict.fromkeys([*recomputed, *recorded])
        if not _same(recorded.get(key), recomputed.get(key))
    ]


def _matrix_numbers(data: bytes) -> Numbers:
    header, *rows = csv.reader(io.StringIO(data.decode()))
    return {
        (MATRIX, row[0], domain): _number(cell)
        for row in rows
        if row
        for domain, cell in zip(header[1:], row[1:], strict=False)
    }


def _metric_numbers(data: bytes) -> Numbers:
    return _flat(json.loads(data))


def _flat(metrics: Mapping[str, Any]) -> Numbers:
    numbers: Numbers = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            numbers |= {(METRICS, name, domain): _number(each) for domain, each in value.items()}
        elif name != "images_encoded":  # what was encoded when; no matter of packs
            numbers[METRICS, name, ""] = _number(value)
    return numbers


def _number(value: Any) -> Number:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _same(a: Number, b: Number) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=SAME, abs_tol=SAME)
