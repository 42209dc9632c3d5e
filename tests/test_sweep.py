"""Sweeps: one that runs out of time, goes on and is extended, and small ones under ASHA and Optuna."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

import lada_ray
from lada_ray import sweep as module
from lada_ray import tuning
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains import Domain
from lada_ray.errors import InputError, LadaError
from lada_ray.space import Space
from lada_ray.store import open_store
from lada_ray.sweep import Options, Sweep, run_sweep, show_sweep
from lada_ray.trial import Search, changed, learn_trial
from lada_ray.trials import Trial, all_kept
from tests.conftest import TINY_DOMAINS, write_tiny_clip

SPACE = {"method.beta": {"loguniform": [0.3, 10]}, "method.memory_per_class": {"choice": [1, 3]}}
SAMPLES = 3
# A training image is encoded under two views, a test image under one.
SEARCHED_VIEWS, TEST_IMAGES = 3 * 18 * 2, 3 * 12


class Peeked(AssertionError):
    """Somebody looked at a test image while trials were made."""


class Unreadable:
    """Stands for a test image whose label, path and content cannot be read."""

    def __getattr__(self, name: str) -> Any:
        raise Peeked(name)


@dataclass
class Tiny:
    """Three domains of three classes in a storage of their own, with a random encoder; their sweeps are all blind."""

    storage: Path
    values: dict[str, Any]
    said: list[str] = field(default_factory=list)
    search: Search | None = None

    def config(self, name: str = "tiny", **changes: Any) -> StreamConfig:
        return StreamConfig(**{**self.values, "name": name, **changes})

    def sweep(self, config: StreamConfig | None = None, space: Any = None, **options: Any) -> Sweep:
        """Search while test images cannot be read; the winner alone lists them again."""
        console = Console(quiet=True)
        console.say = self.said.append  # type: ignore[assignment, method-assign]
        check_input, run_trials = module.check_input, module.run_trials

        def unreadable(*arguments: Any) -> Any:
            domains, spec = check_input(*arguments)
            tests: Any = [tuple(Unreadable() for _ in d.test) for d in domains]
            return tuple(replace(d, test=test) for d, test in zip(domains, tests, strict=True)), spec

        def watched(job: Any, *more: Any) -> Any:
            self.search = job.search
            return run_trials(job, *more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "check_input", unreadable)
            patch.setattr(module, "run_trials", watched)
            return run_sweep(
                config or self.config(), Space.from_plain(space or SPACE), options_of(**options), console
            )

    def trials(self, name: str = "tiny") -> dict[str, Trial]:
        return all_kept(open_store(self.storage / f"{name}.sweep"))

    def moments(self, name: str = "tiny") -> dict[str, int]:
        """When each trial was written."""
        folder = self.storage / f"{name}.sweep" / "trials"
        return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.json")}

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.storage}/mlflow.db")

    def logged(self, name: str = "tiny") -> tuple[MlflowRun, dict[str, MlflowRun]]:
        """The only parent of a sweep in MLflow, and its nested runs by name."""
        experiment = self.client.get_experiment_by_name("lada_ray")
        assert experiment is not None
        runs = self.client.search_runs([experiment.experiment_id], max_results=1000)
        (parent,) = [run for run in runs if run.info.run_name == f"{name}.sweep"]
        of = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        nested = {str(run.info.run_name): run for run in of}
        assert len(nested) == len(of)
        return parent, nested


def options_of(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "samples": SAMPLES,
        "metric": "average",
        "scheduler": "none",
        "search": "random",
        "folds": 2,
        "hours": None,
        "resume": False,
        "fresh": False,
    }
    return Options(**{**values, **changes})


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, tiny_domains: tuple[Domain, ...], ray_local: None
) -> Iterator[Tiny]:
    folder = tmp_path_factory.mktemp("swept")
    architecture, weights = write_tiny_clip(folder)
    roots = [Path(d.train[0].uri).parents[2] for d in tiny_domains]
    values = {
        "storage": str(folder / "runs"),
        "encoder": {"model": "tiny", "pretrained": str(weights), "architecture": str(architecture)},
        "views": 1,
        "method": {"epochs": 2, "batch_size": 8, "memory_per_class": 3, "mixture_components": 2},
        "domains": [{"name": r.name, "kind": "folder", "root": str(r)} for r in roots],
        "resources": {"train_workers": 0, "cpus_per_train_worker": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Tiny(folder / "runs", values)


@dataclass
class OutOfTime:
    """What a sweep without any time came to."""

    error: str
    kept: int
    status: str


@pytest.fixture(scope="module")
def out_of_time(tiny: Tiny) -> OutOfTime:
    with pytest.raises(LadaError) as caught:
        tiny.sweep(hours=1e-9)
    parent, _ = tiny.logged()
    return OutOfTime(str(caught.value), len(tiny.trials()), parent.info.status)


@pytest.fixture(scope="module")
def searched(tiny: Tiny, out_of_time: OutOfTime) -> Sweep:
    """The same sweep, gone on with; three trials."""
    tiny.said.clear()
    return tiny.sweep(resume=True)


@pytest.fixture(scope="module")
def extended(tiny: Tiny, searched: Sweep) -> tuple[dict[str, int], Sweep]:
    """Two more trials; and when the first three were written."""
    return tiny.moments(), tiny.sweep(samples=SAMPLES + 2, resume=True)


# ---------------------------------------------------------------- the whole of it


def test_out_of_time_is_said_and_nothing_unfinished_is_kept(out_of_time: OutOfTime) -> None:
    assert out_of_time == OutOfTime(
        "no trial finished in time: --resume goes on, with more --hours", 0, "FAILED"
    )


def test_trials_are_those_of_the_space(tiny: Tiny, searched: Sweep) -> None:
    assert [trial.values for trial in searched.trials] == Space.from_plain(SPACE).sample(SAMPLES, 0)
    assert {trial.status for trial in searched.trials} == {"finished"}
    assert {len(trial.scores) for trial in searched.trials} == {len(TINY_DOMAINS)}
    assert searched.best.score == max(trial.score for trial in searched.trials)
    assert [trial.number for trial in searched.trials] == [1, 2, 3]
    assert tiny.trials() == {trial.key: trial for trial in searched.trials}
    assert all(trial.seconds > 0 for trial in searched.trials)


def test_scores_are_those_of_trials_in_one_process(tiny: Tiny, searched: Sweep) -> None:
    assert tiny.search is not None
    assert (tiny.search.tasks, len(tiny.search.folds), tiny.search.threads) == (3, 2, 1)
    for trial in searched.trials[:2]:
        assert tuple(learn_trial(tiny.search, trial.values)) == trial.scores


def test_images_are_encoded_once_and_test_images_for_the_winner_alone(searched: Sweep) -> None:
    assert searched.encoded == SEARCHED_VIEWS
    assert searched.result.metrics["images_encoded"] == TEST_IMAGES


def test_the_winner_is_learnt_under_a_name_that_tells_its_values(tiny: Tiny, searched: Sweep) -> None:
    name = f"tiny.best-{searched.best.key[:6]}"
    assert searched.result.folder == str(tiny.storage / name)
    assert searched.config == changed(tiny.config(), searched.best.values).model_copy(update={"name": name})
    assert list(searched.result.accuracy.columns) == list(TINY_DOMAINS)
    assert len(searched.result.digests) == 3


def test_best_yaml_learns_the_winner_again(tiny: Tiny, searched: Sweep) -> None:
    best = Path(searched.folder) / "best.yaml"
    assert StreamConfig.from_yaml(best) == searched.config
    again = lada_ray.run_stream(StreamConfig.from_yaml(best, {"name": "again"}), console=Console(quiet=True))
    assert again.folder == str(tiny.storage / "again")
    assert again.digests == searched.result.digests
    pd.testing.assert_frame_equal(again.accuracy, searched.result.accuracy)
    # Or with the winner's values said by hand.
    values = {
        **tiny.values["method"],
        **{k.removeprefix("method."): v for k, v in searched.best.values.items()},
    }
    byhand = lada_ray.run_stream(tiny.config("by-hand", method=values), console=Console(quiet=True))
    assert byhand.digests == searched.result.digests


def test_the_folder_of_a_sweep(searched: Sweep) -> None:
    files = {path.relative_to(searched.folder).as_posix() for path in Path(searched.folder).rglob("*")}
    assert {"best.yaml", "sweep.html", "sweep.png", "sweep.json", "trials.csv"} <= files
    # Of Tune's own state no file is left: it would be a pickle.
    assert not [f for f in files if f.startswith("ray/") and (Path(searched.folder) / f).is_file()]
    table = pd.read_csv(Path(searched.folder) / "trials.csv")
    assert len(table) >= SAMPLES
    page = Path(searched.folder, "sweep.html").read_text()
    assert "No peeking" in page
    assert f"jobs/run_stream.py --config {searched.folder}/best.yaml" in page


def test_progress_is_said(tiny: Tiny, searched: Sweep) -> None:
    lines = [line for line in tiny.said if line.startswith("  trial ")]
    assert [line.split(" scored ")[0] for line in lines[:SAMPLES]] == [
        f"  trial {i} of {SAMPLES}" for i in range(1, SAMPLES + 1)
    ]
    assert "; best " in lines[0]
    assert " running, about " in lines[0]
    assert (
        f"  the best trial scored {searched.best.score:.2f}; learning it on all training images" in tiny.said
    )


def test_what_is_shown_in_the_end(searched: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    show_sweep(searched, Console())
    printed = capsys.readouterr().out
    assert "Transfer" in printed
    for name in ("sweep.html", "trials.csv", "best.yaml"):
        assert f"{searched.folder}/{name}" in printed.splitlines()
    assert printed.splitlines()[-1] == f"the search has encoded {SEARCHED_VIEWS} image views"


# ---------------------------------------------------------------- starting again


def test_a_second_start_has_to_say_that_it_goes_on(tiny: Tiny, searched: Sweep) -> None:
    before = tiny.moments()
    with pytest.raises(InputError) as caught:
        tiny.sweep()
    assert "There is a sweep" in str(caught.value)
    assert caught.value.problems == ["--resume continues it, --fresh starts over"]
    assert tiny.moments() == before


def test_a_finished_sweep_is_looked_up(tiny: Tiny, searched: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny.moments()
    monkeypatch.setattr(tuning, "_tuner", lambda *_: pytest.fail("Tune was started"))
    again = tiny.sweep(resume=True)
    assert tiny.moments() == before
    assert (again.trials, again.best, again.config) == (searched.trials, searched.best, searched.config)
    assert again.result.digests == searched.result.digests
    assert again.encoded == SEARCHED_VIEWS


@pytest.mark.parametrize(
    ("config", "space", "options", "named"),
    [
        ({}, {**SPACE, "method.beta": {"loguniform": [0.3, 9]}}, {}, "space.method.beta"),
        ({}, {"method.beta": SPACE["method.beta"]}, {}, "space.method.memory_per_class"),
        ({}, SPACE, {"metric": "last"}, "metric: average in the run, last now"),
        ({}, SPACE, {"folds": 3}, "folds: 2 in the run, 3 now"),
        ({"seed": 1}, SPACE, {}, "seed: 0 in the run, 1 now"),
        ({"views": 0}, SPACE, {}, "views: 1 in the run, 0 now"),
        ({"method": {"epochs": 3}}, SPACE, {}, "method.epochs: 2 in the run, 3 now"),
    ],
    ids=["range", "parameters", "metric", "folds", "seed", "views", "method"],
)
def test_another_sweep_under_one_name_is_refused(
    tiny: Tiny, searched: Sweep, config: Any, space: Any, options: Any, named: str
) -> None:
    before = tiny.moments()
    method = {**tiny.values["method"], **config.get("method", {})}
    with pytest.raises(InputError, match="was started differently") as caught:
        tiny.sweep(tiny.config(**{**config, "method": method}), space, resume=True, **options)
    assert any(problem.startswith(named) for problem in caught.value.problems), caught.value.problems
    assert tiny.moments() == before


def test_other_domains_under_one_name_are_refused(tiny: Tiny, searched: Sweep) -> None:
    domains = tiny.values["domains"]
    with pytest.raises(InputError, match="order: "):
        tiny.sweep(tiny.config(domains=domains[::-1]), resume=True)
    renamed = [{**domains[0], "class_names": {"class_0": "an apple"}}, *domains[1:]]
    with pytest.raises(InputError, match=r"domains\.fruit: .*an apple"):
        tiny.sweep(tiny.config(domains=renamed), resume=True)


def test_more_samples_extend(tiny: Tiny, searched: Sweep, extended: tuple[dict[str, int], Sweep]) -> None:
    before, sweep = extended
    assert sweep.trials[:SAMPLES] == searched.trials
    assert [t.values for t in sweep.trials] == Space.from_plain(SPACE).sample(SAMPLES + 2, 0)
    now = tiny.moments()
    assert len(now) == SAMPLES + 2
    assert {key: now[key] for key in before} == before
    winners = {f"tiny.best-{s.best.key[:6]}" for s in (searched, sweep)}
    assert {*sweep.earlier, sweep.config.name} == winners
    assert (sweep.encoded, sweep.result.metrics["images_encoded"] in (0, TEST_IMAGES)) == (
        SEARCHED_VIEWS,
        True,
    )


def test_mlflow_has_one_parent_and_a_run_per_trial(
    tiny: Tiny, searched: Sweep, extended: tuple[dict[str, int], Sweep]
) -> None:
    _, sweep = extended
    parent, nested = tiny.logged()
    assert parent.info.status == "FINISHED"
    assert sorted(nested) == [f"trial {i}" for i in range(1, SAMPLES + 3)]
    for i, trial in enumerate(sweep.trials, start=1):
        run = nested[f"trial {i}"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["trial"] == "finished"
        assert run.data.params == {key: str(value) for key, value in trial.values.items()}
        for name in ("score", "transfer", "average", "last"):
            history = sorted(history_of(tiny.client, run, name), key=lambda point: point[0])
            assert history == [(k, pytest.approx(one[name])) for k, one in enumerate(trial.scores, start=1)]
    assert parent.data.params["space.method.beta"] == "{'loguniform': [0.3, 10]}"
    assert parent.data.metrics["best_score"] == pytest.approx(sweep.best.score)
    assert parent.data.metrics["test/average"] == pytest.approx(sweep.result.metrics["average"])
    shares = {key: parent.data.metrics[f"importance/{key}"] for key in SPACE}
    assert shares == pytest.approx(sweep.importance)
    assert sum(shares.values()) == pytest.approx(1)
    files = {file.path for file in tiny.client.list_artifacts(parent.info.run_id)}
    assert {"best.yaml", "sweep.html", "sweep.png", "trials.csv"} <= files


def history_of(client: MlflowClient, run: MlflowRun, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


# ---------------------------------------------------------------- what is refused


def problems(tiny: Tiny, config: StreamConfig, space: Any = None, **options: Any) -> Sequence[str]:
    with pytest.raises(InputError) as caught:
        tiny.sweep(config, space, **options)
    return caught.value.problems


@pytest.mark.parametrize("kind", ["zero_shot", "ncm", "rail_primal", "rail_dual"])
def test_a_learner_without_settings_is_refused(tiny: Tiny, kind: str) -> None:
    assert problems(tiny, tiny.config("closed", method={"kind": kind})) == [
        f"method.kind: {kind} has no settings to search"
    ]


def test_a_parameter_that_changes_nothing_is_refused(tiny: Tiny) -> None:
    space = {"method.epochs": {"choice": [1, 2]}}
    domains = [{**domain, "epochs": 2} for domain in tiny.values["domains"]]
    (problem,) = problems(tiny, tiny.config("own", domains=domains), space)
    assert problem.startswith("method.epochs: every domain has epochs of its own")


def test_a_metric_that_is_not_defined_is_refused(tiny: Tiny) -> None:
    single = tiny.config("single", domains=tiny.values["domains"][:1])
    joint = tiny.config("joint", method={"kind": "joint"})
    assert "--metric transfer" in problems(tiny, single, metric="transfer")[0]
    assert "--metric transfer" in problems(tiny, joint, metric="transfer")[0]
    assert "--metric average" in problems(tiny, joint, metric="average")[0]


def test_what_contradicts_itself_is_refused(tiny: Tiny) -> None:
    assert "take one of them" in problems(tiny, tiny.config(), resume=True, fresh=True)[0]
    assert problems(tiny, tiny.config("nothing"), resume=True) == ["without --resume it is begun"]
    keys = ("alpha", "beta", "replay_weight", "lr", "weight_decay")
    space = {f"method.{key}": {"loguniform": [0.001, 0.01]} for key in keys}
    space |= {"method.memory_per_class": {"choice": [1, 2]}}
    assert problems(tiny, tiny.config("large"), space, search="grid") == [
        "--search grid: 2048 trials; name fewer parameters or values, or take --search random"
    ]


def test_a_domain_that_nothing_can_be_left_out_of_is_refused(tiny: Tiny, searched: Sweep) -> None:
    """One shot per class: there is nothing to judge by."""
    found = problems(tiny, tiny.config("few", shots=1))
    assert [problem.split(":")[0] for problem in found] == list(TINY_DOMAINS)
    assert "left out to judge by" in found[0]


@pytest.mark.parametrize(
    ("images", "folds", "expected"),
    [(16, None, (4, 4)), (32, None, (4, 4)), (33, None, (5, 1)), (16, 3, (3, 3)), (100, 2, (2, 2))],
)
def test_few_images_are_left_out_in_turn(images: int, folds: int | None, expected: tuple[int, int]) -> None:
    labels = np.repeat(np.arange(3), images)
    some: Any = type("Some", (), {"selections": [type("One", (), {"train_labels": labels})]})
    assert module._fold_plan(some, options_of(folds=folds)) == expected


# ---------------------------------------------------------------- failures, ASHA, grids


def trial(status: Any, score: float = 1.0, error: str | None = None, beta: float = 1.0) -> Trial:
    return Trial({"method.beta": beta}, status, ({"score": score},), error=error)


def test_when_all_fail_each_reason_is_said_once() -> None:
    trials = [trial("failed", error="ValueError: b"), trial("failed", error="OSError: a")]
    with pytest.raises(LadaError) as caught:
        module._winner([*trials, trials[0], trial("stopped")])
    assert str(caught.value) == ("none of 4 trials finished: OSError: a; ValueError: b; --resume goes on")


# Of these images CLIP knows nothing by name: with a small α the first task scores 0.
GRID = {"method.alpha": {"choice": [40.0, 0.01, 0.001]}, "method.memory_per_class": {"choice": [3, 5]}}


@pytest.fixture(scope="module")
def partly(tiny: Tiny, searched: Sweep) -> tuple[Sweep, list[Path]]:
    """A grid under ASHA in which the trials with five memory vectors fail; and the damaged files."""
    fit_classes, damaged = module._fit_classes, list[Path]()

    def damage(search: Search, *more: Any) -> None:
        fit_classes(search, *more)
        folder = Path(search.stream.bank.store.uri, "classes")
        damaged.extend(folder.glob("memory-5-*"))
        for path in damaged:
            path.write_bytes(b"damaged")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_fit_classes", damage)
        return tiny.sweep(tiny.config("grid"), GRID, search="grid", scheduler="asha"), damaged


def test_a_trial_that_fails_does_not_end_the_sweep(tiny: Tiny, partly: tuple[Sweep, list[Path]]) -> None:
    sweep, damaged = partly
    assert len(damaged) == 2 * 3
    assert [t.values for t in sweep.trials] == Space.from_plain(GRID).grid()
    failed = [t for t in sweep.trials if t.values["method.memory_per_class"] == 5]
    assert {t.status for t in failed} == {"failed"}
    assert all(t.error and t.error.startswith("SafetensorError: ") for t in failed)
    assert {t.scores for t in failed} == {()}
    assert sweep.best.values == {"method.alpha": 40.0, "method.memory_per_class": 3}
    _, nested = tiny.logged("grid")
    assert sorted(run.info.status for run in nested.values()) == ["FAILED"] * 3 + ["FINISHED"] * 3
    assert nested["trial 2"].data.tags["error"] == failed[0].error


def test_asha_stops_what_is_not_promising(tiny: Tiny, partly: tuple[Sweep, list[Path]]) -> None:
    sweep, _ = partly
    others = [t for t in sweep.trials if t.values["method.memory_per_class"] == 3]
    assert others[0].status == "finished"
    stopped = [t for t in others if t.status == "stopped"]
    assert stopped
    assert all(len(t.scores) < len(TINY_DOMAINS) for t in stopped)
    assert all(t.scores[0]["score"] < others[0].scores[0]["score"] for t in stopped)


def test_failed_trials_are_made_again_and_stopped_ones_are_not(
    tiny: Tiny, partly: tuple[Sweep, list[Path]]
) -> None:
    sweep, damaged = partly
    before = tiny.moments("grid")
    for path in damaged:
        path.unlink()
    again = tiny.sweep(tiny.config("grid"), GRID, search="grid", scheduler="asha", resume=True)
    assert [t.values for t in again.trials] == [t.values for t in sweep.trials]
    assert "failed" not in {t.status for t in again.trials}
    now = tiny.moments("grid")
    for one in sweep.trials:
        assert (now[one.key] == before[one.key]) == (one.status != "failed")
    _, nested = tiny.logged("grid")
    assert {run.info.status for run in nested.values()} == {"FINISHED"}


def test_fresh_starts_over(
    tiny: Tiny, partly: tuple[Sweep, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials are forgotten at once, and it may be another sweep."""
    kept: list[int] = []

    def end(job: Any, *_: Any) -> Any:
        kept.append(len(tiny.trials("grid")))
        raise LadaError("enough")

    monkeypatch.setattr(module, "run_trials", end)
    monkeypatch.setattr(module, "_fit_classes", lambda *_: None)
    with pytest.raises(LadaError, match="enough"):
        tiny.sweep(tiny.config("grid"), SPACE, fresh=True)
    assert kept == [0]


# ---------------------------------------------------------------- Optuna, views


@pytest.mark.accept
def test_optuna_and_views(tiny: Tiny, searched: Sweep) -> None:
    space = {"views": {"choice": [0, 2]}, "method.beta": {"loguniform": [0.3, 10]}}
    sweep = tiny.sweep(tiny.config("optuna"), space, search="optuna", samples=3)
    assert [t.status for t in sweep.trials] == ["finished"] * len(sweep.trials)
    assert 1 <= len(sweep.trials) <= 3  # it may ask for one twice
    positions = [Space.from_plain(space).positions(t.values) for t in sweep.trials]
    assert None not in positions
    # The second augmented view of every training image, whether the winner wants it or not.
    assert sweep.encoded == 3 * 18
    assert sweep.config.views == sweep.best.values["views"]
    assert sweep.result.metrics["images_encoded"] == 0
    assert StreamConfig.from_yaml(Path(sweep.folder) / "best.yaml").views == sweep.config.views
