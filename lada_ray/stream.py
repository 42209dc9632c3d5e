"""The main job: a stream of image domains, learnt one after another, tested on all domains after each."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

from lada_ray.config import StreamConfig, tracking_uri
from lada_ray.console import Console
from lada_ray.errors import LadaError
from lada_ray.evaluate import Evaluation, Row, evaluate_row, load_tests, predict_examples
from lada_ray.features.fill import Images
from lada_ray.fit.task import FitPlan, TrainResources
from lada_ray.pack import TaskPack
from lada_ray.prepare import (
    Stream,
    encode_images,
    fit_all_classes,
    pack_identities,
    plan_evaluation,
    plan_fit,
    plan_tasks,
    prepare,
)
from lada_ray.report import print_table
from lada_ray.results import Story, StreamResult, accuracy_table, metrics_of, write_report, write_results
from lada_ray.run import Run, RunLedger
from lada_ray.store import Store, join
from lada_ray.tracking import BackgroundTracker, Tracker, flat_params, how_to_open, upload_artifacts
from lada_ray.training import Background, Watcher

POLL_S = 0.25
EXAMPLES_PER_DOMAIN = 4


def run_stream(config: StreamConfig, fresh: bool = False, console: Console | None = None) -> StreamResult:
    """Learn a stream of domains: encode every image once; then for each domain learn, commit, test, track.

    The same call again continues a run that was killed, learns domains that were appended to the configuration, and
    looks a finished run up.

    Args:
        config: what to learn, from which images, with which encoder, where to keep it.
        fresh: forget everything learnt under this name, and start over.
        console: shows progress.

    Raises:
        InputError: domains, encoder or images cannot be used, or the run was started differently; all problems at once.
        LeaseHeld: another live process is writing this run.
        LostLease: another process took this run over.
    """
    console = console or Console()
    mlflow_uri = tracking_uri(config, os.environ)
    stream = prepare(config, console)
    with Run.acquire(config, fresh, console.say) as run, tracked(config, mlflow_uri, run, console) as tracker:
        images, extraction = encode_images(stream, run, console)
        tasks = plan_tasks(stream, images)
        run.begin(config, stream.spec, stream.info, pack_identities(stream, images))
        learnt_before = len(run.packs)
        class_seconds = fit_all_classes(stream, tasks[learnt_before:], console)

        evaluator = Evaluator(run.store, plan_evaluation(stream, images, run), console)
        rows = [evaluator.row([], "zero-shot")]
        for domain, packs in learn(
            stream, run, plan_fit(stream, tasks), pack_identities(stream, images), tracker, console
        ):
            rows.append(evaluator.row(packs, domain))
            console.say(progress_line(rows, len(tasks)))
            tracker.sync()

        fitting = sum(run.record(digest)["timings"]["fit"] for digest in run.packs[learnt_before:])
        busy = {**extraction.seconds, **class_seconds, "fit": fitting, "track": tracker.tracker.seconds}
        return finish(stream, run, images, evaluator, rows, busy, console)


def learn(
    stream: Stream,
    run: Run,
    plan: FitPlan,
    identities: tuple[dict[str, Any], ...],
    tracker: BackgroundTracker,
    console: Console,
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Learn what is not learnt yet, all of it in one Ray Train run in the background.

    Yields:
        (domain, digests of all packs up to it) for every task of the stream: those of earlier starts at once, the
        others as soon as their pack is committed.
    """
    names, shown, announced = stream.names, 0, -1
    training: Background | None = None
    watch: Watcher | None = None
    while True:
        over = training is not None and training.over
        packs = run.packs
        for done in range(shown + 1, len(packs) + 1):
            yield names[done - 1], packs[:done]
        if len(packs) == len(names):
            break
        if training is None or watch is None:
            console.say("  start training ...")
            watch = Watcher()
            training = _start_training(stream, run, plan, identities, watch)
        elif over:
            training.join()
            raise LadaError(f"training ended after {len(packs)} of {len(names)} tasks; start the run again")
        if announced != len(packs):
            tracker.start_task(names[len(packs)], len(packs))
        shown = announced = len(packs)
        run.lease.check()
        with console.stage("learn"):
            _wait_for(training, watch, console)
    if training is not None:
        with console.stage("stop Ray Train"):
            training.join()


def _start_training(
    stream: Stream, run: Run, plan: FitPlan, identities: tuple[dict[str, Any], ...], watch: Watcher
) -> Background:
    r = stream.resources
    ledger = RunLedger(run.store.uri, run.epoch, identities, stream.info.width, watch)
    resources = TrainResources(r.train_workers, r.cpus_per_train_worker, r.gpus_per_train_worker)
    return Background(plan, ledger, resources, join(run.store.uri, "train"), f"epoch-{run.epoch}")


def _wait_for(training: Background, watch: Watcher, console: Console) -> None:
    """Wait a moment, and show how far the current task is."""
    time.sleep(POLL_S)
    state = watch.read()
    if state and not training.over:
        domain, step, steps = state
        console.progress(f"learning {domain}", step, steps)


class Evaluator:
    """Rows of the accuracy matrix, computed by Ray tasks and kept in the run's folder.

    Args:
        store: the run's folder.
        evaluation: the test sets of all domains.
        console: times the evaluation.
    """

    def __init__(self, store: Store, evaluation: Evaluation, console: Console) -> None:
        self.store, self.evaluation, self.console = store, evaluation, console

    @cached_property
    def _features(self) -> Any:
        """Test features in the object store of the cluster: loaded by a task, once; the driver holds a reference."""
        import ray

        reference = ray.remote(load_tests).remote(self.evaluation)
        # Before training starts: on a machine with one core it would wait for a core until training ends.
        ray.wait([reference], fetch_local=False)
        return reference

    def row(self, packs: Sequence[str], learnt: str) -> Row:
        """The row after these packs; computed once."""
        import ray

        key = f"rows/{packs[-1] if packs else 'zero_shot'}-{self.evaluation.digest}.json"
        found = self.store.read_version(key)
        if found is not None:
            return Row(**json.loads(found[0]))
        with self.console.stage("evaluate"):
            row = ray.get(ray.remote(evaluate_row).remote(self.evaluation, packs, learnt, self._features))
        self.store.write(key, json.dumps(asdict(row), indent=1, ensure_ascii=False).encode())
        return row

    def examples(self, packs: Sequence[str]) -> list[dict[str, Any]]:
        """A few test images of each domain and what they are taken for."""
        import ray

        with self.console.stage("evaluate"):
            task = ray.remote(predict_examples)
            return ray.get(task.remote(self.evaluation, packs, self._features, EXAMPLES_PER_DOMAIN))


def progress_line(rows: Sequence[Row], tasks: int) -> str:
    """One line after a task: what was learnt, and what it did to the accuracies."""
    row, zero_shot = rows[-1].accuracy(), rows[0].accuracy()
    seen = [r.learnt for r in rows[1:]]
    mean = sum(row[name] for name in seen) / len(seen)
    return (
        f"  task {len(seen)} of {tasks}: learnt {rows[-1].learnt}, {zero_shot[seen[-1]]:.1f} -> {row[seen[-1]]:.1f} %; "
        f"mean of the {len(seen)} seen: {mean:.1f} %"
    )


def upload_in_task(tracking_uri: str, run_id: str, store_uri: str, files: Mapping[str, str]) -> None:
    """`upload_artifacts` in a Ray task: large artifacts do not pass through the driver."""
    import ray

    ray.get(ray.remote(upload_artifacts).remote(tracking_uri, run_id, store_uri, dict(files)))


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
            console.say,
            # Only a database on this machine is written from here; to a server whoever is near the storage uploads.
            upload=upload_artifacts if uri.startswith("sqlite:") else upload_in_task,
            registered_model=config.tracking.registered_model,
        )
    )
    tracker.open()
    try:
        yield tracker
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED")
        raise
    with console.stage("track"):
        tracker.finish("FINISHED")


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
    accuracy, packs = accuracy_table(rows[1:]), run.packs
    metrics = metrics_of(accuracy, rows[0], stream.bank.table.added_by(run.id))
    with console.stage("report"):
        if write_results(run.store, accuracy, metrics, images):
            loaded = [TaskPack.read(run.model_store, digest) for digest in packs]
            examples = evaluator.examples(packs)
            story = _story(stream, run, images, metrics, busy, console)
            write_report(run.store, accuracy, (rows[0], rows[-1]), loaded, images, examples, story)
    run.tidy()
    return StreamResult(accuracy, metrics, run.model_store.uri, run.store.uri, packs)


def _story(
    stream: Stream,
    run: Run,
    images: Images,
    metrics: dict[str, Any],
    busy: dict[str, float],
    console: Console,
) -> Story:
    config = stream.config
    shots = "all images" if config.shots is None else f"{config.shots} shots"
    return Story(
        subtitle=", ".join(
            [
                config.method.kind.upper(),
                stream.spec.model,
                shots,
                f"{config.views} views",
                f"seed {config.seed}",
            ]
        ),
        timings={"wall clock": dict(console.seconds), "busy workers": busy},
        wall_seconds=console.wall_seconds,
        counts={
            "domains": len(images.selections),
            "classes": sum(len(s.domain.class_names) for s in images.selections),
            "training images": sum(len(s.train) for s in images.selections),
            "test images": sum(len(s.test) for s in images.selections),
            "image views used": len(images.pairs()),
            "of them encoded by this run": metrics["images_encoded"],
            "bad images": len(images.bad),
        },
        commands=next_steps(config, run.store.uri),
        config=config.to_yaml(),
    )


def next_steps(config: StreamConfig, folder: str) -> list[tuple[str, str]]:
    """What to do with a finished run: (what it does, the exact command)."""
    python = shlex.quote(_near(sys.executable))
    job = _near(sys.argv[0]) if sys.argv[0].endswith("run_stream.py") else "jobs/run_stream.py"
    code = f"import lada_ray; print(lada_ray.load('{folder}/model').predict(['IMAGE']))"
    look = how_to_open(tracking_uri(config, os.environ))
    again = ["--config", join(folder, "config.yaml"), "--method.beta", "2", "--name", "hot"]
    return [
        ("ask the model", f'{python} -c "{code}"'),
        ("look at the tracked run", f"{python} -m {look}" if look.startswith("mlflow ") else look),
        ("run it another way", f"{python} {shlex.join([job, *again])}"),
    ]


def _near(path: str) -> str:
    """The path as one would type it here."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def run_and_show(config: StreamConfig, fresh: bool = False) -> StreamResult:
    """Run a stream as a job does: with progress, the table at the end, and what to do next."""
    console = Console()
    console.say(f"{config.name}: {len(config.domains)} domains -> {join(config.storage, config.name)}")
    result = run_stream(config, fresh, console)
    print_table(result.accuracy, result.metrics["zero_shot_per_domain"], console.rich)
    lines = [("report", join(result.folder, "report.html")), ("model", result.model_path)]
    for what, where in [*lines, *next_steps(config, result.folder)]:
        console.say(f"{what}:\n  {where}")
    console.say(
        f"{console.wall_seconds:.0f} s, {result.metrics['images_encoded']} image views encoded by this run"
    )
    return result
