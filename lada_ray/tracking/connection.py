"""Reaching an MLflow: quickly given up, quiet, and created by one process only."""

from __future__ import annotations

import logging
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lada_ray.store import open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

CALL_TIMEOUT_S = 10
UPLOAD_TIMEOUT_S = 120  # a server may pass an upload on before it answers
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def client_environment() -> dict[str, str]:
    """Return what an MLflow client elsewhere needs to reach the same MLflow: credentials, certificates, limits.

    Returns:
        the MLFLOW_* variables of this process, without those that `quiet_client` sets. They hold passwords: hand
        them over as an argument of `upload_artifacts`, not as a runtime environment, which Ray logs and shows.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("MLFLOW_") and not _is_ours(name, value)
    }


@contextmanager
def quiet_client(timeout: int = CALL_TIMEOUT_S) -> Iterator[None]:
    """Let MLflow give up within seconds and keep quiet, except where the user's environment says otherwise.

    Without this a dead server costs minutes per call (7 retries of 120 s), and every retry prints a warning.

    Args:
        timeout: seconds to wait for an answer.
    """
    ours = {
        name: value
        for name, value in {**CLIENT_ENVIRONMENT, TIMEOUT: str(timeout)}.items()
        if _is_ours(name, os.environ.get(name))
    }
    levels = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "urllib3.connectionpool": logging.ERROR}
    with environment(ours), ExitStack() as after:
        _import_mlflow()  # it sets its logger's level
        for name, level in levels.items():
            logger = logging.getLogger(name)
            after.callback(logger.setLevel, logger.level)
            logger.setLevel(max(level, logger.level))
        yield


def _is_ours(name: str, value: str | None) -> bool:
    """Whether `quiet_client` may set a variable: it is not set, or an outer `quiet_client` set it."""
    outer = str(CALL_TIMEOUT_S) if name == TIMEOUT else CLIENT_ENVIRONMENT.get(name)
    return value is None or value == outer


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _import_mlflow() -> None:
    import mlflow  # noqa: F401


def upload_artifacts(
    tracking_uri: str,
    run_id: str,
    store_uri: str,
    files: Mapping[str, str],
    variables: Mapping[str, str] | None = None,
) -> None:
    """Copy objects from storage into a run's artifacts. Stands alone, so that a task near the data can do it.

    Args:
        tracking_uri: the MLflow that has the run.
        run_id: the run.
        store_uri: where the objects are.
        files: key in the store -> path among the artifacts.
        variables: `client_environment` of the process that may write there, when that is another one.

    Raises:
        FileNotFoundError: an object is missing.
        mlflow.exceptions.MlflowException: MLflow cannot take the files.
    """
    store = open_store(store_uri)
    with (
        environment(variables or {}),
        quiet_client(UPLOAD_TIMEOUT_S),
        tempfile.TemporaryDirectory(prefix="lada_ray_") as folder,
    ):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri)
        for key, target in files.items():
            local = Path(folder) / posixpath.basename(target)
            with store.open(key) as source, local.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            client.log_artifact(run_id, str(local), posixpath.dirname(target) or None)
            local.unlink()


def connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id, creating database and experiment when they are missing."""
    with _initialised_once(uri):
        from mlflow import MlflowClient

        client = MlflowClient(uri, registry_uri=uri)
        return client, _experiment_id(client, uri, experiment)


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:///"):  # beside the database; a server knows better where its artifacts go
            location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:
            found = client.get_experiment_by_name(name)  # another run may have been quicker
            if found is None:
                raise
    return str(found.experiment_id)


@contextmanager
def _initialised_once(uri: str) -> Iterator[None]:
    """Keep two runs of one storage from creating one SQLite database at once, which destroys it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=60):
        if not database.exists():
            _create(database)
        yield


def _create(database: Path) -> None:
    """Make an empty database aside and move it into place: a process that is killed meanwhile leaves no half of one.

    MLflow cannot go on with a half one, and says so for ever.
    """
    from mlflow import MlflowClient

    aside = database.with_name(f"{database.name}.{uuid.uuid4().hex}.new")
    MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
    os.replace(aside, database)


def pages(search: Callable[..., Any]) -> list[Any]:
    """All that a search of MLflow finds, page by page."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token)
        found += page
        token = page.token
        if not token:
            return found
