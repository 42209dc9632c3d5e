"""Comparing learners, and LADA with its own parts: variants x orders x seeds of one stream, all on one bank.

Every cell is a run of its own, `<storage>/<name>.<variant>.seed-<n>`, learnt by one Ray task; what they
share (features, k-means, mixtures) is made once, before. An interrupted comparison continues: cells that are learnt
are looked up.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, get_args

import numpy as np
import pandas as pd

from lada_ray.cell import Cell, Learnt, learn_cell
from lada_ray.cluster import cause
from lada_ray.comparison import Outcome, comparison_html, figure_png, print_comparison, to_csv, to_markdown
from lada_ray.config import MethodConfig, StreamConfig, tracking_uri
from lada_ray.console import Console
from lada_ray.errors import InputError, LadaError
from lada_ray.features.fill import Choice, Images
from lada_ray.prepare import (
    Stream,
    check_input,
    choose,
    encode,
    fit_all_classes,
    pack_identities,
    plan_tasks,
    prepare,
)
from lada_ray.results import accuracy_table, bad_images
from lada_ray.run import Run, started_differently
from lada_ray.store import Store, join, open_store
from lada_ray.tracking import Group, flat_params, tracked
from lada_ray.watching import Counter

ABLATIONS: dict[str, dict[str, Any]] = {
    "no_tuner": {"text_tuner": "none"},
    "no_memory": {"alpha": 0.0},
    "no_replay": {"replay": False},
    "no_noise": {"replay_noise": False},
    "ungated": {"fusion": "additive"},
}
"""LADA without one of its parts: settings of the method that switch it off."""
# Inverse and temporaries of RAIL's primal form, in bytes.
PRIMAL_MEMORY = 5e9


@dataclass(frozen=True)
class Grid:
    """What is compared."""

    methods: Sequence[str]
    ablations: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)
    orders: int = 1
    """Orders of the domains: the configured one, then random permutations."""
    baseline: str = "lada"

    def variants(self) -> dict[str, dict[str, Any]]:
        """Settings of the method by variant."""
        kinds = {kind: {"kind": kind} for kind in self.methods}
        return kinds | {name: {"kind": "lada", **ABLATIONS[name]} for name in self.ablations}

    def cells(self) -> list[Key]:
        """Every cell, in the order of the table."""
        return [
            Key(v, order, seed)
            for v in self.variants()
            for order in range(self.orders)
            for seed in self.seeds
        ]


@dataclass(frozen=True)
class Key:
    """Names a cell."""

    variant: str
    order: int
    seed: int

    def __str__(self) -> str:
        order = f", order {self.order}" if self.order else ""
        return f"{self.variant}, seed {self.seed}{order}"

    @property
    def suffix(self) -> str:
        """What the cell's run is called after the configuration's name."""
        order = f".order-{self.order}" if self.order else ""
        return f"{self.variant}.seed-{self.seed}{order}"


@dataclass
class Comparison:
    """What `compare` returns."""

    outcomes: list[Outcome]
    """Of all cells that are learnt."""
    folder: str
    """Where table, picture and page lie."""
    encoded: int
    """Image views that it added to the bank, all its starts together."""
    failed: dict[Key, LadaError] = field(default_factory=dict)
    """Why cells are not learnt; the same comparison started again tries them again."""

    def raise_failures(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            LadaError: cells failed, with the reason of each.
        """
        if self.failed:
            total = len(self.failed) + len(self.outcomes)
            lines = [f"  - {key}: {error}" for key, error in self.failed.items()]
            head = f"{len(lines)} of {total} streams failed; the same command tries them again:"
            raise LadaError("\n".join([head, *lines]))


def compare(config: StreamConfig, grid: Grid, console: Console, fresh: bool = False) -> Comparison:
    """Learn one stream in many ways, and say how they compare.

    Args:
        config: the stream; its name names the comparison, its method's settings are those of LADA.
        grid: what to compare.
        console: shows progress.
        fresh: forget what was learnt in an earlier comparison of this name.

    Raises:
        InputError: domains, encoder or images cannot be used, or the grid makes no sense; all at once.
        LeaseHeld: another process is making this comparison.
        LostLease: another process took this comparison over.
    """
    _check(grid, len(config.domains))
    uri = tracking_uri(config, os.environ)
    domains, spec = check_input(config, console)
    whole = config.model_copy(update={"name": f"{config.name}.compare"})
    with Run.acquire(whole, fresh, console.say) as run:
        stream = replace(prepare(_demanding(config, grid), domains, spec, console), config=config)
        if not fresh:
            _check_started(stream, grid)
        run.forget()
        run.store.write("config.yaml", whole.without_password().to_yaml().encode())
        run.store.write("grid.json", json.dumps(asdict(grid), indent=1).encode())
        images = _encode(stream, grid, run, console)
        cells = {key: _cell(stream, images[key.seed], grid, key) for key in grid.cells()}
        _fit_classes(stream, images, grid, console)
        with tracked(_group(whole, grid, run, uri, console)) as group:
            comparison = Comparison([], run.store.uri, stream.bank.table.added_by(run.id))
            _learn_all(cells, fresh, run, comparison, group, console)
            run.lease.check()
            _finish(run.store, grid, comparison, group, console)
    return comparison


def _check(grid: Grid, domains: int) -> None:
    known = {"methods": get_args(MethodConfig.model_fields["kind"].annotation), "ablations": tuple(ABLATIONS)}
    problems = []
    for name in ("methods", "ablations", "seeds"):
        given = getattr(grid, name)
        if len(set(given)) < len(given):
            problems.append(f"{name}: {', '.join(map(str, given))} has one of them twice")
        unknown = [one for one in given if name in known and one not in known[name]]
        problems += [f"{name}: there is no {one} (one of {', '.join(known[name])})" for one in unknown]
    problems += [f"seeds: must not be negative (got {seed})" for seed in grid.seeds if seed < 0]
    variants = [*grid.methods, *grid.ablations]
    if grid.baseline not in variants:
        problems.append(f"baseline: {grid.baseline} is not among what is compared ({', '.join(variants)})")
    if not grid.methods or not grid.seeds or grid.orders < 1:
        problems.append("methods, seeds and orders: at least one of each is needed")
    if grid.orders > math.factorial(domains):
        problems.append(
            f"orders: {domains} domains have {math.factorial(domains)} orders (got {grid.orders})"
        )
    if problems:
        raise InputError(problems, "This cannot be compared")


def _check_started(stream: Stream, grid: Grid) -> None:
    """Refuse, before anything is encoded, if cells learnt under this name were started differently."""
    problems = []
    for key in grid.cells():
        cell = _changed(stream, grid, key)
        store = open_store(join(cell.config.storage, cell.config.name, "model"))
        found = started_differently(store, cell.config, cell.spec, cell.info, pack_identities(cell))
        problems += [f"{key}: {line}" for line in found]
    if problems:
        raise InputError(
            problems, "This was started differently (use another --name, or --fresh to start over)"
        )


def _demanding(config: StreamConfig, grid: Grid) -> StreamConfig:
    """With the method that asks most of the encoder: a text tower that can be tuned, if a variant tunes it."""
    methods = [config.method.model_copy(update=settings) for settings in grid.variants().values()]
    hardest = max(methods, key=lambda method: method.trains and method.text_tuner != "none")
    return config.model_copy(update={"method": hardest})


def _encode(stream: Stream, grid: Grid, run: Run, console: Console) -> dict[int, Images]:
    """The images of each seed, all views of which are in the bank; one pipeline for all seeds."""
    c = stream.config
    for seed in grid.seeds[: None if c.shots else 1]:
        # Before anything is encoded: each seed chooses other shots, which may be test images too.
        choose(replace(stream, config=c.model_copy(update={"seed": seed})), run, console)
    views = c.views if any(_method(stream, s).trains for s in grid.variants().values()) else 0
    choices = [Choice(c.shots, views, seed, c.max_bad_share) for seed in grid.seeds]
    images, _ = encode(stream, choices, run, console)
    _write_bad(run.store, images)
    return dict(zip(grid.seeds, images, strict=True))


def _write_bad(store: Store, images: Iterable[Images]) -> None:
    """Write bad_images.csv of all seeds together into the comparison's folder."""
    bad = dict.fromkeys((b.domain, b.path, b.reason) for some in images for b in bad_images(some))
    table = pd.DataFrame(list(bad), columns=["domain", "path", "reason"])
    store.write("bad_images.csv", table.to_csv(index=False).encode(errors="surrogateescape"))


def _method(stream: Stream, settings: Mapping[str, Any]) -> Any:
    return stream.config.method.model_copy(update=dict(settings))


def _cell(stream: Stream, images: Images, grid: Grid, key: Key) -> Cell:
    changed, names = _changed(stream, grid, key), _order(stream.names, key.order)
    some = images.in_order(names).with_views(changed.choice.views)
    return Cell.of(changed, some, changed.resources.gpu_share if changed.config.method.trains else 0.0)


def _changed(stream: Stream, grid: Grid, key: Key) -> Stream:
    """The stream of one cell."""
    names = _order(stream.names, key.order)
    by_name = dict(zip(stream.names, zip(stream.domains, stream.config.domains, strict=True), strict=True))
    cpus = stream.config.resources.cpus_per_train_worker or 1.0
    config = stream.config.model_copy(
        update={
            "name": f"{stream.config.name}.{key.suffix}",
            "seed": key.seed,
            "domains": tuple(by_name[name][1] for name in names),
            "method": _method(stream, grid.variants()[key.variant]),
        }
    )
    resources = replace(stream.resources, cpus_per_train_worker=cpus)
    return replace(
        stream, config=config, domains=tuple(by_name[name][0] for name in names), resources=resources
    )


def _order(names: Sequence[str], order: int) -> list[str]:
    """The configured order, or the n-th random one: all differ, and depend on n and the number of domains alone."""
    rng = np.random.default_rng(len(names))
    orders = [list(range(len(names)))]
    while len(orders) <= order:
        drawn = rng.permutation(len(names)).tolist()
        orders += [drawn] if drawn not in orders else []
    return [names[i] for i in orders[order]]


def _fit_classes(stream: Stream, images: Mapping[int, Images], grid: Grid, console: Console) -> None:
    """k-means and mixtures of all classes, which all cells share."""
    for seed, some in images.items():
        first = next((v for v, s in grid.variants().items() if _method(stream, s).trains), None)
        if first is not None:
            changed = _changed(stream, grid, Key(first, 0, seed))
            fit_all_classes(changed, plan_tasks(changed, some), console)


def _learn_all(
    cells: Mapping[Key, Cell],
    fresh: bool,
    run: Run,
    comparison: Comparison,
    group: Group,
    console: Console,
) -> None:
    """Learn every cell in a Ray task of its own, long ones first; fills in outcomes and failures."""
    import ray

    learnt: dict[Key, Learnt] = {}
    longest_first = sorted(cells, key=lambda key: not cells[key].config.method.trains)
    count, tasks = Counter(), sum(len(cell.fit.tasks) for cell in cells.values())
    pending = {_start(cells[key], fresh, count): key for key in longest_first}
    try:
        with console.stage("learn"):
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1, timeout=1)
                for reference in done:
                    _take(reference, pending.pop(reference), cells, learnt, comparison, group, console)
                run.lease.check()
                console.progress("tasks", count.read(), tasks)
    finally:
        # Ctrl-C, or another owner: nobody waits for these any more.
        for reference in pending:
            ray.cancel(reference)
    comparison.outcomes = [_outcome(key, learnt[key]) for key in cells if key in learnt]


def _take(
    reference: Any,
    key: Key,
    cells: Mapping[Key, Cell],
    learnt: dict[Key, Learnt],
    comparison: Comparison,
    group: Group,
    console: Console,
) -> None:
    """Take what a cell's task came to, show and log it."""
    import ray

    try:
        learnt[key] = ray.get(reference)
    except ray.exceptions.RayError as error:
        comparison.failed[key] = cause(error)
        console.warn(f"{key} failed: {comparison.failed[key]}")
        group.begin(key.suffix, str(key), flat_params(cells[key].config.model_dump(mode="json")))
        group.end(key.suffix, "FAILED", tags={"error": str(comparison.failed[key])})
        return
    _log(group, key, cells[key], learnt[key])
    console.say(_line(key, learnt[key]))


def _start(cell: Cell, fresh: bool, count: Counter) -> Any:
    import ray

    # Starting over twice would forget what the first try has learnt.
    options: dict[str, Any] = {"num_cpus": float(cell.fit.threads), "max_retries": 0 if fresh else 2}
    if cell.config.method.kind == "rail_primal":
        options["memory"] = min(PRIMAL_MEMORY, _largest_memory())
    if cell.gpus > 0:
        options["num_gpus"] = cell.gpus
    task: Any = ray.remote(**options)(learn_cell)
    return task.remote(cell, fresh, count)


def _largest_memory() -> float:
    """Of any node, in bytes: what asks for more waits for ever."""
    import ray

    return max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)


def _outcome(key: Key, learnt: Learnt) -> Outcome:
    accuracy = accuracy_table(learnt.rows[1:])
    return Outcome(key.variant, key.order, key.seed, learnt.metrics, accuracy, learnt.seconds, learnt.folder)


def _line(key: Key, learnt: Learnt) -> str:
    values = {name: learnt.metrics[name] for name in ("transfer", "average", "last")}
    shown = ", ".join(f"{name.title()} {value:.1f}" for name, value in values.items() if value is not None)
    return f"  {key}: {shown} ({learnt.seconds:.1f} s)"


def _log(group: Group, key: Key, cell: Cell, learnt: Learnt) -> None:
    """A nested run with a point per task."""
    group.begin(key.suffix, str(key), flat_params(cell.config.model_dump(mode="json")))
    for step, row in enumerate(learnt.rows):
        accuracy = row.accuracy()
        values = {f"accuracy/{domain}": value for domain, value in accuracy.items()}
        group.log(key.suffix, {**values, "mean_accuracy": sum(accuracy.values()) / len(accuracy)}, step=step)
    metrics = {name: value for name, value in learnt.metrics.items() if not isinstance(value, Mapping)}
    tags = {"variant": key.variant, "folder": learnt.folder}
    group.end(key.suffix, "FINISHED", metrics={**metrics, "time/fit": learnt.seconds}, tags=tags)


def _group(whole: StreamConfig, grid: Grid, run: Run, uri: str, console: Console) -> Group:
    """The comparison in MLflow."""
    params = {
        **flat_params(whole.model_dump(mode="json")),
        "variants": ", ".join(grid.variants()),
        "seeds": ", ".join(map(str, grid.seeds)),
        "orders": grid.orders,
        "baseline": grid.baseline,
    }
    return Group(uri, whole.tracking.experiment, run.id, whole.name, "comparison", params, console.warn)


def _finish(store: Store, grid: Grid, comparison: Comparison, group: Group, console: Console) -> None:
    """Write table, picture and page, and close the parent run."""
    status: Any = "FAILED" if comparison.failed else "FINISHED"
    files = {"comparison.csv": to_csv(comparison.outcomes).encode()} if comparison.outcomes else {}
    if any(outcome.variant == grid.baseline for outcome in comparison.outcomes):
        with console.stage("report"):
            files |= _files(store, grid, comparison, console)
    for name, data in files.items():
        store.write(name, data)
    with console.stage("track"):
        group.finish(status, files=files)


def _files(store: Store, grid: Grid, comparison: Comparison, console: Console) -> dict[str, bytes]:
    outcomes = comparison.outcomes
    page = comparison_html(
        outcomes,
        grid.baseline,
        title=store.uri.rpartition("/")[2].removesuffix(".compare"),
        folder=store.uri,
        finished=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        notes=console.notes,
    )
    return {
        "comparison.md": to_markdown(outcomes, grid.baseline).encode(),
        "comparison.png": figure_png(outcomes),
        "comparison.html": page.encode(),
    }


def show(grid: Grid, comparison: Comparison, console: Console) -> None:
    """Print the table, and where everything lies."""
    names = ["csv"] if comparison.outcomes else []
    if any(outcome.variant == grid.baseline for outcome in comparison.outcomes):
        print_comparison(comparison.outcomes, grid.baseline, console.rich)
        names = ["html", "csv", "md", "png"]
    for name in names:
        console.say(join(comparison.folder, f"comparison.{name}"))
    console.say(f"{console.wall_seconds:.0f} s; the comparison has encoded {comparison.encoded} image views")
