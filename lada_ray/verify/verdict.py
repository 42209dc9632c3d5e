"""The verification of a run as a whole, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lada_ray.console import Console
from lada_ray.evaluate import Evaluation
from lada_ray.verify.changes import changes, own_counts
from lada_ray.verify.images import image_changes, images_now
from lada_ray.verify.numbers import Difference, Number, compare, recomputed_numbers, recorded_numbers
from lada_ray.verify.record import UNREADABLE, read_run
from lada_ray.verify.rows import damaged_parts, lacking, recompute, tests_of

SHOWN = 40


@dataclass(frozen=True)
class Verdict:
    """What a verification found."""

    folder: str
    cells: int
    """Numbers that were compared: the cells of the accuracy matrix, and those of metrics.json."""
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    """What is not as it was when the run was learnt: it would explain differences, or lead to them."""
    problems: tuple[str, ...]
    """Why it cannot be verified."""

    @property
    def same(self) -> bool:
        """Whether it was verified, and every recorded number recomputed."""
        return self.cells > 0 and not self.differences and not self.problems


def verify(folder: str, console: Console | None = None) -> Verdict:
    """Recompute a run's accuracy matrix and metrics from its packs and the bank, and compare everything it records.

    Args:
        folder: the run's folder, a path or URI.
        console: shows progress.

    Raises:
        InputError: it is no run's folder, or a production model's.
        IntegrityError: model.json is damaged.
    """
    console = console or Console()
    with console.stage("read packs"):
        run = read_run(folder)
    images, notes = images_now(run, console)
    tests, problems = tests_of(run, images)
    notes = [*run.notes, *changes(run, tests), *notes, *image_changes(run, tests, images)]
    problems = [*run.problems, *problems] or lacking(run, tests)
    if problems:
        return Verdict(run.store.uri, 0, (), tuple(notes), tuple(problems))
    evaluation = Evaluation(tests, run.bank, run.model_store.uri, run.model.prediction)
    try:
        rows = recompute(evaluation, run.packs, console)
    except UNREADABLE as error:
        problems = [f"the bank {run.bank.store.uri} cannot be read: {error}", *damaged_parts(run.bank, tests)]
        return Verdict(run.store.uri, 0, (), tuple(notes), tuple(problems))
    recorded, problems = recorded_numbers(run.store)
    numbers = recomputed_numbers(rows)
    found = [] if problems else compare(recorded, numbers, rows[0])
    notes += own_counts(run, evaluation, rows, bool(found))
    notes += damaged_parts(run.bank, tests) if found else []
    return Verdict(run.store.uri, len(numbers), tuple(found), tuple(notes), tuple(problems))


def show(verdict: Verdict, console: Console) -> None:
    """Print what a verification found; the last line is the verdict."""
    if verdict.differences:
        console.say(_table(verdict.differences[:SHOWN]))
    if len(verdict.differences) > SHOWN:
        console.say(f"and {len(verdict.differences) - SHOWN} more")
    for note in verdict.notes:
        console.warn(note)
    if verdict.differences and not verdict.notes:
        console.say("nothing else that the run records has changed; another processor may round differently")
    for problem in verdict.problems:
        console.say(f"  - {problem}")
    console.say(_conclusion(verdict))


def _table(rows: Sequence[Difference]) -> str:
    def number(value: Number) -> str:
        return "none" if value is None else f"{value:.10g}"

    said = [(d.file, d.row, d.domain, number(d.recorded), number(d.recomputed), d.images) for d in rows]
    columns = ["file", "row", "domain", "recorded", "recomputed", "images"]
    return pd.DataFrame(said, columns=columns).to_string(index=False)


def _conclusion(verdict: Verdict) -> str:
    where, changed = verdict.folder, len(verdict.notes)
    if verdict.problems:
        return f"{where} cannot be verified"
    if verdict.differences:
        return f"{where} differs: {len(verdict.differences)} of {verdict.cells} numbers are not the recorded ones"
    but = f"; but {changed} {'thing has' if changed == 1 else 'things have'} changed since" if changed else ""
    return f"{where} is the same: all {verdict.cells} numbers are the recorded ones{but}"
