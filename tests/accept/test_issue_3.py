"""The bars of comparisons: rivals and ablations on real images, one bank for all, what running side by side costs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lada_ray.cell import learn_cell
from lada_ray.compare import Comparison, Grid, compare
from lada_ray.comparison import summary
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.features.bank import banks
from lada_ray.store import open_store
from lada_ray.verify import verify
from tests.accept.conftest import Streams, show

METRICS = ("transfer", "average", "last")
SEEDS = (0, 1, 2)
FOUR = ("ncm", "rail_dual", "rail_primal", "lada")
TOLERANCE = {"zero_shot": "exact", "ncm": "exact", "rail_dual": "exact", "rail_primal": "rail_primal"}
ABLATIONS = ("no_tuner", "no_memory", "no_replay", "no_noise", "ungated")


def compared(
    streams: Streams, base: Path, grid: Grid, name: str, **more: Any
) -> tuple[Comparison, float, float]:
    """Compare; also when the first fit started and when the table was there, in unix seconds."""
    overrides = {"name": name, "storage": str(streams.storage(base)), **more}
    config = StreamConfig.from_yaml(base, overrides=overrides)
    comparison = compare(config, grid, Console(quiet=True))
    ended = time.time()
    records = [
        json.loads(f.read_text()) for o in comparison.outcomes for f in Path(o.folder, "tasks").glob("*.json")
    ]
    started = min(datetime.fromisoformat(record["started"]).timestamp() for record in records)
    return comparison, started, ended


@pytest.fixture(scope="module")
def four(streams: Streams, six_domains: Path) -> tuple[Comparison, float, float]:
    """NCM, RAIL and LADA with three seeds each, starting with an empty bank of their own."""
    return compared(streams, six_domains, Grid(FOUR, seeds=SEEDS), "four")


@pytest.fixture(scope="module")
def table(streams: Streams, six_domains: Path, four: Any) -> pd.DataFrame:
    """Means of everything that figures.json has."""
    ablations, _, _ = compared(
        streams, six_domains, Grid(("zero_shot", "lada"), ABLATIONS, SEEDS), "ablations"
    )
    return pd.concat([summary(four[0].outcomes), summary(ablations.outcomes).drop(index="lada")])


@pytest.mark.parametrize("variant", ["zero_shot", *FOUR, *ABLATIONS])
def test_figures(table: pd.DataFrame, shared: Path, variant: str) -> None:
    figures = json.loads((shared / "data" / "figures.json").read_text())
    expected = figures[f"lada_{variant}" if variant in ABLATIONS else variant]
    tolerance = figures["tolerance"][TOLERANCE.get(variant, "lada")]
    found = {name: float(table.loc[variant, (name, "mean")]) for name in METRICS}
    off = {name: found[name] - expected[name] for name in METRICS}
    shown = ", ".join(f"{name} {found[name]:.2f} ({off[name]:+.2f})" for name in METRICS)
    show(f"{variant}, mean of {len(SEEDS)} seeds (off by)", shown, f"within {tolerance}")
    assert max(map(abs, off.values())) <= tolerance


def test_every_view_is_encoded_once(four: Any, streams: Streams, six_domains: Path) -> None:
    comparison, _, _ = four
    rows = sum(size.views for _, size in banks(open_store(streams.storage(six_domains) / "features")))
    again, _, _ = compared(streams, six_domains, Grid(FOUR, seeds=SEEDS), "four-again")
    show("views encoded by the comparison, rows in the bank", f"{comparison.encoded}, {rows}", "equal")
    show("views encoded by the same comparison under another name", str(again.encoded), "0")
    assert comparison.encoded == rows
    assert again.encoded == 0


def test_side_by_side_costs_little(streams: Streams, six_domains: Path, four: Any) -> None:
    import ray

    from lada_ray import compare as module

    begun: list[Any] = []
    start = module._start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_start", lambda cell, *more: begun.append(cell) or start(cell, *more))
        _, started, ended = compared(streams, six_domains, Grid(FOUR, seeds=SEEDS), "timed")
    wall = ended - started
    alone = 0.0
    for cell in begun:
        config = cell.config.model_copy(update={"name": f"{cell.config.name}.alone"})
        folder = cell.evaluation.model_uri.replace(cell.config.name, config.name)
        other = replace(cell, config=config, evaluation=replace(cell.evaluation, model_uri=folder))
        task: Any = ray.remote(num_cpus=1)(learn_cell)
        alone += ray.get(task.remote(other)).seconds
    show(
        "first fit to table, over the fits one after another",
        f"{wall:.0f} s / {alone:.0f} s = {wall / alone:.2f}",
        "<= 1.3",
    )
    assert len(begun) == len(FOUR) * len(SEEDS)
    assert wall <= 1.3 * alone


def test_receipts(four: Any) -> None:
    comparison, _, _ = four
    verdicts = [verify(outcome.folder, Console(quiet=True)) for outcome in comparison.outcomes]
    cells = sum(verdict.cells for verdict in verdicts)
    show(
        "runs whose matrix is recomputed from packs and bank, cells",
        f"{len(verdicts)}, {cells}",
        "all the same",
    )
    assert all(verdict.same for verdict in verdicts), [v for v in verdicts if not v.same]
