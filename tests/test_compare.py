"""Comparing: one that is whole and shared by most tests, and small ones that fail, are repaired or start over."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

import lada_ray
from lada_ray import compare as module
from lada_ray.cell import Learnt, learn_cell
from lada_ray.compare import ABLATIONS, Comparison, Grid, Key, compare, show
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains import Domain, choose
from lada_ray.errors import InputError, LadaError
from lada_ray.features.bank import banks
from lada_ray.features.fill import Images
from lada_ray.features.selection import select
from lada_ray.store import open_store
from tests.conftest import TINY_DOMAINS, TinyWorld, draw_domain, write_tiny_clip

VARIANTS = ("lada", "joint", "ncm", "rail_dual")
GRID = Grid(VARIANTS, seeds=(0, 1), orders=2)
CELLS = 16
SHOTS, VIEWS = 3, 2
ORDERS = [list(TINY_DOMAINS), module._order(TINY_DOMAINS, 1)]


@dataclass
class Tiny:
    """Three domains of three classes in a storage of their own, with a random encoder."""

    storage: Path
    values: dict[str, Any]

    def config(self, **changes: Any) -> StreamConfig:
        return StreamConfig(**{**self.values, **changes})

    def compare(self, grid: Grid, fresh: bool = False, **changes: Any) -> Comparison:
        return compare(self.config(**changes), grid, Console(quiet=True), fresh)

    def parents(self, name: str) -> list[MlflowRun]:
        """The MLflow runs of this name, oldest first."""
        runs = [run for run in self._runs() if run.info.run_name == name]
        return sorted(runs, key=lambda run: run.info.start_time)

    def nested(self, parent: MlflowRun) -> dict[str, MlflowRun]:
        of = [run for run in self._runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        found = {run.info.run_name: run for run in of}
        assert len(found) == len(of)
        return found

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.storage}/mlflow.db")

    def _runs(self) -> list[MlflowRun]:
        experiment = self.client.get_experiment_by_name("lada_ray")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id], max_results=1000))


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, tiny_domains: tuple[Domain, ...], ray_local: None
) -> Iterator[Tiny]:
    folder = tmp_path_factory.mktemp("compared")
    architecture, weights = write_tiny_clip(folder)
    roots = [Path(d.train[0].uri).parents[2] for d in tiny_domains]
    values = {
        "name": "tiny",
        "storage": str(folder / "runs"),
        "encoder": {"model": "tiny", "pretrained": str(weights), "architecture": str(architecture)},
        "shots": SHOTS,
        "views": VIEWS,
        "method": {"epochs": 2, "batch_size": 8, "memory_per_class": 3, "mixture_components": 2},
        "domains": [{"name": r.name, "kind": "folder", "root": str(r)} for r in roots],
        "resources": {"train_workers": 0, "cpus_per_train_worker": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Tiny(folder / "runs", values)


@pytest.fixture(scope="module")
def compared(tiny: Tiny) -> Comparison:
    """Four learners x two orders x two seeds."""
    return tiny.compare(GRID)


def packs_of(folder: str | Path) -> list[str]:
    return json.loads((Path(folder) / "model" / "model.json").read_text())["packs"]


def moments(folder: str | Path) -> dict[str, int]:
    """When each file of the packs, side files and rows of a run was written."""
    files = [path for name in ("model/packs", "tasks", "rows") for path in Path(folder, name).rglob("*")]
    return {str(path): path.stat().st_mtime_ns for path in files if path.is_file()}


# ---------------------------------------------------------------- the whole of it


def test_every_cell_is_learnt(tiny: Tiny, compared: Comparison) -> None:
    assert [Key(o.variant, o.order, o.seed) for o in compared.outcomes] == GRID.cells()
    assert len(compared.outcomes) == CELLS
    assert compared.failed == {}
    assert ORDERS[1] != ORDERS[0]
    for outcome in compared.outcomes:
        order = ORDERS[outcome.order]
        assert list(outcome.accuracy.columns) == order
        joint = outcome.variant == "joint"
        assert list(outcome.accuracy.index) == (["all domains"] if joint else order)
        assert outcome.metrics["last"] == pytest.approx(outcome.accuracy.iloc[-1].mean())
        assert (outcome.metrics["transfer"] is None, outcome.metrics["average"] is None) == (joint, joint)
        assert outcome.metrics["images_encoded"] == 0
        assert outcome.seconds > 0
        suffix = f"{outcome.variant}.seed-{outcome.seed}" + (".order-1" if outcome.order else "")
        assert outcome.folder == str(tiny.storage / f"tiny.{suffix}")
    # Zero-shot knows neither learner, seed nor order.
    assert (
        len({json.dumps(o.metrics["zero_shot_per_domain"], sort_keys=True) for o in compared.outcomes}) == 1
    )


def test_a_seed_decides_the_shots_and_the_order_does_not(compared: Comparison) -> None:
    metas = {}
    for outcome in compared.outcomes:
        packs = [Path(outcome.folder, "model", "packs", digest) for digest in packs_of(outcome.folder)]
        samples = [s for pack in packs for s in json.loads((pack / "pack.json").read_text())["samples"]]
        metas[outcome.variant, outcome.order, outcome.seed] = sorted(map(tuple, samples))
    for (_, _, seed), samples in metas.items():
        assert samples == metas["ncm", 0, seed]
        assert len(samples) == 3 * 3 * SHOTS
    assert metas["ncm", 0, 0] != metas["ncm", 0, 1]


def test_learners_differ_and_rail_learns(compared: Comparison) -> None:
    last = {(o.variant, o.order, o.seed): o.accuracy.iloc[-1] for o in compared.outcomes}
    zero_shot = compared.outcomes[0].metrics["zero_shot"]
    assert last["rail_dual", 0, 0].mean() > zero_shot + 20
    assert last["ncm", 0, 0].mean() > zero_shot + 20
    # In closed form the order of learning is nothing to the end of it.
    for variant in ("ncm", "rail_dual"):
        for seed in GRID.seeds:
            after = last[variant, 1, seed][list(TINY_DOMAINS)]
            assert after.tolist() == pytest.approx(last[variant, 0, seed].tolist())
    assert len({tuple(last[v, 0, 0].tolist()) for v in VARIANTS}) > 1


def test_the_files_say_what_was_returned(compared: Comparison) -> None:
    folder = Path(compared.folder)
    table = pd.read_csv(folder / "comparison.csv")
    assert len(table) == CELLS
    for outcome, (_, row) in zip(compared.outcomes, table.iterrows(), strict=True):
        assert (row["variant"], row["order"], row["seed"]) == (outcome.variant, outcome.order, outcome.seed)
        assert row["last"] == pytest.approx(outcome.metrics["last"])
        assert row[f"last.{TINY_DOMAINS[1]}"] == pytest.approx(outcome.accuracy[TINY_DOMAINS[1]].iloc[-1])
        matrix = pd.read_csv(Path(outcome.folder) / "accuracy_matrix.csv", index_col="learnt")
        pd.testing.assert_frame_equal(matrix, outcome.accuracy)
        assert json.loads((Path(outcome.folder) / "metrics.json").read_text()) == outcome.metrics
    markdown = (folder / "comparison.md").read_text()
    assert all(f"| {variant} |" in markdown for variant in VARIANTS)
    assert "4 variants, 2 orders, 2 seeds: 16 runs" in markdown
    assert "Transfer, Average" in markdown  # undefined for joint
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "rail_dual" in (folder / "comparison.html").read_text()
    assert (folder / "bad_images.csv").read_text() == "domain,path,reason\n"


def test_every_view_is_encoded_once(
    tiny: Tiny, compared: Comparison, tiny_domains: tuple[Domain, ...]
) -> None:
    chosen = {s.uri for d in tiny_domains for seed in GRID.seeds for s in choose(d, SHOTS, seed)}
    assert 27 < len(chosen) < 54  # the seeds share some shots
    tested = 3 * 12
    assert compared.encoded == len(chosen) * (1 + VIEWS) + tested
    (size,) = [size for _, size in banks(open_store(tiny.storage / "features"))]
    assert size.views == compared.encoded


def test_the_same_again_learns_and_encodes_nothing(tiny: Tiny, compared: Comparison) -> None:
    before = [moments(outcome.folder) for outcome in compared.outcomes]
    console = Console(quiet=True)
    started = time.process_time()
    again = compare(tiny.config(), GRID, console)
    seconds = time.process_time() - started
    assert [moments(outcome.folder) for outcome in again.outcomes] == before
    assert all(before)
    assert again.encoded == compared.encoded  # of all its starts together: nothing was added
    for a, b in zip(again.outcomes, compared.outcomes, strict=True):
        pd.testing.assert_frame_equal(a.accuracy, b.accuracy)
        assert replace(a, accuracy=b.accuracy) == b  # the seconds too: those of the fits
    assert seconds < 20  # of this process, which other work on the machine does not slow down
    assert console.notes == []


@pytest.mark.parametrize(("variant", "order", "seed"), [("lada", 1, 1), ("joint", 0, 1), ("rail_dual", 1, 0)])
def test_a_cell_is_what_run_stream_makes(
    tiny: Tiny, compared: Comparison, variant: str, order: int, seed: int
) -> None:
    cell = next(o for o in compared.outcomes if (o.variant, o.order, o.seed) == (variant, order, seed))
    domains = {domain["name"]: domain for domain in tiny.values["domains"]}
    config = tiny.config(
        name=f"alone-{variant}",
        seed=seed,
        domains=[domains[name] for name in ORDERS[order]],
        method={**tiny.values["method"], "kind": variant},
    )
    alone = lada_ray.run_stream(config, console=Console(quiet=True))
    assert list(alone.digests) == packs_of(cell.folder)
    pd.testing.assert_frame_equal(alone.accuracy, cell.accuracy)
    assert alone.metrics == cell.metrics  # with 0 views encoded


def test_run_stream_continues_a_cell(tiny: Tiny, compared: Comparison) -> None:
    cell = next(o for o in compared.outcomes if (o.variant, o.order, o.seed) == ("ncm", 0, 1))
    before = moments(cell.folder)
    config = StreamConfig.from_yaml(Path(cell.folder) / "config.yaml")
    assert (config.name, config.seed, config.method.kind) == ("tiny.ncm.seed-1", 1, "ncm")
    result = lada_ray.run_stream(config, console=Console(quiet=True))
    assert moments(cell.folder) == before
    assert result.metrics == cell.metrics
    assert "<html" in (Path(cell.folder) / "report.html").read_text()


def test_every_cell_can_be_asked(compared: Comparison, tiny_domains: tuple[Domain, ...]) -> None:
    pictures = [sample.uri for domain in tiny_domains for sample in domain.test]
    truth = [(d.name, d.class_names[s.label]) for d in tiny_domains for s in d.test]
    models = [lada_ray.load(str(Path(o.folder) / "model")) for o in compared.outcomes]
    features = models[0].encode(pictures)
    for outcome, model in zip(compared.outcomes, models, strict=True):
        assert model.domains == ORDERS[outcome.order]
        right = [
            model.class_names[i] == t for i, t in zip(model.predict_features(features), truth, strict=True)
        ]
        # Everything is learnt: what it says of the test images is the last row of its matrix.
        expected = outcome.accuracy.iloc[-1][list(TINY_DOMAINS)]
        assert (100 * np.reshape(right, (3, 12)).mean(axis=1)).tolist() == pytest.approx(expected.tolist())
    answers = models[-1].predict(pictures[:2], extra_classes=["a zebra"])  # rail_dual
    assert answers["score"].between(0, 1).all()


def test_mlflow_has_one_parent_and_a_nested_run_per_cell(tiny: Tiny, compared: Comparison) -> None:
    (parent,) = tiny.parents("tiny.compare")
    assert parent.info.status == "FINISHED"
    assert {"comparison.csv", "comparison.html", "comparison.md", "comparison.png"} <= {
        artifact.path for artifact in tiny.client.list_artifacts(parent.info.run_id)
    }
    nested = tiny.nested(parent)
    for outcome in compared.outcomes:
        run = nested[str(Key(outcome.variant, outcome.order, outcome.seed))]
        assert run.info.status == "FINISHED"
        assert run.data.params["method.kind"] == outcome.variant
        assert run.data.params["seed"] == str(outcome.seed)
        assert run.data.tags["folder"] == outcome.folder
        assert run.data.metrics["last"] == pytest.approx(outcome.metrics["last"])
        assert run.data.metrics["time/fit"] == pytest.approx(outcome.seconds)
        history = tiny.client.get_metric_history(run.info.run_id, f"accuracy/{TINY_DOMAINS[2]}")
        values = [
            outcome.metrics["zero_shot_per_domain"][TINY_DOMAINS[2]],
            *outcome.accuracy[TINY_DOMAINS[2]],
        ]
        assert [(point.step, point.value) for point in history] == [
            (step, pytest.approx(value)) for step, value in enumerate(values)
        ]


def test_the_table_is_shown(compared: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    show(GRID, compared, Console())
    printed = capsys.readouterr().out
    assert "4 variants, 2 orders, 2 seeds: 16 runs" in printed
    assert all(f"{compared.folder}/comparison.{name}" in printed for name in ("html", "csv", "md", "png"))
    assert f"the comparison has encoded {compared.encoded} image views" in printed


# ---------------------------------------------------------------- failing, repaired, starting over


def copied(tiny: Tiny, old: str, new: str) -> Path:
    return Path(shutil.copytree(tiny.storage / old, tiny.storage / new))


def test_cells_that_were_started_differently_are_all_named_before_anything_is_encoded(
    tiny: Tiny, compared: Comparison
) -> None:
    copied(tiny, "tiny.ncm.seed-0", "other.lada.seed-0")
    copied(tiny, "tiny.lada.seed-1", "other.ncm.seed-1")
    with pytest.raises(InputError) as refused:
        tiny.compare(Grid(("lada", "ncm"), seeds=(0, 1)), name="other")
    assert refused.value.problems == [
        "lada, seed 0: method.kind: ncm in the run, lada now",
        "lada, seed 0: views: 0 in the run, 2 now",
        "ncm, seed 1: method.kind: lada in the run, ncm now",
        "ncm, seed 1: views: 2 in the run, 0 now",
    ]
    assert not (tiny.storage / "other.compare" / "comparison.csv").exists()


def test_a_cell_that_fails_costs_no_other_and_the_next_start_repairs_it(
    tiny: Tiny, compared: Comparison
) -> None:
    grid = Grid(("lada", "ncm"), seeds=(0, 1))
    odd = copied(tiny, "tiny.lada.seed-0", "odd.lada.seed-0")
    next(odd.glob("model/packs/*/tensors.safetensors")).write_bytes(b"damaged")
    shutil.rmtree(odd / "rows")
    with pytest.raises(LadaError, match="1 of 4 streams failed; the same command tries them again") as failed:
        tiny.compare(grid, name="odd").raise_failures()
    assert failed.value.exit_code == 1
    assert "  - lada, seed 0: " in str(failed.value)
    assert "was changed or cut short" in str(failed.value)
    folder = tiny.storage / "odd.compare"
    table = pd.read_csv(folder / "comparison.csv")
    learnt = [("lada", 1), ("ncm", 0), ("ncm", 1)]
    assert list(zip(table["variant"], table["seed"], strict=True)) == learnt
    assert "order 0 seed 0 of lada" in (folder / "comparison.md").read_text()  # it is missing
    assert "was changed or cut short" in (folder / "comparison.html").read_text()
    (parent,) = tiny.parents("odd.compare")
    assert parent.info.status == "FAILED"
    statuses = {name: run.info.status for name, run in tiny.nested(parent).items()}
    assert statuses.pop("lada, seed 0") == "FAILED"
    assert statuses == {f"{variant}, seed {seed}": "FINISHED" for variant, seed in learnt}

    kept = [moments(tiny.storage / f"odd.{variant}.seed-{seed}") for variant, seed in learnt]
    shutil.rmtree(odd)
    repaired = tiny.compare(grid, name="odd")
    assert [(o.variant, o.seed) for o in repaired.outcomes] == [("lada", 0), *learnt]
    assert [moments(tiny.storage / f"odd.{variant}.seed-{seed}") for variant, seed in learnt] == kept
    assert [run.info.status for run in tiny.parents("odd.compare")] == ["FINISHED"]
    assert {run.info.status for run in tiny.nested(parent).values()} == {"FINISHED"}
    # Packs say nothing of a run's name: these are the cells of the other comparison.
    same = {(o.variant, o.seed): packs_of(o.folder) for o in compared.outcomes if o.order == 0}
    assert [packs_of(o.folder) for o in repaired.outcomes] == [
        same[o.variant, o.seed] for o in repaired.outcomes
    ]


def test_fresh_starts_over(tiny: Tiny, compared: Comparison) -> None:
    for part in ("compare", "lada.seed-0", "ncm.seed-0"):
        copied(tiny, f"tiny.{part}", f"over.{part}")
    old = [packs_of(tiny.storage / f"over.{variant}.seed-0") for variant in ("lada", "ncm")]
    hotter = {**tiny.values["method"], "beta": 2.0}
    fresh = tiny.compare(Grid(("lada", "ncm"), seeds=(0,)), fresh=True, name="over", method=hotter)
    new = [packs_of(outcome.folder) for outcome in fresh.outcomes]
    assert len(new[0]) == 3
    assert not set(new[0]) & set(old[0])
    assert new[1] == old[1]  # NCM knows no beta
    packs = (tiny.storage / "over.lada.seed-0" / "model" / "packs").glob("*/pack.json")
    assert {path.parent.name for path in packs} == set(new[0])
    assert fresh.encoded == 0
    # Another comparison in MLflow too.
    (parent,) = tiny.parents("over.compare")
    assert sorted(tiny.nested(parent)) == ["lada, seed 0", "ncm, seed 0"]


def test_without_the_baseline_there_are_numbers_but_no_table(
    tmp_path: Path, compared: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    finished: list[Any] = []
    group: Any = SimpleNamespace(finish=lambda status, files: finished.append((status, files)))
    others = [outcome for outcome in compared.outcomes if outcome.variant != "lada"]
    key = Key("lada", 0, 0)
    broken = replace(compared, outcomes=others, failed={key: LadaError("lost")})
    module._finish(open_store(tmp_path), GRID, broken, group, Console(quiet=True))
    data = (tmp_path / "comparison.csv").read_bytes()
    assert len(data.splitlines()) == 1 + len(others)
    assert finished == [("FAILED", {"comparison.csv": data})]
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.csv"]
    show(GRID, broken, Console())
    printed = capsys.readouterr().out
    assert "comparison.csv" in printed
    assert "comparison.html" not in printed
    with pytest.raises(LadaError) as failed:
        broken.raise_failures()
    assert str(failed.value) == (
        "1 of 13 streams failed; the same command tries them again:\n  - lada, seed 0: lost"
    )


def test_a_test_image_among_the_shots_of_any_seed_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    draw_domain(tmp_path / "leaky", hue=0.5)
    spec = {"name": "leaky", "kind": "folder", "root": str(tmp_path / "leaky")}
    domain = tiny.config(domains=[spec]).domains[0].load("")
    one = {s.path for s in choose(domain, 1, 0)}
    other = next(s for s in choose(domain, 1, 1) if s.path not in one)
    (tmp_path / "leaky" / "test" / "class_0" / "0.png").write_bytes(Path(other.uri).read_bytes())
    grid = Grid(("ncm",), seeds=(0, 1), baseline="ncm")
    with pytest.raises(InputError, match="1 of 12 test images"):
        tiny.compare(grid, name="leaky", domains=[spec], shots=1)
    assert not (tiny.storage / "leaky.ncm.seed-0").exists()


def test_bad_images_of_all_seeds_are_listed(tmp_path: Path, tiny_domains: tuple[Domain, ...]) -> None:
    domain = tiny_domains[0]
    first = choose(domain, 1, 0)[0].uri
    seed, second = next((n, uri) for n in range(1, 9) if (uri := choose(domain, 1, n)[0].uri) != first)
    spoilt = {first: "cut short", second: "no image"}
    images = [Images([select(domain, spoilt, 1, 0, seed)], {}) for seed in (0, seed, 0)]
    module._write_bad(open_store(tmp_path), images)
    lines = (tmp_path / "bad_images.csv").read_text().splitlines()
    assert lines[0] == "domain,path,reason"
    assert sorted(lines[1:]) == sorted([f"fruit,{first},cut short", f"fruit,{second},no image"])


# ---------------------------------------------------------------- what is compared


def refused(grid: Grid, **changes: Any) -> list[str]:
    """The problems that are told before anything is read."""
    values = {
        "name": "x",
        "storage": "/nowhere",
        "encoder": {"model": "demo-clip", "pretrained": "demo"},
        "domains": [{"name": name, "kind": "folder", "root": "/nowhere"} for name in TINY_DOMAINS],
    }
    with pytest.raises(InputError) as error:
        compare(StreamConfig(**{**values, **changes}), grid, Console(quiet=True))
    assert error.value.heading == "This cannot be compared"
    return error.value.problems


def test_all_problems_of_a_grid_at_once() -> None:
    grid = Grid(("ncm", "rail", "ncm"), ("no_memry",), (0, -1, 0), orders=7, baseline="joint")
    kinds = "lada, joint, zero_shot, ncm, rail_primal, rail_dual"
    assert refused(grid) == [
        "methods: ncm, rail, ncm has one of them twice",
        f"methods: there is no rail (one of {kinds})",
        "ablations: there is no no_memry (one of no_tuner, no_memory, no_replay, no_noise, ungated)",
        "seeds: 0, -1, 0 has one of them twice",
        "seeds: must not be negative (got -1)",
        "baseline: joint is not among what is compared (ncm, rail, ncm, no_memry)",
        "orders: 3 domains have 6 orders (got 7)",
    ]


@pytest.mark.parametrize("grid", [Grid(()), Grid(("lada",), seeds=()), Grid(("lada",), orders=0)])
def test_nothing_to_compare_is_refused(grid: Grid) -> None:
    assert refused(grid)[-1] == "methods, seeds and orders: at least one of each is needed"


def test_the_baseline_is_one_of_what_is_compared() -> None:
    assert refused(Grid(("ncm", "rail_dual"))) == [
        "baseline: lada is not among what is compared (ncm, rail_dual)"
    ]


def test_variants_switch_one_part_off_each() -> None:
    grid = Grid(("ncm", "lada"), tuple(ABLATIONS))
    assert grid.variants() == {
        "ncm": {"kind": "ncm"},
        "lada": {"kind": "lada"},
        "no_tuner": {"kind": "lada", "text_tuner": "none"},
        "no_memory": {"kind": "lada", "alpha": 0.0},
        "no_replay": {"kind": "lada", "replay": False},
        "no_noise": {"kind": "lada", "replay_noise": False},
        "ungated": {"kind": "lada", "fusion": "additive"},
    }


def test_cells_are_named_by_variant_seed_and_order() -> None:
    keys = Grid(("ncm",), ("ungated",), (3, 5), orders=2, baseline="ncm").cells()
    assert [key.suffix for key in keys] == [
        *("ncm.seed-3", "ncm.seed-5", "ncm.seed-3.order-1", "ncm.seed-5.order-1"),
        *("ungated.seed-3", "ungated.seed-5", "ungated.seed-3.order-1", "ungated.seed-5.order-1"),
    ]
    assert [str(key) for key in keys[1:3]] == ["ncm, seed 5", "ncm, seed 3, order 1"]


@pytest.mark.parametrize("domains", [1, 2, 3, 4])
def test_all_orders_differ(domains: int) -> None:
    names = [f"domain {i}" for i in range(domains)]
    every = list(permutations(names))
    orders = [tuple(module._order(names, i)) for i in range(len(every))]
    assert orders[0] == tuple(names)
    assert sorted(orders) == sorted(every)
    # They depend on the number of domains alone.
    assert [names.index(name) for name in orders[-1]] == module._order(list(range(domains)), len(every) - 1)  # type: ignore[arg-type]


# ---------------------------------------------------------------- cells


def cell(world: TinyWorld, grid: Grid, key: Key, **changes: Any) -> Any:
    stream = world.stream(world.config("grid", **changes))
    return module._cell(stream, world.images(stream), grid, key)


def test_a_cell_is_the_stream_with_one_thing_changed(tiny_world: TinyWorld) -> None:
    grid = Grid(("lada", "ncm", "joint"), ("ungated", "no_tuner"), (0, 1), orders=2)
    resources = {"cpus_per_train_worker": 2.0}
    plain = cell(tiny_world, grid, Key("lada", 0, 0), resources=resources)
    assert (plain.config.name, plain.config.seed, plain.fit.threads) == ("grid.lada.seed-0", 0, 2)
    assert plain.evaluation.model_uri == f"{tiny_world.storage}/grid.lada.seed-0/model"
    turned = cell(tiny_world, grid, Key("lada", 1, 1))
    assert (turned.config.name, turned.config.seed, turned.fit.seed) == ("grid.lada.seed-1.order-1", 1, 1)
    assert [domain.name for domain in turned.config.domains] == ["wild", "pets"]
    assert [test.domain for test in turned.evaluation.tests] == ["wild", "pets"]
    assert [task.name for task in turned.fit.tasks] == ["wild", "pets"]
    assert (turned.fit.threads, turned.fit.tasks[0].parts[0].views) == (1, ("crop_flip/0", "crop_flip/1"))
    # A learner in closed form looks at the deterministic view, and its run is that of any number of views.
    closed = cell(tiny_world, grid, Key("ncm", 0, 0))
    assert (closed.fit.kind, closed.fit.tasks[0].parts[0].views) == ("ncm", ("test",))
    assert closed.identities[0]["config"]["views"] == 0
    assert closed.identities[0]["config"]["method"] == {"kind": "ncm"}
    joint = cell(tiny_world, grid, Key("joint", 0, 0))
    assert [(task.name, task.classes) for task in joint.fit.tasks] == [("all domains", 5)]
    assert cell(tiny_world, grid, Key("ungated", 0, 0)).evaluation.prediction.fusion == "additive"
    assert cell(tiny_world, grid, Key("no_tuner", 0, 0)).fit.settings.text_tuner == "none"


@pytest.mark.parametrize(
    ("methods", "ablations", "tuner", "expected"),
    [
        (("ncm", "rail_dual"), (), "adaptformer", False),
        (("ncm", "lada"), (), "adaptformer", True),
        (("ncm",), ("no_tuner",), "adaptformer", False),
        (("ncm",), ("no_tuner", "no_noise"), "adaptformer", True),
        (("lada", "joint"), ("no_noise",), "none", False),
    ],
)
def test_a_text_tower_is_asked_for_where_a_variant_tunes_it(
    tiny_world: TinyWorld, methods: Sequence[str], ablations: Sequence[str], tuner: str, expected: bool
) -> None:
    config = tiny_world.config(method={"text_tuner": tuner})
    method = module._demanding(config, Grid(methods, ablations)).method
    assert (method.trains and method.text_tuner != "none") is expected


def test_a_cell_asks_for_what_it_needs(tiny_world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    asked: list[dict[str, Any]] = []

    def remote(**options: Any) -> Any:
        asked.append(options)
        return lambda function: type(
            "Task", (), {"remote": staticmethod(lambda *arguments: (function, *arguments))}
        )

    grid = Grid(("lada", "rail_primal", "ncm"), seeds=(0,))
    count: Any = object()
    largest = max(node["Resources"]["memory"] for node in ray.nodes() if node["Alive"])
    monkeypatch.setattr(ray, "remote", remote)
    stream = tiny_world.stream()
    images = tiny_world.images(stream)
    for gpus in (0.0, 1.0, 0.1):
        with_gpus = replace(stream, resources=replace(stream.resources, gpus_per_train_worker=gpus))
        for variant in grid.methods:
            one = module._cell(with_gpus, images, grid, Key(variant, 0, 0))
            assert module._start(one, True, count) == (learn_cell, one, True, count)
    assert [options.pop("max_retries") for options in asked] == [0] * 9
    plain = {"num_cpus": 1.0}
    closed = [{**plain, "memory": min(5e9, largest)}, plain]
    assert asked == [
        plain,
        *closed,
        {**plain, "num_gpus": 0.25},
        *closed,
        {**plain, "num_gpus": 0.1},
        *closed,
    ]
    # A start that forgets nothing may be tried again when its process or node dies.
    module._start(one, False, count)
    assert asked[-1]["max_retries"] > 0


def test_a_line_says_what_a_cell_came_to() -> None:
    metrics = {"transfer": None, "average": None, "last": 12.345}
    learnt = Learnt((), metrics, 1.25, "/x")
    assert module._line(Key("joint", 0, 2), learnt) == "  joint, seed 2: Last 12.3 (1.2 s)"
    metrics |= {"transfer": 50.0, "average": 60.0}
    line = module._line(Key("lada", 1, 2), replace(learnt, metrics=metrics))
    assert line == "  lada, seed 2, order 1: Transfer 50.0, Average 60.0, Last 12.3 (1.2 s)"
