"""Learn the domains that arrived in an inbox; what passes the gate becomes the champion.

python jobs/retrain.py --inbox inbox --model lada
python jobs/retrain.py --inbox s3://bucket/inbox --model lada --storage s3://bucket/lada --guards guards.yaml

Exit code 0: all that arrived is learnt (or known, or nothing arrived); 1: something was refused by the gate, or
rejected, and its _REJECTED.json says why, or failed; 75: another process is changing the model, try again later.
"""

from __future__ import annotations

import sys
from typing import Annotated

from lada_ray.command_line import NAMED, parse_flags
from lada_ray.console import Console
from lada_ray.domains.base import Location
from lada_ray.gate import Limits
from lada_ray.job import run_job
from lada_ray.production import Settings


class Flags(Settings):
    """What this job can be told."""

    inbox: Annotated[Location, NAMED]
    """Folder or object-store prefix in which each new domain is a folder with its data, domain.yaml and _READY."""
    guards: str | None = None
    """YAML of a run whose domains are never learnt: zero-shot ability is watched on their test images."""
    outside: bool = False
    """Let a domain.yaml name data outside its own folder; for inboxes that only trusted people write to."""
    gate: Limits = Limits()
    """What a candidate has to reach."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    return run_job(lambda: run(parse_flags(given, Flags, __doc__ or ""), Console()))


def run(flags: Flags, console: Console) -> int:
    """Do what was asked for; returns the exit code."""
    # Imported when the command line is known to be good: it takes seconds.
    from lada_ray.history import read_history, table_lines, write_page
    from lada_ray.retrain import retrain, show

    done = retrain(flags, flags.inbox, flags.gate, flags.guards, flags.outside, console)
    show(done, console)
    if done.endings:
        told = read_history(flags)
        for line in [*table_lines(told), "page:", f"  {write_page(told)}"]:
            console.say(line)
    return 0 if done.good else 1


if __name__ == "__main__":
    sys.exit(main())
