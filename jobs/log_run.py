"""Log to MLflow what is missing there of a run: after an outage, or into another MLflow.

python jobs/log_run.py runs/demo
python jobs/log_run.py s3://bucket/runs/demo --tracking.uri http://mlflow:5000
"""

from __future__ import annotations

import argparse
import sys

from lada_ray.errors import LadaError
from lada_ray.tracking import log_run


def main(arguments: list[str] | None = None) -> int:
    """Run the job.

    Args:
        arguments: the command line; the process's own by default.

    Returns:
        the exit code: 0 when everything is logged, 75 when the run is being written right now, else 1.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "folder", metavar="RUN_FOLDER", help="the run's folder, <storage>/<name>; a path or URI"
    )
    parser.add_argument("--tracking.uri", dest="uri", help="MLflow to log to (default: the run's own)")
    parser.add_argument(
        "--tracking.experiment", dest="experiment", help="experiment (default: the run's own)"
    )
    given = parser.parse_args(arguments)
    try:
        return 0 if log_run(given.folder, given.uri, given.experiment) else 1
    except LadaError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
