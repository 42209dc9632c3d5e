"""Searching hyperparameters of a whole stream: trials on folds of the training images, then the winner, tested once.

Ray Tune runs the trials on what the bank holds. What each came to is kept in the sweep's folder, named by its values:
the same trial is never made twice, and a sweep that is killed continues from there, without Tune's own state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lada_ray.config import StreamConfig, tracking_uri
from lada_ray.console import Console
from lada_ray.errors import InputError, LadaError
from lada_ray.features.fill import Choice, Images
from lada_ray.fit.classes import fit_classes
from lada_ray.importance import importances
from lada_ray.prepare import Stream, check_input, encode, plan_tasks, prepare
from lada_ray.results import StreamResult, show
from lada_ray.run import Run, differences
from lada_ray.space import Space
from lada_ray.store import Store, join
from lada_ray.stream import run_stream
from lada_ray.sweep_page import SweepData, print_trials, sweep_html, sweep_picture, trials_csv
from lada_ray.tracking import Group, flat_params
from lada_ray.trial import Search, changed, make_folds
from lada_ray.trials import Trial, all_kept, best
from lada_ray.tuning import Job, run_trials

FEW = 32
"""Training images per class up to which each fold is left out in turn; above, a fifth is left out once."""
IDENTITY = "sweep.json"


@dataclass(frozen=True)
class Options:
    """How to search."""

    samples: int
    """Trials; ignored by a grid, which has its own."""
    metric: str
    """What trials are judged by: transfer, average, last, or balanced, their mean."""
    scheduler: str
    """asha stops trials that are not promising; none lets all of them end."""
    search: str
    """random, optuna or grid."""
    folds: int | None
    """Parts of the training images, each left out in turn; None: 4 where images are few, else a fifth, once."""
    hours: float | None
    """Time for the trials."""
    resume: bool
    """Go on with a sweep of this name."""
    fresh: bool
    """Forget a sweep of this name."""


@dataclass
class Sweep:
    """What `run_sweep` returns."""

    trials: list[Trial]
    """In the order in which they were asked for."""
    best: Trial
    config: StreamConfig
    """The winner's, that of best.yaml."""
    importance: dict[str, float]
    result: StreamResult
    """The winner, learnt on all training images and tested."""
    folder: str
    encoded: int = 0
    """Image views that the search added to the bank, all its starts together."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall seconds by stage."""


def run_sweep(config: StreamConfig, space: Space, options: Options, console: Console) -> Sweep:
    """Search a space, then learn the winner on all training images and test it.

    Args:
        config: the stream; what the space does not name stays as it is here.
        space: what to search.
        options: how.
        console: shows progress.

    Raises:
        InputError: domains, encoder or images cannot be used, or the sweep was started differently; all at once.
        LeaseHeld: another process makes this sweep.
        LadaError: no trial finished, saying why.
    """
    _check(config, space)
    uri = tracking_uri(config, os.environ)
    domains, spec = check_input(config, console)
    # The trials cannot peek: from here on there are no test images.
    blind = tuple(replace(domain, test=()) for domain in domains)
    whole = config.model_copy(update={"name": f"{config.name}.sweep"})
    with Run.acquire(whole, options.fresh, console.say) as run:
        stream = prepare(config, blind, spec, console)
        search = _search(stream, space, options, run, console)
        _begin(run, search, space, options)
        with _tracked(whole, space, options, run, uri, console) as group:
            trials = _run(search, space, options, run, group, console)
            winner = _winner(trials)
            # Named by its values: a sweep that goes on may find another one.
            name = f"{config.name}.best-{winner.key[:6]}"
            chosen = changed(config, winner.values).model_copy(update={"name": name})
            run.store.write("best.yaml", chosen.without_password().to_yaml().encode())
            console.say(f"  the best trial scored {winner.score:.2f}; learning it on all training images")
            encoded = stream.bank.table.added_by(run.id)
            result = run_stream(chosen, options.fresh, Console(quiet=console.quiet))
            sweep = Sweep(
                trials,
                winner,
                chosen,
                _importance(space, trials),
                result,
                run.store.uri,
                encoded,
                dict(console.seconds),
            )
            _finish(run.store, sweep, space, options, group, console)
    return sweep


def _check(config: StreamConfig, space: Space) -> None:
    problems = []
    if not config.method.trains:
        problems.append(f"method.kind: {config.method.kind} has no settings to search")
    if "method.epochs" in space.parameters and all(domain.epochs for domain in config.domains):
        problems.append("method.epochs: every domain has epochs of its own, so that it changes nothing")
    if problems:
        raise InputError(problems, "This cannot be searched")


def _search(stream: Stream, space: Space, options: Options, run: Run, console: Console) -> Search:
    """Encode what is missing, for the largest number of views in the space, and split the training images."""
    c = stream.config
    choice = Choice(c.shots, space.largest_views(c.views), c.seed, c.max_bad_share)
    (images,), _ = encode(stream, [choice], run, console)
    folds, held_out = _fold_plan(images, options)
    parts = make_folds(images, folds, held_out, c.seed)
    if not all(any(s.test for s in part.selections) for part in parts):
        raise InputError(
            ["no class has two different training images, so that none can be left out to judge by"],
            "This cannot be searched",
        )
    threads = max(1, int(c.resources.cpus_per_train_worker or 1))
    return Search(stream, parts, options.metric, threads)


def _fold_plan(images: Images, options: Options) -> tuple[int, int]:
    """Number of parts, and how many of them are left out in turn."""
    if options.folds is not None:
        return options.folds, options.folds
    sizes = np.concatenate([np.bincount(s.train_labels) for s in images.selections])
    return (4, 4) if np.median(sizes) <= FEW else (5, 1)


def _begin(run: Run, search: Search, space: Space, options: Options) -> None:
    """Make sure that the trials kept under this name are of this sweep."""
    identity = _identity(search, space, options)
    run.forget()
    found = run.store.read_version(IDENTITY)
    if found:
        problems = differences(json.loads(found[0]), identity)
        if problems:
            raise InputError(
                problems,
                f"{run.store.uri} was started differently (use another --name, or --fresh to start over)",
            )
        if not options.resume and all_kept(run.store):
            raise InputError(
                ["--resume continues it, --fresh starts over"], f"There is a sweep {run.store.uri}"
            )
    run.store.write(IDENTITY, json.dumps(identity, indent=1).encode())


def _identity(search: Search, space: Space, options: Options) -> dict[str, Any]:
    """What may not change while a sweep goes on."""
    c = search.stream.config
    tests = [[images.shas(s.test) for s in images.selections] for images in search.folds]
    trains = [[images.shas(s.train) for s in images.selections] for images in search.folds]
    identity = {
        "encoder": search.stream.info.feature_key,
        "method": c.method.identity,
        "views": c.views,
        "seed": c.seed,
        "domains": {
            d.name: [d.prompt or c.encoder.prompt, d.augment, d.epochs] for d in search.stream.domains
        },
        "space": {key: str(value) for key, value in space.plain().items()},
        "metric": options.metric,
        "folds": len(search.folds),
        "images": _digest([tests, trains]),
    }
    return json.loads(json.dumps(identity))


def _digest(value: Any) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _run(
    search: Search, space: Space, options: Options, run: Run, group: Group, console: Console
) -> list[Trial]:
    """Run all trials that are not kept yet."""
    seed, grid = search.stream.config.seed, options.search == "grid"
    asked = space.grid() if grid else space.sample(options.samples, seed)
    if options.search != "optuna":
        _fit_classes(search, asked, console)
    job = Job(search, run.store.uri, asked, space, options.search, options.scheduler, options.hours, seed)
    return run_trials(job, group, console)


def _fit_classes(search: Search, asked: Sequence[Mapping[str, Any]], console: Console) -> None:
    """k-means and mixtures of every fold, once for each number that a trial asks for."""
    configs = [changed(search.stream.config, values) for values in asked]
    numbers = {
        kind: dict.fromkeys(getattr(c.method, kind) for c in configs)
        for kind in ("memory_per_class", "mixture_components")
    }
    pairs = list(zip(*map(list, _evened(numbers)), strict=True))
    with console.stage("k-means and mixtures"):
        for images in search.folds:
            parts = [part.images for task in plan_tasks(search.stream, images) for part in task.parts]
            for vectors, components in pairs:
                fit_classes(
                    search.stream.bank,
                    parts,
                    vectors,
                    components,
                    lambda a, b: console.progress("classes", a, b),
                )


def _evened(numbers: Mapping[str, Mapping[int, None]]) -> Iterator[list[int]]:
    """The numbers of each kind as lists of one length, the shorter one's last number repeated."""
    length = max(len(some) for some in numbers.values())
    for some in numbers.values():
        values = list(some)
        yield values + values[-1:] * (length - len(values))


def _winner(trials: Sequence[Trial]) -> Trial:
    """The best finished trial.

    Raises:
        LadaError: there is none, saying why.
    """
    winner = best(trials)
    if winner is not None:
        return winner
    failed = {trial.error or "" for trial in trials if trial.status == "failed"}
    why = (
        "; ".join(sorted(failed))
        if failed
        else "all of them were stopped before their last task: give more --hours"
    )
    raise LadaError(f"none of {len(trials)} trials finished: {why}; --resume goes on")


def _importance(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of each parameter in what the finished trials' scores differ by."""
    return importances(space, [(trial.values, trial.score) for trial in trials if trial.status == "finished"])


@contextmanager
def _tracked(
    whole: StreamConfig, space: Space, options: Options, run: Run, uri: str, console: Console
) -> Iterator[Group]:
    """The sweep's parent run, closed as KILLED or FAILED when the block does not end well."""
    params = {
        **flat_params(whole.model_dump(mode="json")),
        **{f"space.{key}": str(value) for key, value in space.plain().items()},
        **{f"sweep.{key}": value for key, value in asdict(options).items() if key not in ("resume", "fresh")},
    }
    group = Group(uri, whole.tracking.experiment, run.id, whole.name, "sweep", params, console.warn)
    group.open()
    try:
        yield group
    except BaseException as error:
        group.finish("FAILED" if isinstance(error, LadaError) else "KILLED")
        raise


def _finish(
    store: Store, sweep: Sweep, space: Space, options: Options, group: Group, console: Console
) -> None:
    """Write table, picture and page, and close the parent run."""
    with console.stage("report"):
        data = SweepData(
            name=sweep.config.name.partition(".best-")[0],
            metric=options.metric,
            trials=sweep.trials,
            best=sweep.best,
            space=space.plain(),
            importance=sweep.importance,
            tested=sweep.result.metrics,
            folder=sweep.folder,
            command=f"python jobs/run_stream.py --config {join(sweep.folder, 'best.yaml')}",
            notes=list(console.notes),
        )
        files = {
            "trials.csv": trials_csv(sweep.trials).encode(),
            "sweep.png": sweep_picture(data),
            "sweep.html": sweep_html(data).encode(),
        }
        for name, content in files.items():
            store.write(name, content)
    with console.stage("track"):
        tested = {k: v for k, v in sweep.result.metrics.items() if not isinstance(v, Mapping)}
        metrics = {
            "best_score": sweep.best.score,
            **{f"test/{key}": value for key, value in tested.items()},
            **{f"importance/{key}": share for key, share in sweep.importance.items()},
        }
        files["best.yaml"] = store.read("best.yaml")
        group.finish("FINISHED", metrics=metrics, files=files)


def show_sweep(sweep: Sweep, console: Console) -> None:
    """Print the trials, the winner tested, and where everything lies."""
    print_trials(sweep.trials, sweep.best, sweep.importance, console.rich)
    show(sweep.config, sweep.result, console)
    for name in ("sweep.html", "trials.csv", "best.yaml"):
        console.say(join(sweep.folder, name))
    console.say(f"the search has encoded {sweep.encoded} image views")
