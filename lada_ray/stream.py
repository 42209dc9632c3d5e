"""The main job: a stream of image domains, learnt one after another, tested on all domains after each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lada_ray.calibrate import Calibrator
from lada_ray.config import StreamConfig, tracking_uri
from lada_ray.console import Console
from lada_ray.domains.base import ALL_DOMAINS
from lada_ray.errors import LadaError, LostLease
from lada_ray.evaluate import Evaluator, Row, write_tests
from lada_ray.features.extract import Extraction
from lada_ray.features.fill import Images
from lada_ray.fit.plan import FitPlan
from lada_ray.fit.task import TrainResources
from lada_ray.known import keep_known
from lada_ray.prepare import (
    Stream,
    check_input,
    choose,
    encode,
    fit_all_classes,
    pack_identities,
    plan_evaluation,
    plan_fit,
    plan_tasks,
    prepare,
)
from lada_ray.results import StreamResult, accuracy_table, metrics_of, tell_story, write_report, write_results
from lada_ray.run import Run, RunLedger
from lada_ray.store import join
from lada_ray.tracking import BackgroundTracker, Tracker, client_environment, flat_params, upload_artifacts
from lada_ray.training import Background
from lada_ray.watching import Watcher

STARTING = "start training workers"


def run_stream(config: StreamConfig, fresh: bool = False, console: Console | None = None) -> StreamResult:
    """Learn a stream of domains: encode every image once; then for each domain learn, commit, test, track.

    The same call again continues a run that was killed, learns domains that were appended to the configuration, and
    looks a finished run up.

    Args:
        config: what to learn, from which images, with which encoder, where to keep it.
        fresh: forget everything learnt under this name, and start over.
        console: shows progress.

    Raises:
        InputError: domains, encoder or images cannot be used, or the run was started differently; all at once.
        LeaseHeld: another live process is writing this run.
        LostLease: another process took this run over.
    """
    if not isinstance(config, StreamConfig):
        raise TypeError(
            f"run_stream takes a StreamConfig, not a {type(config).__name__}: StreamConfig.from_yaml(path)"
        )
    console = console or Console()
    mlflow_uri = tracking_uri(config, os.environ)
    domains, spec = check_input(config, console)
    with console.stage("take the run's lease"):
        run = Run.acquire(config, fresh, console.say)
    with run:
        run.check(config)
        stream = prepare(config, domains, spec, console)
        run.check(config, stream.spec, stream.info, pack_identities(stream))
        images = choose(stream, run, console)
        run.check(config, stream.spec, stream.info, pack_identities(stream, images))
        (images,), extraction = encode(stream, [stream.choice], run, console)
        run.begin(config, stream.spec, stream.info, pack_identities(stream, images))
        with tracked(config, mlflow_uri, run, console) as tracker:
            result, training = learn_and_test(stream, run, images, extraction, tracker, console)
        if training:
            stop(training, console)
        return result


def learn_and_test(
    stream: Stream,
    run: Run,
    images: Images,
    extraction: Extraction,
    tracker: BackgroundTracker,
    console: Console,
) -> tuple[StreamResult, Background | None]:
    """The stream itself: after each domain is learnt, test on all of them.

    Returns:
        What came of it, and the training, which has nothing left to do; None: all was learnt before.
    """
    tasks, learnt_before = plan_tasks(stream, images), len(run.packs)
    if learnt_before:
        console.say(f"  {learnt_before} of {len(tasks)} domains are learnt already")
    class_seconds = fit_all_classes(stream, tasks[learnt_before:], console)

    evaluator = Evaluator(run.store, plan_evaluation(stream, images, run.model_store.uri), console)
    write_tests(run.store, evaluator.evaluation.tests)
    keep_known(run.store, images, [stream.prompts(domain) for domain in stream.domains])
    plan, rows = plan_fit(stream, tasks), []
    training = None
    if learnt_before < len(tasks):
        training = _start_training(stream, run, images, plan, console)
    with Calibrator(plan, run.model_store.uri) as calibrator:
        calibrator.begin(run.packs)
        for learnt, packs in learn(stream, run, learnt_before, training, tracker, console):
            wait_for_calibration(calibrator, run, console)
            rows.append(evaluator.row(packs, learnt))
            calibrator.begin(packs, soon=training is not None)
            if len(packs) > learnt_before:
                run.store.write("accuracy_matrix.csv", accuracy_table(rows[1:]).to_csv().encode())
                console.say(progress_line(rows, len(tasks)))
            tracker.sync()
        wait_for_calibration(calibrator, run, console)

    fitting = sum(run.record(digest)["timings"]["fit"] for digest in run.packs[learnt_before:])
    busy = {**extraction.seconds, **class_seconds, "fit": fitting, "track": tracker.tracker.seconds}
    return finish(stream, run, images, evaluator, rows, busy, console), training


def stop(training: Background, console: Console) -> None:
    """Wait for the end of a training that has learnt everything; Ray Train takes a second, beside report and MLflow.

    An error at its end costs nothing that is learnt: it is a warning.
    """
    with console.stage("stop training"):
        try:
            training.join()
        except LadaError as error:
            console.warn(f"everything is learnt, tested and reported, but at its end {error}")


def wait_for_calibration(calibrator: Calibrator, run: Run, console: Console) -> None:
    """Wait for what was begun: tests and calibrations take turns, so that one worker does both.

    Beside a test, a calibration would go to a second worker whenever a core is free, as when training ends: on a small
    machine that takes longer to start than all that is left to do.
    """

    def show(done: int, total: int) -> None:
        run.lease.check()
        console.progress("calibrating", done, total)

    with console.stage("calibrate"):
        calibrator.wait(show)


def learn(
    stream: Stream,
    run: Run,
    learnt_before: int,
    training: Background | None,
    tracker: BackgroundTracker,
    console: Console,
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Follow the training in the background, which learns what is not learnt yet in one Ray Train run.

    Yields:
        (what was learnt, digests of all packs up to it): "zero-shot" first, then every task of the stream; those of
        earlier starts at once, the others as soon as their pack is committed.
    """
    names, shown = [name for name, _ in stream.tasks], learnt_before
    for done, name in enumerate(["zero-shot", *names[:shown]]):
        yield name, run.packs[:done]  # tested while workers start
    if training is None:
        return
    with console.stage(STARTING):
        training.wait_for_start(shown, run.lease)
    while shown < len(names):
        tracker.start_task(names[shown], shown)
        packs = training.next_packs(shown, run.lease, console)
        for done in range(shown + 1, len(packs) + 1):
            yield names[done - 1], packs[:done]
        shown = len(packs)


def _start_training(stream: Stream, run: Run, images: Images, plan: FitPlan, console: Console) -> Background:
    console.say("  start training ...")
    r, identities = stream.resources, pack_identities(stream, images)
    resources = TrainResources(r.train_workers, r.cpus_per_train_worker, r.gpus_per_train_worker)
    with console.stage(STARTING):
        watch = Watcher()
        ledger = RunLedger(run.store.uri, run.epoch, identities, watch)
        return Background(plan, ledger, resources, join(run.store.uri, "train"), f"epoch-{run.epoch}", watch)


def progress_line(rows: Sequence[Row], tasks: int) -> str:
    """One line after a task: what was learnt, and what it did to the accuracies."""
    row, zero_shot = rows[-1].accuracy(), rows[0].accuracy()
    learnt = [r.learnt for r in rows[1:]]
    seen = list(row) if learnt == [ALL_DOMAINS] else learnt
    mean = sum(row[name] for name in seen) / len(seen)
    change = f", {zero_shot[learnt[-1]]:.1f} -> {row[learnt[-1]]:.1f} %" if seen is learnt else ""
    return (
        f"  task {len(learnt)} of {tasks}: learnt {learnt[-1]}{change}; "
        f"mean of the {len(seen)} seen: {mean:.1f} %"
    )


@contextmanager
def tracked(config: StreamConfig, uri: str, run: Run, console: Console) -> Iterator[BackgroundTracker]:
    """MLflow beside the run: opened in the background, closed with the status that fits how the block ends."""
    tracker = BackgroundTracker(
        Tracker(
            run.store,
            uri,
            config.tracking.experiment,
            config.name,
            flat_params(config.model_dump(mode="json")),
            console.warn,
            # Only a database on this machine is written from here; to a server whoever is near the storage uploads.
            upload=upload_artifacts if uri.startswith("sqlite:") else upload_in_task,
            registered_model=config.tracking.registered_model,
        )
    )
    tracker.open()
    try:
        yield tracker
    except LostLease:
        tracker.abandon()  # the new owner has the same MLflow runs open
        raise
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED")
        raise
    with console.stage("track"):
        tracker.finish("FINISHED")


def upload_in_task(tracking_uri: str, run_id: str, store_uri: str, files: Mapping[str, str]) -> None:
    """`upload_artifacts` in a Ray task: large artifacts do not pass through the driver."""
    import ray

    task: Any = ray.remote(num_cpus=0.1)(upload_artifacts)
    ray.get(task.remote(tracking_uri, run_id, store_uri, dict(files), client_environment()))


def finish(
    stream: Stream,
    run: Run,
    images: Images,
    evaluator: Evaluator,
    rows: Sequence[Row],
    busy: dict[str, float],
    console: Console,
) -> StreamResult:
    """Write matrix, metrics, bad images and report, and return the result."""
    run.lease.check()
    accuracy, packs = accuracy_table(rows[1:]), run.packs
    metrics = metrics_of(accuracy, rows[0], stream.bank.table.added_by(run.id))
    with console.stage("report"):
        if write_results(run.store, accuracy, metrics, images):
            examples = evaluator.examples(packs)
            story = tell_story(stream.config, run.store.uri, images, metrics, busy, console)
            write_report(run.store, accuracy, (rows[0], rows[-1]), packs, images, examples, story)
    run.tidy()
    return StreamResult(accuracy, metrics, run.model_store.uri, run.store.uri, packs)
