"""Show the feature banks of a storage, or remove what no recent run needs.

python jobs/bank.py runs
python jobs/bank.py runs --unused_days 30
"""

from __future__ import annotations

import sys

from pydantic import BaseModel, Field

from lada_ray.command_line import parse_flags
from lada_ray.domains.base import STRICT
from lada_ray.errors import InputError
from lada_ray.features.bank import FeatureBank, banks
from lada_ray.job import run_job
from lada_ray.page import size
from lada_ray.production import needed_views
from lada_ray.store import open_store


class Flags(BaseModel):
    """What this job can be told."""

    model_config = STRICT

    storage: str
    """Storage root of the runs: a folder, or s3:// or gs://."""
    unused_days: float | None = Field(default=None, ge=0)
    """Remove every feature that no run started within this many days needs; those of models in production stay."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    return run_job(lambda: run(parse_flags(given, Flags, __doc__ or "")), "start it again")


def run(flags: Flags) -> int:
    """Print every bank's size, after removing what was asked to be removed; returns the exit code."""
    features = open_store(flags.storage).child("features")
    found = dict(banks(features))
    if not found:
        raise InputError([f"there is no feature bank below {features.uri}"])
    for key, bank in found.items():
        if flags.unused_days is not None:
            # The width plays no part in removing rows: they are copied as they are.
            removed = FeatureBank.open(features, key).prune(flags.unused_days, needed_views(flags.storage))
            print(
                f"{key}: removed {removed} views that no run of the last {flags.unused_days:g} days needs, and no "
                "model in production"
            )
            bank = FeatureBank.open(features, key).size()
        print(f"{key}: {bank.views} views, {size(bank.bytes)} in {bank.parts} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
