"""The trials of a sweep under Ray Tune: which values come next, which trials are given up, and how far they are."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler

from lada_ray.cluster import Resources
from lada_ray.console import Console
from lada_ray.fit.task import train_storage
from lada_ray.page import duration
from lada_ray.space import Space
from lada_ray.store import join, open_store
from lada_ray.tracking import Group
from lada_ray.trial import METRICS, Search, learn_trial
from lada_ray.trials import Trial, all_kept, keep, kept, trial_key

# A trial shares its GPU with others: its tasks are small.
GPUS_PER_TRIAL = 0.25
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


def run_trials(job: Job, group: Group, console: Console) -> list[Trial]:
    """Make the trials that are not kept in the sweep's folder yet, side by side.

    A trial that failed before is made again. One that ASHA stopped stays stopped.

    Returns:
        All trials asked for that came to an end, in order.
    """
    store = open_store(job.folder)
    known = {key: trial for key, trial in all_kept(store).items() if trial.status != "failed"}
    if known:
        console.say(f"  {len(known)} trials are known from earlier starts")
    watch = Watch(job, known, group, console)
    with console.stage("trials"):
        if not watch.complete:
            _tuner(job, known, watch).fit()
    for entry in list(store.list(FOLDER)):
        store.delete(entry.key)
    ended = all_kept(store)
    return [ended[key] for key in watch.keys if key in ended]


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

    done = [trial for trial in known.values() if math.isfinite(trial.score)]
    told: dict[str, Any] = (
        {
            "points_to_evaluate": [dict(trial.values) for trial in done],
            "evaluated_rewards": [trial.score for trial in done],
        }
        if done
        else {}
    )
    searcher = OptunaSearch(metric="score", mode="max", seed=job.seed + len(done), **told)
    return job.space.tune(), searcher, len(job.asked) - len(done)


def _scheduler(job: Job) -> Any:
    if job.scheduler == "none" or job.search.tasks == 1:
        return None
    # The first tasks tell little: none is stopped before a third of the tasks.
    grace = math.ceil(job.search.tasks / REDUCTION)
    return ASHAScheduler(max_t=job.search.tasks, grace_period=grace, reduction_factor=REDUCTION)


def _per_trial(search: Search) -> dict[str, float]:
    resources: Resources = search.stream.resources
    gpus = min(GPUS_PER_TRIAL, resources.gpus_per_train_worker)
    return {"CPU": float(search.threads), **({"GPU": gpus} if gpus > 0 else {})}


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
    scores: list[dict[str, float]] = []
    try:
        for one in learn_trial(search, values):
            scores.append(one)
            if len(scores) == search.tasks:
                # Before it is reported: whoever is killed now has it.
                keep(store, Trial(values, "finished", tuple(scores), time.monotonic() - started))
            tune.report(one)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        keep(store, Trial(values, "failed", tuple(scores), time.monotonic() - started, said))
        raise


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
        self.keys = list(known) if job.by == "optuna" else [trial_key(values) for values in job.asked]
        self.ended: dict[str, Trial] = {}
        self.running: dict[str, float] = {}
        self._scores: dict[str, list[dict[str, float]]] = {}
        for key in self.keys:
            if key in known:
                self._log(known[key])

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
        self.running[key] = time.monotonic()
        self._scores[key] = []
        if key not in self.ended:
            self.group.begin(key, f"trial {self.keys.index(key) + 1}", _values(trial.config, self.job.asked))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tune's callback."""
        key = self._key(trial)
        names: tuple[str, ...] = ("score", *METRICS)
        one: dict[str, float] = {name: result[name] for name in names if name in result}
        if one:
            self._scores[key].append(one)
            self.group.log(key, one, step=len(self._scores[key]))

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Tune's callback, also for trials that ASHA stopped."""
        key = self._key(trial)
        seconds = time.monotonic() - self.running.pop(key, time.monotonic())
        store = open_store(self.job.folder)
        ended = kept(store, key)
        if ended is None or ended.status == "failed":
            if self._out_of_time():
                return  # made again when the sweep goes on
            values = _values(trial.config, self.job.asked)
            ended = Trial(values, "stopped", tuple(self._scores.get(key, [])), seconds)
            keep(store, ended)
        self._end(key, ended)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Tune's callback."""
        key = self._key(trial)
        seconds = time.monotonic() - self.running.pop(key, time.monotonic())
        store = open_store(self.job.folder)
        ended = kept(store, key)
        if ended is None or ended.status != "failed":
            values, scores = _values(trial.config, self.job.asked), tuple(self._scores.get(key, []))
            ended = Trial(values, "failed", scores, seconds, "its process died (out of memory, or killed)")
            keep(store, ended)
        self._end(key, ended)

    def _key(self, trial: TuneTrial) -> str:
        return trial_key(_values(trial.config, self.job.asked))

    def _out_of_time(self) -> bool:
        return self.job.hours is not None and time.monotonic() - self.started >= self.job.hours * 3600

    def _end(self, key: str, trial: Trial) -> None:
        known = key in self.ended
        self._log(trial)
        if not known:
            self.console.say(self._line(trial))

    def _log(self, trial: Trial) -> None:
        """A nested run with a point per task; one that is logged already is left alone."""
        self.ended[trial.key] = trial
        self.group.begin(trial.key, f"trial {self.keys.index(trial.key) + 1}", trial.values)
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
        finished = [t for t in self.ended.values() if t.status == "finished"]
        top = max(finished, key=lambda t: t.score, default=None)
        so_far = f"; best {top.score:.2f} with {shown(top.values)}" if top else ""
        left = (time.monotonic() - self.started) * (n - len(self.ended)) / len(self.ended)
        return (
            f"  trial {len(self.ended)} of {n} {how} ({shown(trial.values)}){so_far}; "
            f"{len(self.running)} running, about {duration(left)} left"
        )


def shown(values: Mapping[str, Any]) -> str:
    """Values in a few words: the last part of each key, numbers to three digits."""
    return ", ".join(
        f"{key.rpartition('.')[2]} {value:.3g}"
        if isinstance(value, float)
        else f"{key.rpartition('.')[2]} {value}"
        for key, value in values.items()
    )
