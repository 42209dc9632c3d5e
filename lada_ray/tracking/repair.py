"""Logging a run folder later: after an outage, or into another MLflow."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from typing import Any

import yaml

from lada_ray.config import BLANK, mlflow_uri
from lada_ray.errors import ConfigError, InputError
from lada_ray.lease import Lease
from lada_ray.store import open_store
from lada_ray.tracking.folder import RunFolder
from lada_ray.tracking.points import flat_params
from lada_ray.tracking.tracker import Say, Tracker
from lada_ray.tracking.uri import how_to_open


def log_run(folder: str, uri: str | None = None, experiment: str | None = None, say: Say = print) -> bool:
    """Log to MLflow what is missing there of a run folder: after an outage, or into another MLflow.

    Args:
        folder: the run folder, a path or URI.
        uri: a tracking URI; by default what the run's configuration says.
        experiment: the experiment; by default the configuration's.
        say: told what happens.

    Returns:
        whether everything is logged now.

    Raises:
        InputError: the folder is no run folder.
        ConfigError: no usable tracking URI.
        LeaseHeld: the run is being written right now, and so logged by its own process.
    """
    store = open_store(folder)
    found = store.read_version("config.yaml")
    if found is None:
        raise InputError([f"{store.uri} has no config.yaml: give the folder of one run, <storage>/<name>"])
    config = yaml.safe_load(found[0]) or {}
    settings = config.get("tracking") or {}
    storage = str(config.get("storage") or posixpath.dirname(store.uri.rstrip("/")))
    tracking_uri = mlflow_uri(_with_password(uri or settings.get("uri")), storage, os.environ)
    chosen = experiment or settings.get("experiment") or "lada_ray"
    name = str(config.get("name") or posixpath.basename(folder.rstrip("/")))
    with Lease.acquire(store, say):
        registered = settings.get("registered_model")
        tracker = Tracker(
            store, tracking_uri, chosen, name, flat_params(config), say, registered_model=registered
        )
        logged = tracker.finish("FINISHED" if _is_complete(RunFolder(store), config) else "KILLED")
    if logged:
        say(f"All of {store.uri} is logged. To look at it: {how_to_open(tracking_uri)}")
    return logged


def _with_password(uri: str | None) -> str | None:
    """Refuse a URI whose password was blanked, as in `config.yaml`, unless the environment has the whole one."""
    if not uri or BLANK not in uri:
        return uri
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    problem = f"{uri} lacks its password, which is kept in no file"
    raise ConfigError([f"{problem}: pass --tracking_uri, or set MLFLOW_TRACKING_URI"])


def _is_complete(folder: RunFolder, config: Mapping[str, Any]) -> bool:
    domains = len(config.get("domains") or ())
    return folder.store.exists("metrics.json") and len(folder.packs()) >= domains > 0
