"""Predict the class of every image in a folder, with a model from a folder, a bucket or MLflow's registry.

python jobs/predict.py --model runs/demo/model --images photos --out predicted
python jobs/predict.py --model models:/lada@champion --images s3://bucket/photos --out s3://bucket/predicted --top_k 3
python jobs/predict.py --model runs/demo/model --images photos --out predicted --classes zebra,okapi --unknown 0.5
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from lada_ray.command_line import NAMED, parse_flags
from lada_ray.config import ResourceConfig, Storage
from lada_ray.console import Console
from lada_ray.domains.base import STRICT, Location
from lada_ray.job import run_job


class Flags(BaseModel):
    """What this job can be told."""

    model_config = STRICT

    model: Annotated[str, NAMED]
    """Folder or URI of a model; or models:/name@alias or models:/name/version of MLflow."""
    images: Annotated[Location, NAMED]
    """Folder, or s3:// or gs:// prefix, with the images, in folders of it too."""
    out: Annotated[Storage, NAMED]
    """Folder of its own, or s3:// or gs:// prefix, for what is predicted."""
    classes: tuple[str, ...] = ()
    """Names of classes that the model has not learnt, to be recognised too, by name alone."""
    top_k: int = Field(default=1, ge=1)
    """Classes to tell for each image, best first; above 1, in the columns domains, classes and scores."""
    unknown: float | None = Field(default=None, gt=0, le=1)
    """Flag images whose score is lower as unknown (null: no such column)."""
    suggest: Location | None = None
    """Inbox, a folder or s3:// or gs:// prefix: write the images that the model does not know there, to be labelled."""
    fresh: bool = False
    """Remove what was predicted into the same folder before, and start over."""
    resources: ResourceConfig = ResourceConfig()
    """Encoder actors; nothing is trained."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    # --fresh again would start over again.
    again = [word for word in given if word != "--fresh"]
    return run_job(
        lambda: run(parse_flags(given, Flags, __doc__ or ""), Console(), again),
        f"this goes on where it was:\n  {command(again)}",
    )


def run(flags: Flags, console: Console, again: Sequence[str]) -> int:
    """Do what was asked for; these words ask for it again. Returns the exit code."""
    # Imported when the command line is known to be good: it takes seconds.
    from lada_ray.prediction.asked import Options
    from lada_ray.prediction.predict import predict_folder
    from lada_ray.prediction.suggest import say_suggestion, suggest
    from lada_ray.prediction.summary import show

    options = Options(flags.classes, flags.top_k, flags.unknown)
    console.say(f"{flags.images} -> {flags.out}")
    result = predict_folder(
        flags.model, flags.images, flags.out, options, flags.resources, flags.fresh, console
    )
    show(result.folder, result.summary, bool(result.new), console)
    console.say(f"predictions:\n  {result.parts}")
    if flags.suggest:
        say_suggestion(suggest(result.folder, result.summary, flags.suggest), console)
    elif result.summary["drift"] and result.summary["drift"]["new"]:
        console.say(f"have its images labelled:\n  {command([*again, '--suggest', 'INBOX'])}")
    return 0


def command(words: Sequence[str]) -> str:
    """This job's command line with other arguments."""
    return shlex.join(["python", sys.argv[0], *words])


if __name__ == "__main__":
    sys.exit(main())
