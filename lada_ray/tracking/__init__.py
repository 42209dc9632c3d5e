"""MLflow: a projection of the run folder, made by the driver.

One parent run per stream, one nested run per task; one parent per comparison or sweep, one nested run per
stream or trial of it. Whatever a stream logs comes from the run folder (`tasks/`,
`rows/`, `model/model.json`, `metrics.json` and the files beside it), and tags say what is logged already. So
logging while the stream runs, repairing after a kill, and `jobs/log_run.py` long afterwards are one thing:
log what is missing. An MLflow that cannot be reached never costs learning: the run goes on with a warning.

This package and the pyfunc wrapper are the only ones that import mlflow, and they do so when it is first needed:
importing it takes a second or two, a fresh SQLite database about two more. `BackgroundTracker` hides both, and a job
imports it `ahead`, while Ray starts.

    uri, connection    where MLflow is, and how to reach it
    folder, points     what the run folder tells, as metrics and params
    stream_run         the runs of one stream in one MLflow
    tracker            what the stream calls
    group              what comparisons and sweeps call
    repair, registry   logging a run later; loading a model
    pyfunc, served     a model as a folder that `mlflow models serve` serves
    champion           the registry, as a projection of a production model's history
    withdraw           taking out of it what was forgotten
    ahead              imports mlflow
"""

from lada_ray.config import hide_password
from lada_ray.tracking.champion import PublishedVersion, project
from lada_ray.tracking.connection import client_environment, quiet_client, upload_artifacts
from lada_ray.tracking.folder import RunFolder
from lada_ray.tracking.group import Group, tracked
from lada_ray.tracking.points import flat_params, metric_name
from lada_ray.tracking.pyfunc import save_pyfunc
from lada_ray.tracking.registry import load
from lada_ray.tracking.repair import log_run
from lada_ray.tracking.tracker import BackgroundTracker, Tracker
from lada_ray.tracking.uri import how_to_open
from lada_ray.tracking.withdraw import withdraw

__all__ = [
    "BackgroundTracker",
    "Group",
    "PublishedVersion",
    "RunFolder",
    "Tracker",
    "client_environment",
    "flat_params",
    "hide_password",
    "how_to_open",
    "load",
    "log_run",
    "metric_name",
    "project",
    "quiet_client",
    "save_pyfunc",
    "tracked",
    "upload_artifacts",
    "withdraw",
]
