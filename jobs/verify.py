"""Recompute a run's accuracy matrix from its packs and the feature bank: is it the recorded one, and what has changed?

python jobs/verify.py runs/demo
python jobs/verify.py s3://bucket/runs/demo

Exit code 0: every number is the recorded one; 1: some differ; 2: it cannot be verified, and why is said: a production
model, whose history goes on, is verified by jobs/model.py.
"""

from __future__ import annotations

import sys

from pydantic import BaseModel

from lada_ray.command_line import parse_flags
from lada_ray.console import Console
from lada_ray.domains.base import STRICT
from lada_ray.job import run_job

SAME, DIFFERS, UNVERIFIED = 0, 1, 2


class Flags(BaseModel):
    """What this job can be told."""

    model_config = STRICT

    folder: str
    """The run's folder, <storage>/<name>: a path or URI."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code, one of `SAME`, `DIFFERS` and `UNVERIFIED`."""
    given = sys.argv[1:] if argv is None else argv
    return run_job(
        lambda: run(parse_flags(given, Flags, __doc__ or "").folder, Console()), "start it again", UNVERIFIED
    )


def run(folder: str, console: Console) -> int:
    """Verify and tell; returns the exit code, as `main` does."""
    # Imported when the command line is known to be good: it takes seconds.
    from lada_ray.verify import show, verify

    verdict = verify(folder, console)
    show(verdict, console)
    if verdict.problems:
        return UNVERIFIED
    return SAME if verdict.same else DIFFERS


if __name__ == "__main__":
    sys.exit(main())
