"""Log to MLflow what is missing there of a run: after an outage, or into another MLflow.

python jobs/log_run.py runs/demo
python jobs/log_run.py s3://bucket/runs/demo --tracking_uri http://mlflow:5000
"""

from __future__ import annotations

import sys

from pydantic import BaseModel

from lada_ray.command_line import parse_flags
from lada_ray.domains.base import STRICT
from lada_ray.job import run_job
from lada_ray.tracking import log_run


class Flags(BaseModel):
    """What this job can be told."""

    model_config = STRICT

    folder: str
    """The run's folder, <storage>/<name>: a path or URI."""
    tracking_uri: str | None = None
    """MLflow to log to (null: the run's own)."""
    experiment: str | None = None
    """Experiment to log to (null: the run's own)."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code: 0 when everything is logged, 75 when the run is being written, else 1."""
    given = sys.argv[1:] if argv is None else argv
    return run_job(lambda: run(parse_flags(given, Flags, __doc__ or "")), "start it again")


def run(flags: Flags) -> int:
    """Do what was asked for; returns the exit code."""
    return 0 if log_run(flags.folder, flags.tracking_uri, flags.experiment) else 1


if __name__ == "__main__":
    sys.exit(main())
