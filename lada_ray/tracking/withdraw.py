"""Taking out of MLflow what was forgotten: registry versions, their uploads, and what the stream's runs hold of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lada_ray.tracking.champion import DIGEST_TAG, MODEL_TAG, ROLE, VERSION_TAG, Key, what_failed
from lada_ray.tracking.connection import UPLOAD_TIMEOUT_S, connect, pages, quiet_client
from lada_ray.tracking.stream_run import FILES_TAG, PACK_TAG, ROLE_TAG, RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STREAM_FILES = ("report.html", "bad_images.csv", "accuracy_matrix.csv", "accuracy_matrix.png", "model")
"""Of a stream's parent run: pictures of images, lists of them, and packs."""
TASK_FILES = ("pack",)


def withdraw(
    uri: str,
    experiment: str,
    name: str,
    run: str,
    kept: Collection[Key],
    dead: Collection[str],
    say: Callable[[str], None],
) -> bool:
    """Delete from MLflow every version of a model but those that are kept. Never raises because of MLflow.

    Hold the model's lease, and bring the registry up to the history before (`project`): deleting a version takes
    its aliases along. Deleted runs stay in MLflow's bin, without their files, until `mlflow gc`.

    Args:
        uri: a tracking URI; its registry is the one next to it.
        experiment: of the uploads.
        name: of the registered model.
        run: id of the run that learnt the model.
        kept: number and digest of the versions that stay; refused candidates go too.
        dead: digests of packs that were made with what is forgotten.
        say: told what went wrong.

    Returns:
        whether all of it is gone.
    """
    try:
        with quiet_client(UPLOAD_TIMEOUT_S):
            client, _ = connect(uri, experiment)
            experiments = [one.experiment_id for one in pages(client.search_experiments)]
            _withdraw_versions(client, name, kept, dead)
            for upload in _runs(client, experiments, f"tags.`{MODEL_TAG}` = '{name}'"):
                tags = upload.data.tags
                if tags.get(ROLE_TAG) == ROLE and (tags.get(VERSION_TAG), tags.get(DIGEST_TAG)) not in kept:
                    _delete_files(uri, upload, ("",))
                    client.delete_run(upload.info.run_id)
            _clean(client, uri, _runs(client, experiments, f"tags.`{RUN_TAG}` = '{run}'"), dead)
    # As in `project`: nothing that goes wrong in MLflow may cost more than another try.
    except Exception as error:
        say(what_failed(error, uri, name))
        return False
    return True


def _withdraw_versions(client: MlflowClient, name: str, kept: Collection[Key], dead: Collection[str]) -> None:
    search = partial(client.search_model_versions, f"name = '{name}'", max_results=1000)
    for entry in pages(search):
        key = entry.tags.get(VERSION_TAG), entry.tags.get(DIGEST_TAG)
        ours = VERSION_TAG in entry.tags and key not in kept
        if ours or entry.tags.get(PACK_TAG) in dead:
            client.delete_model_version(name, str(entry.version))


def _runs(client: MlflowClient, experiments: list[str], wanted: str) -> list[Run]:
    return pages(partial(client.search_runs, experiments, wanted, max_results=1000))


def _clean(client: MlflowClient, uri: str, runs: Sequence[Run], dead: Collection[str]) -> None:
    """Delete what the runs of the stream hold of it, if it learnt it; `log_run` logs again what is there."""
    tasks = [run for run in runs if run.data.tags.get(PACK_TAG) in dead]
    for run in tasks:
        _delete_files(uri, run, TASK_FILES)
    for run in runs if tasks else []:
        if run.data.tags.get(ROLE_TAG) == "stream":
            _delete_files(uri, run, STREAM_FILES)
            client.set_tag(run.info.run_id, FILES_TAG, "")


def _delete_files(uri: str, run: Run, paths: Collection[str]) -> None:
    """Delete files or folders among a run's artifacts; "" all of them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=uri)
    there = {info.path for info in artifacts.list_artifacts()}
    for path in there if "" in paths else there.intersection(paths):
        artifacts.delete_artifacts(path)
