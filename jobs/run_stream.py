"""Learn a stream of image domains.

python jobs/run_stream.py --config configs/demo.yaml
python jobs/run_stream.py --config configs/demo.yaml --method.beta 2 --name hot
ray job submit --working-dir . -- python jobs/run_stream.py --config configs/demo.yaml --storage /shared/lada
"""

from __future__ import annotations

import sys

from lada_ray.command_line import JobFlags, parse_command_line
from lada_ray.console import Console, quiet_libraries
from lada_ray.errors import LadaError


class Flags(JobFlags):
    """What this job can be told besides the configuration."""

    plan: bool = False
    """Print what would be done, with an estimate of time, disk and memory, and stop."""
    fresh: bool = False
    """Forget what was learnt under this name, and start over."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    quiet_libraries()
    try:
        config, flags = parse_command_line(sys.argv[1:] if argv is None else argv, Flags, __doc__ or "")
        if flags.plan:
            from lada_ray.plan import print_plan

            return print_plan(config, Console())
        from lada_ray.stream import run_and_show

        run_and_show(config, flags.fresh)
    except LadaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
