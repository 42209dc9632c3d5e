"""Search hyperparameters of a stream, on folds of its training images; learn and test the best.

python jobs/tune_stream.py --config configs/demo.yaml --space tune_spaces/beta.yaml
python jobs/tune_stream.py --config configs/demo.yaml --space full --samples 100 --search optuna --hours 8
python jobs/tune_stream.py --config configs/demo.yaml --space tune_spaces/beta.yaml --resume
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field

from lada_ray.command_line import JobFlags, parse_command_line
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.job import run_job
from lada_ray.store import join


class Flags(JobFlags):
    """What this job can be told besides the configuration."""

    space: str = "beta"
    """What to search: a YAML file, or the bare name of a shipped one (beta, prototypes, training, full)."""
    samples: int = Field(default=24, ge=1)
    """Trials to make; a grid search makes all of its own."""
    metric: Literal["last", "average", "transfer", "balanced"] = "average"
    """What trials are judged by; balanced is the mean of the other three."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops trials that are not promising after some tasks; none lets all of them end."""
    search: Literal["random", "optuna", "grid"] = "random"
    """How values are chosen."""
    folds: int | None = Field(default=None, ge=2)
    """Parts of the training images, each left out in turn to judge by (null: 4 where classes have few images, else a
    fifth of them is left out, once)."""
    hours: float | None = Field(default=None, gt=0)
    """Time for the trials; what was running then is made again by --resume (null: no limit)."""
    resume: bool = False
    """Go on with the sweep of this name; more --samples extend it."""
    fresh: bool = False
    """Forget the sweep of this name, and start over."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    return run_job(
        lambda: run(*parse_command_line(given, Flags, __doc__ or ""), Console()),
        "the same command with --resume continues where it was",
    )


def run(config: StreamConfig, flags: Flags, console: Console) -> int:
    """Do what was asked for; returns the exit code."""
    # Imported when the command line is known to be good: it takes seconds.
    from lada_ray.space import Space
    from lada_ray.sweep import Options, run_sweep, show_sweep

    space = Space.from_yaml(flags.space)
    options = Options(**flags.model_dump(exclude={"config", "space"}))
    console.say(f"{config.name}: {', '.join(space.parameters)} -> {join(config.storage, config.name)}.sweep")
    show_sweep(run_sweep(config, space, options, console), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
