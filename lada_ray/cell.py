"""One whole stream, learnt and tested inside one process from what the bank holds: a cell of a comparison.

It leaves a run's folder like any other: `run_stream` continues it, `LadaModel` loads it. The report alone is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.encoder import EncoderInfo, EncoderSpec
from lada_ray.encoder.clip import device_for
from lada_ray.evaluate import Evaluation, Evaluator, Row, write_tests
from lada_ray.features.fill import Images
from lada_ray.fit.learners import learn_remaining
from lada_ray.fit.plan import FitPlan
from lada_ray.model import cached_pack
from lada_ray.prepare import Stream, pack_identities, plan_evaluation, plan_fit, plan_tasks
from lada_ray.results import accuracy_table, metrics_of
from lada_ray.run import Json, Run, RunLedger
from lada_ray.store import join


@dataclass(frozen=True)
class Cell:
    """A stream by reference: what a process needs to learn it, besides what is in storage."""

    config: StreamConfig
    spec: EncoderSpec
    info: EncoderInfo
    fit: FitPlan
    evaluation: Evaluation
    identities: tuple[Json, ...]
    gpus: float = 0.0
    """Share of a GPU that its task reserves."""

    @classmethod
    def of(cls, stream: Stream, images: Images, gpus: float = 0.0) -> Cell:
        """The stream as a cell; all views of the images are in the bank."""
        folder = join(stream.config.storage, stream.config.name)
        evaluation = plan_evaluation(stream, images, join(folder, "model"))
        fit = plan_fit(stream, plan_tasks(stream, images))
        identities = pack_identities(stream, images)
        return cls(stream.config, stream.spec, stream.info, fit, evaluation, identities, gpus)


@dataclass(frozen=True)
class Learnt:
    """What a cell came to."""

    rows: tuple[Row, ...]
    """Zero-shot, then after each task."""
    metrics: Json
    """The content of metrics.json."""
    seconds: float
    """Of all its fits, those of earlier starts too."""
    folder: str


def learn_cell(cell: Cell, fresh: bool = False, count: Callable[[int], None] = lambda number: None) -> Learnt:
    """Learn and test what is not learnt yet, as the only writer of the cell's run folder; in a Ray task.

    Args:
        cell: the stream.
        fresh: forget what was learnt under this name.
        count: told how many tasks are learnt, as they are.

    Raises:
        InputError: the run was started differently.
        LeaseHeld: another live process is writing it.
    """
    # This process learns other cells too: what they read need not stay in memory.
    cached_pack.cache_clear()
    with Run.acquire(cell.config, fresh, lambda message: None) as run:
        run.begin(cell.config, cell.spec, cell.info, cell.identities)
        write_tests(run.store, cell.evaluation.tests)
        rows = _learn(cell, run, count)
        accuracy = accuracy_table(rows[1:])
        metrics = metrics_of(accuracy, rows[0], images_encoded=0)
        run.lease.check()
        run.store.write("accuracy_matrix.csv", accuracy.to_csv().encode())
        run.store.write("metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False).encode())
        run.tidy()
        seconds = sum(run.record(digest)["timings"]["fit"] for digest in run.packs)
        return Learnt(tuple(rows), metrics, seconds, run.store.uri)


def _learn(cell: Cell, run: Run, count: Callable[[int], None]) -> Sequence[Row]:
    evaluator = Evaluator(run.store, cell.evaluation, Console(quiet=True), here=True)
    names, packs = [task.name for task in cell.fit.tasks], run.packs
    rows = [evaluator.row([], "zero-shot")]
    rows += [evaluator.row(packs[: i + 1], names[i]) for i in range(len(packs))]
    count(len(packs))
    ledger = RunLedger(run.store.uri, run.epoch, cell.identities)
    for _ in learn_remaining(cell.fit, ledger, device_for(cell.gpus)):
        rows.append(evaluator.row(run.packs, names[len(rows) - 1]))
        count(1)
    return rows
