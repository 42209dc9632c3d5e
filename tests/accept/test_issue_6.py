"""The bars of speed and scale: each a ratio within one run of a benchmark, on an otherwise idle machine."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.stream import run_stream
from tests.accept.conftest import Streams, show

REPEATS = 5


@pytest.mark.parametrize("name", ["extract", "stream", "classes", "step", "predict_head", "tasks"])
def test_bars(name: str) -> None:
    result = import_module(f"benchmarks.{name}").measure(REPEATS, quick=False)
    print(f"\n  {result.line}")
    for figure, value in result.figures.items():
        print(f"    {figure}: {value if isinstance(value, str) else f'{value:.4g}'}")
    assert result.bars
    missed = [str(bar) for bar in result.bars if not bar.met]
    assert not missed


def test_stages_add_up_to_the_wall_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    storage = tmp_path_factory.mktemp("stages")
    console = Console(quiet=True)
    config = StreamConfig.from_yaml("demo", {"storage": str(storage), "resources.train_workers": 0})
    run_stream(config, console=console)
    share = 100 * sum(console.seconds.values()) / console.wall_seconds
    show("stage timings over wall time", f"{share:.1f} %", "95 to 105")
    assert 95 <= share <= 105


def test_packs_in_half_precision_cost_no_accuracy(streams: Streams, six_domains: str) -> None:
    metrics = ("transfer", "average", "last")
    found = {
        precision: [
            streams.run(six_domains, f"{precision}-{seed}", seed=seed, **{"method.pack_precision": precision})
            for seed in (0, 1, 2)
        ]
        for precision in ("float32", "float16")
    }
    for metric in metrics:
        whole, half = (np.mean([result.metrics[metric] for result in found[p]]) for p in found)
        show(f"{metric}, float32 and float16 packs", f"{whole:.2f}, {half:.2f}", "within 0.3")
        assert abs(whole - half) <= 0.3


def test_the_budget_of_replayed_rows_costs_no_accuracy(streams: Streams, six_domains: str) -> None:
    """On the six domains the default covers all components; half of what there are at the end does not."""
    found = {
        rows: [
            streams.run(six_domains, f"rows-{rows}-{seed}", seed=seed, **{"method.replay_rows": rows})
            for seed in (0, 1, 2)
        ]
        for rows in (None, 512, 134)
    }
    for metric in ("average", "last"):
        whole, default, few = (np.array([r.metrics[metric] for r in found[rows]]) for rows in found)
        show(
            f"{metric}: all, 512 and 134 rows",
            f"{whole.mean():.2f}, {default.mean():.2f}, {few.mean():.2f}",
            "same",
        )
        assert (whole == default).all()
        assert abs(whole.mean() - few.mean()) <= 0.6
