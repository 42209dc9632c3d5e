"""Learn a stream of image domains.

python jobs/run_stream.py --config configs/demo.yaml
python jobs/run_stream.py --config configs/demo.yaml --method.beta 2 --name hot
ray job submit --working-dir . -- python jobs/run_stream.py --config configs/demo.yaml --storage /shared/lada
"""

from __future__ import annotations

import sys

from lada_ray.command_line import JobFlags, parse_command_line
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.job import run_job
from lada_ray.store import join


class Flags(JobFlags):
    """What this job can be told besides the configuration."""

    plan: bool = False
    """Print what would be done, with an estimate of time, disk and memory, and stop."""
    fresh: bool = False
    """Forget what was learnt under this name, and start over."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    return run_job(lambda: run(*parse_command_line(given, Flags, __doc__ or ""), Console.of_process()))


def run(config: StreamConfig, flags: Flags, console: Console) -> int:
    """Do what was asked for; returns the exit code."""
    if not flags.plan:
        console.say(f"{config.name}: {len(config.domains)} domains -> {join(config.storage, config.name)}")
    # Imported when the command line is known to be good: it takes seconds, in which Ray starts. So Ray starts as well
    # where the images then cannot be used.
    from lada_ray.cluster import join_while_importing

    asked = () if config.encoder.in_files else ("open_clip",)
    join_while_importing(console, "lada_ray.plan", "lada_ray.stream", *asked, "lada_ray.tracking.ahead")
    from lada_ray.plan import print_plan
    from lada_ray.results import show
    from lada_ray.stream import run_stream

    if flags.plan:
        return print_plan(config, console)
    show(config, run_stream(config, flags.fresh, console), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
