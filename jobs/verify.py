"""Recompute a run's accuracy matrix from its packs and the feature bank: is it the recorded one, and what has changed?

python jobs/verify.py runs/demo
python jobs/verify.py s3://bucket/runs/demo
"""

from __future__ import annotations

import sys

from pydantic import BaseModel

from lada_ray.command_line import parse_flags
from lada_ray.console import Console, quiet_libraries
from lada_ray.domains.base import STRICT
from lada_ray.errors import LadaError


class Flags(BaseModel):
    """What this job can be told."""

    model_config = STRICT

    folder: str
    """The run's folder, <storage>/<name>: a path or URI."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code: 0 when every number is the recorded one, else 1."""
    quiet_libraries()
    try:
        flags = parse_flags(sys.argv[1:] if argv is None else argv, Flags, __doc__ or "")
        return run(flags.folder, Console())
    except LadaError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def run(folder: str, console: Console) -> int:
    """Verify and tell; returns the exit code."""
    # Imported when the command line is known to be good: it takes seconds.
    from lada_ray.verify import show, verify

    verdict = verify(folder, console)
    show(verdict, console)
    return 0 if verdict.same else 1


if __name__ == "__main__":
    sys.exit(main())
