"""The trials of a sweep under Ray Tune: which values come next, which trials are given up, and how far they are."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler

from lada_ray.console import Console
from lada_ray.errors import LostLease
from lada_ray.fit.task import train_storage
from lada_ray.page import duration
from lada_ray.space import Space
from lada_ray.store import Store, join, open_store
from lada_ray.tracking import Group
from lada_ray.trial import METRICS, Search, learn_siblings
from lada_ray.trials import Status, Trial, all_kept, best, keep, kept, trial_key

# ASHA: a third of the trials goes on from a rung to the next, three times as far.
REDUCTION = 3
FOLDER = "ray"


@dataclass(frozen=True)
class Job:
    """What to try, and how."""

    search: Search
    folder: str
    """Of the sweep."""
    asked: Sequence[Mapping[str, Any]]
    """Values of each trial; for optuna their number alone counts."""
    space: Space
    by: str
    """random, grid or optuna."""
    scheduler: str
    """asha or none."""
    hours: float | None
    seed: int
    check: Callable[[], None]
    """Raises LostLease once another process has taken the sweep over."""


def run_trials(job: Job, group: Group, console: Console) -> list[Trial]:
    """Make the trials that are not kept in the sweep's folder yet, side by side.

    A trial that failed before is made again. One that ASHA stopped stays stopped.

    Args:
        job: what to try.
        group: the sweep in MLflow.
        console: shows progress.

    Returns:
        All trials that came to an end, in the order in which they were asked for.

    Raises:
        LostLease: another process has taken the sweep over.
    """
    store = open_store(job.folder)
    known = {key: trial for key, trial in all_kept(store).items() if trial.status != "failed"}
    if known:
        console.say(f"  {len(known)} trials are known from earlier starts")
    watch = Watch(job, known, group, console)
    with console.stage("trials"):
        if not watch.complete:
            _fit(_tuner(job, known, watch), watch)
    job.check()
    for entry in list(store.list(FOLDER)):
        store.delete(entry.key)
    ended = all_kept(store)
    missing = len(job.asked) - len(watch.ended)
    if missing and job.hours is not None:
        console.say(
            f"  out of time: {len(watch.ended)} of {len(job.asked)} trials are made; --resume makes the rest"
        )
    return sorted((ended[key] for key in watch.ended if key in ended), key=lambda trial: trial.number)


def _fit(tuner: tune.Tuner, watch: Watch) -> None:
    try:
        with _quiet():
            tuner.fit()
    except Exception:
        if watch.lost is not None:
            raise watch.lost from None
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune from showing a traceback for each failed trial (`Watch` says it in a line), Optuna from greeting."""
    levels = {"ray.tune": logging.CRITICAL, "optuna": logging.WARNING}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _tuner(job: Job, known: Mapping[str, Trial], watch: Watch) -> tune.Tuner:
    path, filesystem = train_storage(join(job.folder, FOLDER))
    trainable: Any = tune.with_parameters(try_values, search=job.search, folder=job.folder, asked=job.asked)
    space, search_alg, samples = _searched(job, known)
    return tune.Tuner(
        tune.with_resources(trainable, _per_trial(job.search)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            search_alg=search_alg,
            scheduler=_scheduler(job),
            num_samples=samples,
            time_budget_s=None if job.hours is None else job.hours * 3600,
            # A trial's process imports torch for seconds.
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{time.time_ns()}",
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[watch],
        ),
    )


def _searched(job: Job, known: Mapping[str, Trial]) -> tuple[dict[str, Any], Any, int]:
    """Tune's parameter space, its searcher, and how often it samples the space."""
    if job.by != "optuna":
        # Known trials say again what they came to: ASHA compares the others with them.
        again = job.scheduler == "asha"
        left = [i for i, values in enumerate(job.asked) if again or trial_key(values) not in known]
        return {"trial": tune.grid_search(left)}, None, 1
    from ray.tune.search.optuna import OptunaSearch

    # Optuna asks for the known ones first, which say again what they came to: so it knows, and ASHA does.
    first = sorted(known.values(), key=lambda trial: trial.number)
    searcher = OptunaSearch(
        metric="score",
        mode="max",
        seed=job.seed + len(first),
        points_to_evaluate=[dict(trial.values) for trial in first] or None,
    )
    return job.space.tune(), searcher, len(job.asked)


def _scheduler(job: Job) -> Any:
    if job.scheduler == "none" or job.search.tasks == 1:
        return None
    # The first tasks tell little: none is stopped before a third of the tasks.
    grace = math.ceil(job.search.tasks / REDUCTION)
    return ASHAScheduler(max_t=job.search.tasks, grace_period=grace, reduction_factor=REDUCTION)


def _per_trial(search: Search) -> dict[str, float]:
    return {"CPU": float(search.threads), **({"GPU": search.gpus} if search.gpus > 0 else {})}


def try_values(
    config: dict[str, Any], search: Search, folder: str, asked: Sequence[Mapping[str, Any]]
) -> None:
    """Tune's trainable: make one trial, reporting after every task; a kept one is not made again."""
    values = _values(config, asked)
    store = open_store(folder)
    known = kept(store, trial_key(values))
    if known is not None and known.status != "failed":
        for one in known.scores:
            tune.report(dict(one))
        return
    started = time.monotonic()
    siblings = _siblings(values, asked)
    scores: list[list[dict[str, float]]] = []
    try:
        for some in learn_siblings(search, siblings):
            scores.append(some)
            if len(scores) == search.tasks:
                # Before it is reported: whoever is killed now has it.
                _keep_all(store, siblings, scores, time.monotonic() - started)
            tune.report(some[0])
    except Exception as error:
        said, mine = f"{type(error).__name__}: {error}", tuple(some[0] for some in scores)
        keep(store, Trial(values, "failed", mine, time.monotonic() - started, said))
        raise


def _siblings(values: Mapping[str, Any], asked: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """These values, then others that are asked for and differ in the fusion alone: they are learnt alike."""

    def learnt(some: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in some.items() if key != "method.fusion"}

    others = [
        some for some in asked if learnt(some) == learnt(values) and trial_key(some) != trial_key(values)
    ]
    return [values, *others]


def _keep_all(
    store: Store,
    siblings: Sequence[Mapping[str, Any]],
    scores: Sequence[Sequence[dict[str, float]]],
    seconds: float,
) -> None:
    for i, values in enumerate(siblings):
        known = kept(store, trial_key(values))
        number = known.number if known else 0
        keep(store, Trial(values, "finished", tuple(some[i] for some in scores), seconds, number=number))


def _values(config: Mapping[str, Any], asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return dict(asked[config["trial"]]) if "trial" in config else dict(config)


class Watch(tune.Callback):
    """Sees every trial start, report and end: shows it, logs it, and keeps what the trial's process could not.

    Args:
        job: what is tried.
        known: trials kept by earlier starts, by key.
        group: the sweep in MLflow.
        console: shows progress.
    """

    def __init__(self, job: Job, known: Mapping[str, Trial], group: Group, console: Console) -> None:
        self.job, self.group, self.console = job, group, console
        self.started = time.monotonic()
        asked = sorted(known.values(), key=lambda trial: trial.number)
        self.keys = [t.key for t in asked] if job.by == "optuna" else [trial_key(v) for v in job.asked]
        self.ended: dict[str, Trial] = {}
        self.lost: LostLease | None = None
        # Of trials that run, by Tune's own id: Optuna may ask for the same values twice at once.
        self._since: dict[str, float] = {}
        self._scores: dict[str, list[dict[str, float]]] = {}
        for key in self.keys:
            if key in known:
                self._log(known[key])
        self._before = len(self.ended)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune writes its experiment down, callbacks too; nothing of ours reads that again.
        return tune.Callback, ()

    @property
    def complete(self) -> bool:
        """Whether there is nothing to try any more."""
        return len(self.ended) >= len(self.job.asked)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Tune's callback."""
        key = self._key(trial)
        if key not in self.keys:
            self.keys.append(key)
        self._since[trial.trial_id] = time.monotonic()
        self._scores[trial.trial_id] = []
        if key not in self.ended:
            self.group.begin(key, self._name(key), _values(trial.config, self.job.asked))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tune's callback."""
        self._check()
        names: tuple[str, ...] = ("score", *METRICS)
        one: dict[str, float] = {name: result[name] for name in names if name in result}
        scores = self._scores[trial.trial_id]
        if one:
            scores.append(one)
            self.group.log(self._key(trial), one, step=len(scores))

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Tune's callback, also for trials that ASHA stopped; not for those that run when the time is over."""
        self._end(trial, "stopped", None)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Tune's callback."""
        self._end(trial, "failed", "its process died (out of memory, or killed)")

    def _end(self, trial: TuneTrial, status: Status, error: str | None) -> None:
        """Take what the trial's process has kept; where it could not, keep what was seen of it."""
        self._check()
        key, store = self._key(trial), open_store(self.job.folder)
        seconds = time.monotonic() - self._since.pop(trial.trial_id, time.monotonic())
        scores = tuple(self._scores.pop(trial.trial_id, []))
        ended = kept(store, key)
        if ended is None or (ended.status == "failed" and status == "stopped"):
            ended = Trial(_values(trial.config, self.job.asked), status, scores, seconds, error)
        if ended.number == 0:
            ended = replace(ended, number=self.keys.index(key) + 1)
            keep(store, ended)
        known = key in self.ended
        self._log(ended)
        if not known:
            self.console.say(self._line(ended))

    def _check(self) -> None:
        try:
            self.job.check()
        except LostLease as error:
            self.lost = error
            raise

    def _name(self, key: str) -> str:
        return f"trial {self.keys.index(key) + 1}"

    def _key(self, trial: TuneTrial) -> str:
        return trial_key(_values(trial.config, self.job.asked))

    def _log(self, trial: Trial) -> None:
        """A nested run with a point per task; one that is logged already is left alone."""
        self.ended[trial.key] = trial
        self.group.begin(trial.key, self._name(trial.key), trial.values)
        for step, one in enumerate(trial.scores, start=1):
            self.group.log(trial.key, one, step=step)
        tags = {"trial": trial.status, **({"error": trial.error} if trial.error else {})}
        status: Any = "FAILED" if trial.status == "failed" else "FINISHED"
        self.group.end(trial.key, status, metrics={"time/trial": trial.seconds}, tags=tags)

    def _line(self, trial: Trial) -> str:
        """What a person wants to know when a trial has ended."""
        n, tasks = len(self.job.asked), self.job.search.tasks
        how = {
            "finished": f"scored {trial.score:.2f}",
            "stopped": f"stopped after {len(trial.scores)} of {tasks} tasks at {trial.score:.2f}",
            "failed": f"failed: {trial.error}",
        }[trial.status]
        top = best(self.ended.values())
        so_far = f"; best {top.score:.2f} with {shown(top.values)}" if top else ""
        stopped = sum(t.status == "stopped" for t in self.ended.values())
        early = f", {stopped} stopped early" if stopped else ""
        return f"  trial {len(self.ended)} of {n} {how} ({shown(trial.values)}){so_far}{early}{self._left()}"

    def _left(self) -> str:
        """How much is running, and how long it takes until all trials have ended; of those of this start."""
        ended, left = len(self.ended) - self._before, len(self.job.asked) - len(self.ended)
        if left <= 0:
            return ""
        passed = time.monotonic() - self.started
        seconds = passed * left / ended
        if self.job.hours is not None:
            seconds = min(seconds, max(0.0, self.job.hours * 3600 - passed))
        return f"; {len(self._since)} running, about {duration(seconds)} left"


def shown(values: Mapping[str, Any]) -> str:
    """Values in a few words: the last part of each key, numbers to three digits."""
    return ", ".join(
        f"{key.rpartition('.')[2]} {value:.3g}"
        if isinstance(value, float)
        else f"{key.rpartition('.')[2]} {value}"
        for key, value in values.items()
    )
