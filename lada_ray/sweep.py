"""Searching hyperparameters of a whole stream: trials on folds of the training images, then the winner, tested once.

Ray Tune runs the trials on what the bank holds. What each came to is kept in the sweep's folder, named by its values:
the same trial is never made twice, and a sweep that is killed continues from there, without Tune's own state.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lada_ray.config import StreamConfig, tracking_uri
from lada_ray.console import Console
from lada_ray.errors import InputError, LadaError
from lada_ray.features.fill import Choice, Images
from lada_ray.fit.classes import fit_classes
from lada_ray.importance import importances
from lada_ray.pack import code_versions
from lada_ray.prepare import FIT_CLASSES, Stream, check_input, encode, plan_tasks, prepare
from lada_ray.results import StreamResult, show
from lada_ray.run import Run, differences
from lada_ray.space import Space
from lada_ray.store import Store, is_remote, join
from lada_ray.stream import run_stream
from lada_ray.sweep_page import SweepData, print_trials, sweep_html, sweep_picture, trials_csv
from lada_ray.tracking import Group, flat_params, tracked
from lada_ray.trial import Search, changed, make_folds
from lada_ray.trials import Trial, all_kept, best
from lada_ray.tuning import Job, run_trials

FEW = 32
"""Training images per class up to which each fold is left out in turn; above, a fifth is left out once."""
IDENTITY = "sweep.json"
TESTED = "tested.json"
# A grid of more trials is taken for a mistake.
LARGEST_GRID = 2000


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
    metric: str = ""
    """What trials were judged by."""
    earlier: list[str] = field(default_factory=list)
    """Runs of winners of earlier starts, which were tested too."""
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
    _check(config, space, options)
    uri = tracking_uri(config, os.environ)
    domains, spec = check_input(config, console)
    # The trials cannot peek: from here on there are no test images.
    blind = tuple(replace(domain, test=()) for domain in domains)
    whole = config.model_copy(update={"name": f"{config.name}.sweep"})
    with Run.acquire(whole, options.fresh, console.say) as run:
        stream = prepare(config, blind, spec, console)
        _check_begun(run, stream, space, options)
        search = _search(stream, space, options, run, console)
        _begin(run, search, space, options)
        with tracked(_group(whole, space, options, run, uri, console)) as group:
            trials = _run(search, space, options, run, group, console)
            sweep = _test_winner(config, space, options, trials, run, console)
            sweep.encoded = stream.bank.table.added_by(run.id)
            run.lease.check()
            _finish(run.store, sweep, space, options, group, console)
    return sweep


def _test_winner(
    config: StreamConfig,
    space: Space,
    options: Options,
    trials: list[Trial],
    run: Run,
    console: Console,
) -> Sweep:
    """Learn the best trial's configuration on all training images, and test it."""
    winner = _winner(trials)
    # Named by its values: a sweep that goes on may find another one.
    name = f"{config.name}.best-{winner.key[:6]}"
    chosen = changed(config, winner.values).model_copy(update={"name": name})
    run.lease.check()
    run.store.write("best.yaml", chosen.without_password().to_yaml().encode())
    found = run.store.read_version(TESTED)
    tested = list(dict.fromkeys([*(json.loads(found[0]) if found else []), name]))
    run.store.write(TESTED, json.dumps(tested).encode())
    console.say(f"  the best trial scored {winner.score:.2f}; learning it on all training images")
    result = run_stream(chosen, options.fresh, Console(quiet=console.quiet))
    return Sweep(
        trials=trials,
        best=winner,
        config=chosen,
        importance=_importance(space, trials),
        result=result,
        folder=run.store.uri,
        metric=options.metric,
        earlier=[other for other in tested if other != name],
        seconds=dict(console.seconds),
    )


def _check(config: StreamConfig, space: Space, options: Options) -> None:
    problems = []
    single, joint = len(config.domains) == 1, config.method.kind == "joint"
    if options.metric == "transfer" and (single or joint):
        problems.append("--metric transfer: nothing is learnt before a stream's only task; use last")
    if options.metric == "average" and joint:
        problems.append("--metric average: joint training has a single task; use last")
    if not config.method.trains:
        problems.append(f"method.kind: {config.method.kind} has no settings to search")
    if "method.epochs" in space.parameters and all(domain.epochs for domain in config.domains):
        problems.append("method.epochs: every domain has epochs of its own, so that it changes nothing")
    if options.resume and options.fresh:
        problems.append("--resume goes on with a sweep, --fresh forgets it: take one of them")
    if (
        options.search == "grid"
        and (number := math.prod(len(d.points(4)) for d in space.parameters.values())) > LARGEST_GRID
    ):
        problems.append(
            f"--search grid: {number} trials; name fewer parameters or values, or take --search random"
        )
    if problems:
        raise InputError(problems, "This cannot be searched")


def _search(stream: Stream, space: Space, options: Options, run: Run, console: Console) -> Search:
    """Encode what is missing, for the largest number of views in the space, and split the training images."""
    c = stream.config
    choice = Choice(c.shots, space.largest_views(c.views), c.seed, c.max_bad_share)
    (images,), _ = encode(stream, [choice], run, console)
    folds, held_out = _fold_plan(images, options)
    parts = make_folds(images, folds, held_out, c.seed)
    _refuse_unjudged(parts)
    threads = max(1, int(c.resources.cpus_per_train_worker or 1))
    return Search(stream, parts, options.metric, threads, stream.resources.gpu_share)


def _refuse_unjudged(parts: Sequence[Images]) -> None:
    """Refuse domains of which no fold leaves anything out: there would be nothing to judge by."""
    judged = {s.domain.name: False for s in parts[0].selections}
    for part in parts:
        judged |= {s.domain.name: True for s in part.selections if s.test}
    if not all(judged.values()):
        why = (
            "none of its training images is left out to judge by; take more --folds, or more images per class"
        )
        raise InputError(
            [f"{name}: {why}" for name, found in judged.items() if not found], "This cannot be searched"
        )


def _fold_plan(images: Images, options: Options) -> tuple[int, int]:
    """Number of parts, and how many of them are left out in turn."""
    if options.folds is not None:
        return options.folds, options.folds
    sizes = np.concatenate([np.bincount(s.train_labels) for s in images.selections])
    return (4, 4) if np.median(sizes) <= FEW else (5, 1)


def _check_begun(run: Run, stream: Stream, space: Space, options: Options) -> None:
    """Refuse, before anything is encoded, to go on with another sweep or with none."""
    found = None if options.fresh else run.store.read_version(IDENTITY)
    if options.resume and found is None:
        raise InputError(["without --resume it is begun"], f"There is no sweep {run.store.uri}")
    if found is None:
        return
    then, now = json.loads(found[0]), _identity(stream, space, options)
    _refuse_other(run, {key: then.get(key) for key in now}, now)
    if not options.resume and all_kept(run.store):
        raise InputError(["--resume continues it, --fresh starts over"], f"There is a sweep {run.store.uri}")


def _refuse_other(run: Run, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if problems := differences(then, now):
        where = run.store.uri
        raise InputError(
            problems, f"{where} was started differently (use another --name, or --fresh to start over)"
        )


def _begin(run: Run, search: Search, space: Space, options: Options) -> None:
    """Make sure that the trials kept under this name are of these images, or write down which they are of."""
    run.forget()
    identity = {**_identity(search.stream, space, options), **_images_identity(search)}
    found = run.store.read_version(IDENTITY)
    if found:
        _refuse_other(run, json.loads(found[0]), identity)
    run.store.write(IDENTITY, json.dumps(identity, indent=1).encode())


def _identity(stream: Stream, space: Space, options: Options) -> dict[str, Any]:
    """What may not change while a sweep goes on, as far as it is known before images are."""
    c = stream.config
    identity = {
        "encoder": stream.info.feature_key,
        "method": c.method.identity,
        "views": c.views,
        "shots": c.shots,
        "seed": c.seed,
        "domains": {
            d.name: [d.prompt or c.encoder.prompt, d.augment, d.epochs, *d.class_names]
            for d in stream.domains
        },
        "order": stream.names,
        "space": {key: str(value) for key, value in space.plain().items()},
        "metric": options.metric,
        "versions": code_versions(),
    }
    return json.loads(json.dumps(identity))


def _images_identity(search: Search) -> dict[str, Any]:
    """Which images are learnt and which are left out, with their classes."""
    said = [
        [
            [images.shas(s.train), s.train_labels.tolist(), images.shas(s.test), s.test_labels.tolist()]
            for s in images.selections
        ]
        for images in search.folds
    ]
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    return {"folds": len(search.folds), "images": digest[:16]}


def _run(
    search: Search, space: Space, options: Options, run: Run, group: Group, console: Console
) -> list[Trial]:
    """Run all trials that are not kept yet."""
    seed, grid = search.stream.config.seed, options.search == "grid"
    asked = space.grid() if grid else space.sample(options.samples, seed)
    _fit_classes(search, asked if options.search != "optuna" else space.listed(), console)
    job = Job(
        search=search,
        folder=run.store.uri,
        asked=asked,
        space=space,
        by=options.search,
        scheduler=options.scheduler,
        hours=options.hours,
        seed=seed,
        check=run.lease.check,
    )
    return run_trials(job, group, console)


def _fit_classes(search: Search, asked: Sequence[Mapping[str, Any]], console: Console) -> None:
    """k-means and mixtures of all folds, once for each number that a trial asks for."""
    methods = [changed(search.stream.config, values).method for values in asked]
    vectors = list(dict.fromkeys(method.memory_per_class for method in methods))
    components = list(dict.fromkeys(method.mixture_components for method in methods))
    plans = [task for images in search.folds for task in plan_tasks(search.stream, images)]
    parts = [part.images for task in plans for part in task.parts]
    with console.stage(FIT_CLASSES):
        # The shorter list goes on with its last number, which is known by then.
        for i in range(max(len(vectors), len(components))):
            fit_classes(
                search.stream.bank,
                parts,
                vectors[min(i, len(vectors) - 1)],
                components[min(i, len(components) - 1)],
                lambda a, b: console.progress("classes", a, b),
            )


def _winner(trials: Sequence[Trial]) -> Trial:
    """The best finished trial.

    Raises:
        LadaError: there is none, saying why.
    """
    winner = best(trials)
    if winner is not None:
        return winner
    failed = {trial.error or "" for trial in trials if trial.status == "failed"}
    if failed:
        raise LadaError(
            f"none of {len(trials)} trials finished: {'; '.join(sorted(failed))}; --resume goes on"
        )
    raise LadaError("no trial finished in time: --resume goes on, with more --hours")


def _importance(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of each parameter in what the finished trials' scores differ by."""
    return importances(space, [(trial.values, trial.score) for trial in trials if trial.status == "finished"])


def _group(
    whole: StreamConfig, space: Space, options: Options, run: Run, uri: str, console: Console
) -> Group:
    """The sweep in MLflow."""
    params = {
        **flat_params(whole.model_dump(mode="json")),
        **{f"space.{key}": str(value) for key, value in space.plain().items()},
        **{f"sweep.{key}": value for key, value in asdict(options).items() if key not in ("resume", "fresh")},
    }
    return Group(uri, whole.tracking.experiment, run.id, whole.name, "sweep", params, console.warn)


def _finish(
    store: Store, sweep: Sweep, space: Space, options: Options, group: Group, console: Console
) -> None:
    """Write table, picture and page, and close the parent run."""
    with console.stage("report"):
        data = SweepData(
            name=sweep.config.name.rpartition(".best-")[0],
            metric=options.metric,
            trials=sweep.trials,
            best=sweep.best,
            space=space.plain(),
            importance=sweep.importance,
            tested=sweep.result.metrics,
            folder=sweep.folder,
            command=_command(sweep),
            notes=list(console.notes),
            earlier=sweep.earlier,
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


def _command(sweep: Sweep) -> str:
    """What learns the winner again; empty where its configuration lies in an object store."""
    best = join(sweep.folder, "best.yaml")
    return "" if is_remote(best) else shlex.join(["python", "jobs/run_stream.py", "--config", best])


def show_sweep(sweep: Sweep, console: Console) -> None:
    """Print the trials, the winner tested, and where everything lies."""
    print_trials(sweep.trials, sweep.best, sweep.importance, console.rich, sweep.metric)
    show(sweep.config, sweep.result, console)
    for name in ("sweep.html", "trials.csv", "best.yaml"):
        console.say(join(sweep.folder, name))
    console.say(f"the search has encoded {sweep.encoded} image views")
