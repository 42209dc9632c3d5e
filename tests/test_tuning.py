"""What Ray Tune is asked for, and what is kept, logged and said of what it reports; test_sweep.py has whole sweeps."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from lada_ray import tuning as module
from lada_ray.cluster import Resources
from lada_ray.console import Console
from lada_ray.errors import LostLease
from lada_ray.space import Space
from lada_ray.store import open_store
from lada_ray.trials import Trial, all_kept, keep, trial_key
from lada_ray.tuning import Job, Watch, run_trials, shown, try_values

SPACE = Space.from_plain(
    {"method.beta": {"loguniform": [0.3, 10]}, "method.memory_per_class": {"choice": [1, 2]}}
)
ASKED = SPACE.sample(4, 0)
TASKS = 3
SCORES = [{"score": s, "transfer": s + 1, "average": s + 2, "last": s + 3} for s in (1.0, 2.0, 3.0)]


def options(**values: Any) -> Any:
    return SimpleNamespace(**values)


def search(tasks: int = TASKS, gpus: float = 0) -> Any:
    return SimpleNamespace(tasks=tasks, threads=2, gpus=gpus)


class Logged:
    """Stands for the sweep in MLflow."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.params: dict[str, Mapping[str, Any]] = {}
        self.points: list[tuple[str, int, float]] = []
        self.ends: dict[str, tuple[str, Mapping[str, str]]] = {}

    def begin(self, key: str, name: str, params: Mapping[str, Any]) -> None:
        self.names[key], self.params[key] = name, params

    def log(self, key: str, metrics: Mapping[str, float], step: int) -> None:
        self.points.append((key, step, metrics["score"]))

    def end(self, key: str, status: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        assert set(metrics) == {"time/trial"}
        self.ends[key] = status, tags


class Tried:
    """A sweep's folder, and what is said and logged while trials come and go."""

    def __init__(self, folder: Path, known: Sequence[Trial] = (), **changes: Any) -> None:
        values: dict[str, Any] = {"by": "random", "scheduler": "asha", "hours": None, "check": lambda: None}
        values |= changes
        self.job = Job(search(), str(folder), ASKED, SPACE, seed=3, **values)
        self.store = open_store(folder)
        for trial in known:
            keep(self.store, trial)
        self.said: list[str] = []
        self.console = Console(quiet=True)
        self.console.say = self.said.append  # type: ignore[assignment, method-assign]
        self.group = cast(Any, Logged())
        self.known = {trial.key: trial for trial in known}
        self.watch = Watch(self.job, self.known, self.group, self.console)

    def trial(self, i: int) -> Any:
        config = ASKED[i] if self.job.by == "optuna" else {"trial": i}
        return SimpleNamespace(config=config, trial_id=f"tune {i}")

    def call(self, what: str, i: int, **more: Any) -> None:
        getattr(self.watch, f"on_trial_{what}")(iteration=1, trials=[], trial=self.trial(i), **more)

    def report(self, i: int, reports: int) -> None:
        """Tune sees a trial start and report."""
        self.call("start", i)
        for one in SCORES[:reports]:
            self.call("result", i, result={**one, "training_iteration": 1, "time_total_s": 1.0})

    def finish(self, i: int) -> None:
        """What the trial's process keeps, and Tune sees."""
        self.report(i, TASKS)
        keep(self.store, Trial(ASKED[i], "finished", tuple(SCORES), 1.0))
        self.call("complete", i)


@pytest.fixture
def tried(tmp_path: Path) -> Tried:
    return Tried(tmp_path)


# ---------------------------------------------------------------- what comes to an end


def test_a_finished_trial_is_logged_and_said(tried: Tried) -> None:
    tried.finish(1)
    key = trial_key(ASKED[1])
    assert tried.group.names == {key: "trial 2"}
    assert tried.group.params == {key: ASKED[1]}
    # What Tune adds to a report is left out; a point that is there stays, so that the second time costs nothing.
    assert sorted(set(tried.group.points)) == [(key, 1, 1.0), (key, 2, 2.0), (key, 3, 3.0)]
    assert tried.group.ends == {key: ("FINISHED", {"trial": "finished"})}
    values = shown(ASKED[1])
    assert len(tried.said) == 1
    assert tried.said[0].startswith(
        f"  trial 1 of 4 scored 3.00 ({values}); best 3.00 with {values}; 0 running, about"
    )


def test_a_trial_that_asha_gave_up_is_kept_as_stopped(tried: Tried) -> None:
    tried.report(0, 2)
    tried.call("complete", 0)
    (trial,) = all_kept(tried.store).values()
    assert (trial.status, trial.scores, trial.values) == ("stopped", tuple(SCORES[:2]), ASKED[0])
    assert "stopped after 2 of 3 tasks at 2.00" in tried.said[0]
    assert "best" not in tried.said[0]
    assert tried.group.ends[trial.key] == ("FINISHED", {"trial": "stopped"})


def test_values_that_run_twice_at_once_are_kept_apart_while_they_run(tmp_path: Path) -> None:
    """Optuna may ask for the same values again before they are known."""
    tried = Tried(tmp_path, by="optuna")
    first, second = tried.trial(0), cast(Any, SimpleNamespace(config=ASKED[0], trial_id="again"))
    for one in (first, second):
        tried.watch.on_trial_start(1, [], one)
    tried.watch.on_trial_result(1, [], second, dict(SCORES[0]))
    tried.watch.on_trial_complete(1, [], second)
    (trial,) = all_kept(tried.store).values()
    assert (trial.status, len(trial.scores), trial.number) == ("stopped", 1, 1)
    keep(tried.store, Trial(ASKED[0], "finished", tuple(SCORES)))
    tried.watch.on_trial_complete(1, [], first)
    (trial,) = all_kept(tried.store).values()
    assert (trial.status, len(trial.scores), trial.number) == ("finished", 3, 1)


def test_whoever_lost_the_sweep_stops_at_the_next_report(tmp_path: Path) -> None:
    def lost() -> None:
        raise LostLease("taken over")

    tried = Tried(tmp_path, check=lost)
    tried.call("start", 0)
    with pytest.raises(LostLease):
        tried.call("result", 0, result=dict(SCORES[0]))
    with pytest.raises(LostLease):
        tried.call("complete", 0)
    assert isinstance(tried.watch.lost, LostLease)
    assert not all_kept(tried.store)

    class Fails:
        def fit(self) -> None:
            raise RuntimeError("Tune wraps what a callback raises")

    with pytest.raises(LostLease):
        module._fit(cast(Any, Fails()), tried.watch)


def test_a_trial_whose_code_failed_keeps_its_error(tried: Tried) -> None:
    tried.report(0, 1)
    keep(tried.store, Trial(ASKED[0], "failed", tuple(SCORES[:1]), 1.0, "ValueError: no"))
    tried.call("error", 0)
    key = trial_key(ASKED[0])
    assert tried.group.ends[key] == ("FAILED", {"trial": "failed", "error": "ValueError: no"})
    assert tried.said[0].startswith(f"  trial 1 of 4 failed: ValueError: no ({shown(ASKED[0])}); 0 running")


def test_a_trial_whose_process_died_is_kept_as_failed(tried: Tried) -> None:
    tried.report(0, 1)
    tried.call("error", 0)
    (trial,) = all_kept(tried.store).values()
    assert (trial.status, trial.scores) == ("failed", tuple(SCORES[:1]))
    assert trial.error == "its process died (out of memory, or killed)"


def test_the_last_line_says_nothing_of_time_left(tried: Tried) -> None:
    for i in range(4):
        tried.finish(i)
    assert [line.split(" scored")[0] for line in tried.said] == [f"  trial {i} of 4" for i in (1, 2, 3, 4)]
    assert tried.said[3].endswith(f"best 3.00 with {shown(ASKED[0])}")
    assert tried.watch.complete


def test_time_left_counts_what_this_start_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Trial(values, "finished", tuple(SCORES)) for values in ASKED[:2]]
    tried = Tried(tmp_path, known)
    assert tried.said == []
    began = tried.watch.started
    monkeypatch.setattr(module.time, "monotonic", lambda: began + 100)
    tried.finish(2)
    assert "trial 3 of 4" in tried.said[0]
    assert tried.said[0].endswith("0 running, about 1 min 40 s left")


def test_time_left_is_no_more_than_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(tmp_path, hours=0.05)
    began = tried.watch.started
    monkeypatch.setattr(module.time, "monotonic", lambda: began + 160)
    tried.finish(0)
    assert tried.said[0].endswith("about 20 s left")


def test_running_trials_are_counted(tried: Tried) -> None:
    for i in range(3):
        tried.report(i, 1)
    tried.call("complete", 1)
    assert "; 2 running, " in tried.said[0]


# ---------------------------------------------------------------- what is known


def test_known_trials_are_logged_and_neither_said_nor_counted_twice(tmp_path: Path) -> None:
    known = [Trial(values, "finished", tuple(SCORES)) for values in ASKED]
    tried = Tried(tmp_path, known)
    assert tried.watch.complete
    assert tried.group.names == {t.key: f"trial {i}" for i, t in enumerate(known, start=1)}
    assert {status for status, _ in tried.group.ends.values()} == {"FINISHED"}
    # ASHA hears of them again.
    tried.finish(0)
    assert tried.said == []
    assert len(tried.watch.ended) == 4


def test_nothing_is_started_when_all_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(tmp_path, [Trial(values, "finished", tuple(SCORES)) for values in ASKED])
    monkeypatch.setattr(module, "_tuner", lambda *_: pytest.fail("Tune was started"))
    found = run_trials(tried.job, tried.group, tried.console)
    assert [trial.values for trial in found] == ASKED
    assert tried.said == ["  4 trials are known from earlier starts"]


@pytest.mark.parametrize(("scheduler", "left"), [("none", [1, 3]), ("asha", [0, 1, 2, 3])])
def test_known_trials_come_again_for_asha_alone(tmp_path: Path, scheduler: str, left: list[int]) -> None:
    known = [Trial(ASKED[i], "finished", tuple(SCORES)) for i in (0, 2)]
    tried = Tried(tmp_path, known, scheduler=scheduler)
    space, searcher, samples = module._searched(tried.job, tried.known)
    assert (space, searcher, samples) == ({"trial": {"grid_search": left}}, None, 1)


def test_a_kept_trial_reports_and_learns_nothing(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tried.store, Trial(ASKED[0], "stopped", tuple(SCORES[:2])))
    reported: list[dict[str, float]] = []
    monkeypatch.setattr(module.tune, "report", reported.append)
    monkeypatch.setattr(module, "learn_siblings", lambda *_: pytest.fail("a known trial was made again"))
    try_values({"trial": 0}, tried.job.search, tried.job.folder, ASKED)
    assert reported == SCORES[:2]


def test_a_trial_is_kept_before_its_end_is_reported(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed in between has it; one that failed before is made again."""
    keep(tried.store, Trial(ASKED[0], "failed", (), error="it was"))
    seen: list[list[str]] = []
    monkeypatch.setattr(
        module.tune, "report", lambda _: seen.append([t.status for t in all_kept(tried.store).values()])
    )
    monkeypatch.setattr(module, "learn_siblings", lambda *_: iter([[one] for one in SCORES]))
    try_values({"trial": 0}, tried.job.search, tried.job.folder, ASKED)
    assert seen == [["failed"], ["failed"], ["finished"]]
    (trial,) = all_kept(tried.store).values()
    assert trial.scores == tuple(SCORES)
    assert trial.seconds > 0


def test_a_failure_is_kept_with_what_was_learnt_before(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(*_: Any) -> Any:
        yield [SCORES[0]]
        raise MemoryError("too much")

    monkeypatch.setattr(module.tune, "report", lambda _: None)
    monkeypatch.setattr(module, "learn_siblings", learn)
    with pytest.raises(MemoryError):
        try_values(
            ASKED[2], tried.job.search, tried.job.folder, ASKED
        )  # as optuna gives it: the values themselves
    (trial,) = all_kept(tried.store).values()
    assert (trial.values, trial.status, trial.error) == (ASKED[2], "failed", "MemoryError: too much")
    assert trial.scores == (SCORES[0],)


# ---------------------------------------------------------------- what Tune is asked for


def test_optuna_is_told_what_is_known(tmp_path: Path) -> None:
    known = [
        Trial(ASKED[0], "finished", tuple(SCORES)),
        Trial(ASKED[1], "stopped", tuple(SCORES[:1])),
        Trial(ASKED[2], "stopped", ()),
    ]
    tried = Tried(tmp_path, [replace(t, number=3 - i) for i, t in enumerate(known)], by="optuna")
    space, searcher, samples = module._searched(tried.job, tried.known)
    assert sorted(space) == sorted(SPACE.parameters)
    assert samples == len(ASKED)  # the known ones count: they say again what they came to, in their order
    assert searcher.set_search_properties("score", "max", space)
    asked = [searcher.suggest(str(i)) for i in range(3)]
    assert asked == [ASKED[2], ASKED[1], ASKED[0]]
    assert tried.watch.keys == [trial_key(values) for values in asked]


def test_what_differs_in_the_fusion_alone_is_learnt_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated, additive = ({"method.beta": 2.0, "method.fusion": f} for f in ("gated", "additive"))
    asked = [gated, {**gated, "method.beta": 3.0}, additive]
    learnt: list[Sequence[Mapping[str, Any]]] = []

    def learn(_: Any, siblings: Sequence[Mapping[str, Any]]) -> Any:
        learnt.append(siblings)
        for one in SCORES:
            yield [one, {**one, "score": one["score"] + 10}]

    reported: list[dict[str, float]] = []
    monkeypatch.setattr(module.tune, "report", reported.append)
    monkeypatch.setattr(module, "learn_siblings", learn)
    for i in (0, 2):
        try_values({"trial": i}, search(), str(tmp_path), asked)
    assert learnt == [[gated, additive]]
    assert [one["score"] for one in reported] == [1, 2, 3, 11, 12, 13]


def test_optuna_searches_in_an_order_of_its_own(tmp_path: Path) -> None:
    tried = Tried(tmp_path, by="optuna")
    assert tried.watch.keys == []
    for i in (2, 0):
        tried.finish(i)
    assert tried.watch.keys == [trial_key(ASKED[2]), trial_key(ASKED[0])]
    assert tried.group.names[trial_key(ASKED[0])] == "trial 2"


def test_optuna_has_the_seed_of_the_run(tmp_path: Path) -> None:
    def suggested() -> dict[str, Any]:
        space, searcher, _ = module._searched(Tried(tmp_path, by="optuna").job, {})
        searcher.set_search_properties("score", "max", space)
        return searcher.suggest("a")

    assert suggested() == suggested()
    assert SPACE.positions(suggested()) is not None


@pytest.mark.parametrize(("tasks", "rungs"), [(2, [1]), (3, [1, 3]), (6, [2, 6]), (11, [4])])
def test_asha_gives_a_third_of_the_tasks(tasks: int, rungs: list[int]) -> None:
    scheduler = module._scheduler(options(scheduler="asha", search=search(tasks)))
    assert isinstance(scheduler, ASHAScheduler)
    (bracket,) = scheduler._brackets
    assert [milestone for milestone, _ in reversed(bracket._rungs)] == rungs
    assert scheduler._max_t == tasks


def test_there_is_nothing_to_stop_in_a_single_task() -> None:
    assert module._scheduler(options(scheduler="asha", search=search(1))) is None
    assert module._scheduler(options(scheduler="none", search=search())) is None


def test_many_trials_share_a_gpu() -> None:
    assert module._per_trial(search()) == {"CPU": 2.0}
    assert module._per_trial(search(gpus=0.25)) == {"CPU": 2.0, "GPU": 0.25}
    assert [Resources(1, 1, 0, 1, 2, gpus).gpu_share for gpus in (1, 0.1, 0)] == [0.25, 0.1, 0]


def test_libraries_are_as_loud_as_before_afterwards() -> None:
    tune_log, optuna_log = logging.getLogger("ray.tune"), logging.getLogger("optuna")
    before = tune_log.level, optuna_log.level
    with module._quiet():
        assert not tune_log.isEnabledFor(logging.ERROR)
        assert not optuna_log.isEnabledFor(logging.INFO)
    assert (tune_log.level, optuna_log.level) == before


def test_what_tune_writes_down_of_the_watch_is_nothing(tried: Tried) -> None:
    again = pickle.loads(pickle.dumps(tried.watch))
    assert type(again) is tune.Callback


def test_values_in_a_few_words() -> None:
    assert (
        shown({"method.beta": 2.34567, "views": 4, "method.fusion": "gated"})
        == "beta 2.35, views 4, fusion gated"
    )
