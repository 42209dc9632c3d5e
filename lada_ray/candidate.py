"""A candidate for promotion: learnt beside the champion in a file of its own, and judged against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from lada_ray.calibrate import calibrate
from lada_ray.cluster import TASK_CPUS, result
from lada_ray.domains.base import Domain
from lada_ray.evaluate import Evaluation, TestSet, accuracies, correct_images, load_tests
from lada_ray.fit.plan import FitPlan, TaskPlan
from lada_ray.fit.task import TrainResources
from lada_ray.gate import Gate, Limits, Role, Scores, judge
from lada_ray.prepare import Stream, fit_all_classes, plan_fit
from lada_ray.production import Production
from lada_ray.run import Json, RunLedger, prediction_of
from lada_ray.store import join
from lada_ray.training import Background
from lada_ray.versions import open_candidate
from lada_ray.watching import Watcher


def candidate_file(name: str) -> str:
    """Where a candidate of this name is kept, in the model's folder."""
    return f"candidates/{name}.json"


def learn_candidate(
    production: Production,
    stream: Stream,
    name: str,
    before: Sequence[str],
    tasks: Sequence[TaskPlan],
    identities: Sequence[Json],
) -> tuple[str, ...]:
    """Learn tasks on top of packs of the model; what a kill left of this candidate is gone on with.

    Args:
        production: the model.
        stream: its encoder, bank and resources.
        name: of the candidate.
        before: digests of the packs that it starts from.
        tasks: all its tasks, those of `before` first.
        identities: of all its packs.

    Returns:
        Digests of all its packs.

    Raises:
        LostLease: another process has taken the model over.
    """
    run, console = production.run, production.console
    open_candidate(run.model_store, candidate_file(name), production.file, before, identities)
    ledger = RunLedger(run.store.uri, run.epoch, tuple(identities), file=candidate_file(name))
    plan = plan_fit(stream, tuple(tasks))
    packs = ledger.packs()
    if len(packs) < len(tasks):
        packs = _learn(production, stream, plan, ledger, f"epoch-{run.epoch}-{PurePosixPath(name).name}")
    with console.stage("calibrate"):
        calibrate(plan, run.model_store.uri, packs, partial(console.progress, "calibrating"))
    run.lease.check()
    run.tidy()
    return packs


def _learn(
    production: Production, stream: Stream, plan: FitPlan, ledger: RunLedger, name: str
) -> tuple[str, ...]:
    """Learn what is not committed yet, in a Train run of this name; returns all packs."""
    run, console, r, packs = production.run, production.console, stream.resources, ledger.packs()
    fit_all_classes(stream, plan.tasks[len(packs) :], console)
    watch = Watcher()
    resources = TrainResources(r.train_workers, r.cpus_per_train_worker, r.gpus_per_train_worker)
    folder = join(run.store.uri, "train")
    training = Background(plan, replace(ledger, watch=watch), resources, folder, name, watch)
    while len(packs) < len(plan.tasks):
        packs = training.next_packs(len(packs), run.lease, console)
    with console.stage("stop training"):
        training.join()
    return packs


@dataclass(frozen=True)
class Judged:
    """What came of a candidate: the gate's checks, and its accuracy on each domain it knows, in %."""

    gate: Gate
    accuracy: dict[str, float]


def judge_candidate(
    production: Production,
    stream: Stream,
    packs: Sequence[str],
    tests: Sequence[TestSet],
    guards: Sequence[TestSet],
    limits: Limits,
) -> Judged:
    """Hold a candidate against champion and zero-shot CLIP, on held-out images of all domains; in a Ray task.

    Args:
        production: the model.
        stream: its encoder and bank, which holds all test images.
        packs: of the candidate.
        tests: of every domain that the champion or the candidate knows.
        guards: of domains that neither knows.
        limits: of the gate.
    """
    import ray

    learnt = {one.name for one in production.known(production.champion.state)}
    roles: dict[str, Role] = {t.domain: "earlier" if t.domain in learnt else "new" for t in tests}
    roles |= {t.domain: "guard" for t in guards}
    prediction = prediction_of(stream.config, stream.info)
    evaluation = Evaluation((*tests, *guards), stream.bank, production.run.model_store.uri, prediction)
    task: Any = ray.remote(num_cpus=TASK_CPUS)(_judge)
    with production.console.stage("judge"):
        return result(task.remote(evaluation, production.champion.state.packs, tuple(packs), roles, limits))


def _judge(
    evaluation: Evaluation,
    champion: Sequence[str],
    candidate: Sequence[str],
    roles: dict[str, Role],
    limits: Limits,
) -> Judged:
    features = load_tests(evaluation)
    right = [correct_images(evaluation, packs, features) for packs in (candidate, champion, ())]
    scores = [
        Scores(domain, role, *(of_model[domain] for of_model in right)) for domain, role in roles.items()
    ]
    return Judged(judge(scores, limits), _accuracy(evaluation, candidate, roles, features))


def _accuracy(
    evaluation: Evaluation, candidate: Sequence[str], roles: dict[str, Role], features: list[Any]
) -> dict[str, float]:
    """On each domain that is no guard, in %: guards change from job to job, and their classes compete too."""
    own = [i for i, test in enumerate(evaluation.tests) if roles[test.domain] != "guard"]
    alone = replace(evaluation, tests=tuple(evaluation.tests[i] for i in own))
    return accuracies(alone, candidate, [features[i] for i in own])


def tests_alone(domain: Domain) -> Domain:
    """A domain without its training images: on guards nothing is learnt."""
    return replace(domain, train=())
