"""Loading a model from wherever it is kept: a folder, an object store, MLflow's runs or its registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lada_ray.errors import InputError
from lada_ray.model import LadaModel
from lada_ray.tracking.connection import UPLOAD_TIMEOUT_S, quiet_client
from lada_ray.tracking.pyfunc import MODEL_INSIDE

if TYPE_CHECKING:
    from mlflow import MlflowClient


def load(uri: str, tracking_uri: str | None = None) -> LadaModel:
    """Load a model from a path, a storage URI, or MLflow's `models:/name@alias`, `models:/name/1`, `runs:/id/model`.

    Of a version that `mlflow models serve` can serve, the model inside is read; its code is not run.

    Args:
        uri: where the model is.
        tracking_uri: the MLflow that knows it; by default MLFLOW_TRACKING_URI.

    Raises:
        FileNotFoundError: there is no model.
        IntegrityError: a pack is missing, cut short or changed.
        InputError: nobody says which MLflow it is.
        mlflow.exceptions.MlflowException: MLflow does not know it.
    """
    if not uri.startswith(("models:/", "runs:/")):
        return LadaModel.load(uri)
    with quiet_client(UPLOAD_TIMEOUT_S):
        from mlflow import MlflowClient
        from mlflow.artifacts import download_artifacts
        from mlflow.tracking import is_tracking_uri_set

        if tracking_uri is None and not is_tracking_uri_set():
            # MLflow would make an empty database in the current folder, and find nothing in it.
            where = "pass tracking_uri=, or set MLFLOW_TRACKING_URI"
            raise InputError([f"{uri} is looked up in MLflow, but nothing says in which: {where}"])
        if uri.startswith("models:/"):
            # MLflow's own look-up of models:/ asks its default registry, whatever URI it is given.
            uri = _source(MlflowClient(tracking_uri, registry_uri=tracking_uri), uri)
        folder = Path(download_artifacts(uri, tracking_uri=tracking_uri))
        return LadaModel.load(folder / MODEL_INSIDE if (folder / "MLmodel").is_file() else folder)


def _source(client: MlflowClient, uri: str) -> str:
    """Where the artifacts of `models:/name@alias` or `models:/name/version` are."""
    name, _, alias = uri.removeprefix("models:/").lstrip("/").partition("@")
    if alias:
        version = str(client.get_model_version_by_alias(name, alias).version)
    else:
        name, _, version = name.rpartition("/")
    if not name or not version:
        raise InputError([f"{uri} names no version: write models:/name/1 or models:/name@alias"])
    return str(client.get_model_version_download_uri(name, version))
