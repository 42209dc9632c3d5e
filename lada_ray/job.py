"""How every job begins and ends: quiet libraries, errors of ours as their message alone, exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from lada_ray.console import quiet_libraries
from lada_ray.errors import LadaError


def run_job(
    job: Callable[[], int], stopped: str = "the same command continues where it was", failed: int = 1
) -> int:
    """Run a job to its exit code.

    Args:
        job: does the work and returns the exit code.
        stopped: what is said after Ctrl-C: how to go on.
        failed: exit code of an error of ours that has none of its own.

    Returns:
        The job's exit code; that of an error of ours, whose message is printed; 130 after Ctrl-C.
    """
    quiet_libraries()
    # What schedulers send: end like on Ctrl-C, with the lease released and MLflow told.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return job()
    except LadaError as error:
        print(error, file=sys.stderr)
        return failed if error.exit_code == LadaError.exit_code else error.exit_code
    except KeyboardInterrupt:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
