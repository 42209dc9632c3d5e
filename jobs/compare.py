"""Compare learners, and LADA with its own parts, on one stream; every image is encoded once for all of them.

python jobs/compare.py --config configs/demo.yaml
python jobs/compare.py --config configs/demo.yaml --methods lada,rail_dual --ablations all --seeds 0,1,2,3,4
"""

from __future__ import annotations

import sys
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from lada_ray.command_line import JobFlags, parse_command_line
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.job import run_job
from lada_ray.store import join

Method = Literal["zero_shot", "ncm", "rail_primal", "rail_dual", "lada", "joint"]
Ablation = Literal["no_tuner", "no_memory", "no_replay", "no_noise", "ungated"]


class Flags(JobFlags):
    """What this job can be told besides the configuration."""

    methods: tuple[Method, ...] = get_args(Method)
    """Learners to compare."""
    ablations: tuple[Ablation, ...] = ()
    """Parts of LADA to leave out, one at a time; or all."""
    seeds: tuple[int, ...] | None = None
    """What decides shots, initial weights, batches, views and noise (null: --seed and the two after it)."""
    orders: int = Field(default=1, ge=1)
    """Orders of the domains: the configured one, then random permutations."""
    baseline: str = "lada"
    """What the others are compared with, pair by pair."""
    fresh: bool = False
    """Forget what was learnt in an earlier comparison of this name, and start over."""

    @field_validator("ablations", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        if value in ("none", ["none"]):
            return ()
        return get_args(Ablation) if value in ("all", ["all"]) else value


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    return run_job(lambda: run(*parse_command_line(given, Flags, __doc__ or ""), Console()))


def run(config: StreamConfig, flags: Flags, console: Console) -> int:
    """Do what was asked for; returns the exit code."""
    # Imported when the command line is known to be good: it takes seconds.
    from lada_ray.compare import Grid, compare, show

    seeds = flags.seeds or range(config.seed, config.seed + 3)
    grid = Grid(flags.methods, flags.ablations, tuple(seeds), flags.orders, flags.baseline)
    folder = join(config.storage, f"{config.name}.compare")
    console.say(f"{config.name}: {len(grid.cells())} streams of {len(config.domains)} domains -> {folder}")
    comparison = compare(config, grid, console, flags.fresh)
    show(grid, comparison, console)
    comparison.raise_failures()
    return 0


if __name__ == "__main__":
    sys.exit(main())
