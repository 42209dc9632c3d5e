"""A model's history as MLflow's registry shows it: its versions, and the aliases champion, previous and challenger."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lada_ray.calibration import read_calibration
from lada_ray.cluster import join_cluster, result
from lada_ray.config import StreamConfig, hide_password, tracking_uri
from lada_ray.errors import InputError
from lada_ray.model import LadaModel, ModelFile, cached_pack
from lada_ray.production import Production
from lada_ray.store import Store, open_store
from lada_ray.tracking import PublishedVersion, client_environment, project
from lada_ray.tracking.connection import environment
from lada_ray.versions import State, Version, history, restorable

SHOWN = "registry.json"
"""In the run folder: what the registry showed when it was last brought up to date."""
CHALLENGER = "challenger.json"
"""In the run folder: the candidate that the gate refused last, and why."""

Key = tuple[str, str]


def refuse(store: Store, champion: Version, subject: str, state: State, reason: str) -> None:
    """Note a candidate that the gate refused, so that it is shown as challenger.

    Args:
        store: the run folder.
        champion: what it was judged against.
        subject: the domain that it learnt.
        state: what it consists of.
        reason: which checks it failed, by how much.
    """
    said = {"number": champion.number + 1, "subject": subject, "reason": reason, "state": asdict(state)}
    store.write(CHALLENGER, json.dumps(said, indent=1, ensure_ascii=False).encode())


def accept(store: Store, subject: str) -> None:
    """Forget that a domain was refused, now that it is learnt after all."""
    found = store.read_version(CHALLENGER)
    if found is not None and json.loads(found[0])["subject"] == subject:
        store.delete(CHALLENGER)


def is_published(store: Store, file: ModelFile, config: StreamConfig) -> bool:
    """Whether the registry that the configuration names showed all of this when it was last asked."""
    return _is_shown(store, _shown(store, file, config))


def _is_shown(store: Store, wanted: Mapping[str, Any]) -> bool:
    found = store.read_version(SHOWN)
    return found is not None and json.loads(found[0]) == wanted


def _shown(store: Store, file: ModelFile, config: StreamConfig) -> dict[str, Any]:
    refused = store.read_version(CHALLENGER)
    return {
        "registry": hide_password(tracking_uri(config, os.environ)),
        "experiment": config.tracking.experiment,
        "name": registered_name(config),
        "version": history(file)[-1].digest if file.history else None,
        "challenger": hashlib.sha256(refused[0]).hexdigest() if refused else None,
    }


def registered_name(config: StreamConfig) -> str:
    """The model's name in MLflow's registry."""
    return config.tracking.registered_model or config.name


def check_registry(production: Production) -> None:
    """Make sure that the MLflow asked for is the one that shows the model: what it has of a domain is to be deleted.

    Raises:
        InputError: it is another one.
        ConfigError: there is none, and the storage is no local one.
    """
    found, now = production.store.read_version(SHOWN), hide_password(production.mlflow)
    before = json.loads(found[0])["registry"] if found else now
    if before != now:
        raise InputError(
            [
                f"the history is shown in {before}, and MLflow is {now} here: what {before} has of it would stay; set "
                f"MLFLOW_TRACKING_URI (or --tracking.uri) to it. If it has moved, run jobs/retrain.py once before"
            ],
            "Nothing is forgotten",
        )


def publish(production: Production) -> bool:
    """Bring MLflow's registry up to the history. Whatever goes wrong there is said, and made up for by the next start.

    Returns:
        whether it shows all of it now.
    """
    store, console, file = production.store, production.console, production.file
    tracking, uri = production.config.tracking, production.mlflow
    shown = _shown(store, file, production.config)
    if _is_shown(store, shown):
        return True
    versions, challenger, states = _wanted(production)
    save = partial(save_state, production.run.model_store.uri, file, states)
    name = registered_name(production.config)
    arguments = (uri, tracking.experiment, name, versions, save, versions[-1].number, challenger)
    with console.stage("registry"):
        if uri.startswith("sqlite:"):
            done, said = show_versions(*arguments)
        else:
            # A small head node need not carry the weights to a server.
            import ray

            join_cluster()
            task: Any = ray.remote(num_cpus=0.5)(show_versions)
            done, said = result(task.remote(*arguments, client_environment()))
    for line in said:
        console.warn(line)
    if done:
        production.run.lease.check()
        store.write(SHOWN, json.dumps(shown).encode())
    return done


def show_versions(
    uri: str,
    experiment: str,
    name: str,
    versions: list[PublishedVersion],
    save: Any,
    champion: int,
    challenger: tuple[PublishedVersion, str] | None,
    variables: Mapping[str, str] | None = None,
) -> tuple[bool, list[str]]:
    """`tracking.project` where MLflow's credentials have to come along; returns what it returned and said."""
    said: list[str] = []
    with environment(variables or {}):
        done = project(uri, experiment, name, versions, save, said.append, champion, challenger)
    return done, said


def save_state(
    model_uri: str, file: ModelFile, states: Mapping[Key, State], version: PublishedVersion, folder: Path
) -> None:
    """Write the model of a version to a folder."""
    load_state(model_uri, file, states[version.key]).save(folder)


def load_state(model_uri: str, file: ModelFile, state: State) -> LadaModel:
    """The model as it was, or would be, with these packs.

    Raises:
        IntegrityError: a pack is missing (forgotten, perhaps) or changed.
    """
    packs = [cached_pack(model_uri, digest) for digest in state.packs]
    file = replace(file, packs=state.packs, prompts=state.prompts, history=())
    return LadaModel(file, packs, calibration=read_calibration(open_store(model_uri), state.packs))


def _wanted(
    production: Production,
) -> tuple[list[PublishedVersion], tuple[PublishedVersion, str] | None, dict[Key, State]]:
    """Versions, challenger with the reason, and what each consists of."""
    there = restorable(production.versions)
    pairs = [(_published(version), version.state) for version in there]
    found = production.store.read_version(CHALLENGER)
    challenger = None
    if found:
        said = json.loads(found[0])
        state = State.from_json(said["state"])
        text = f"refused: {said['subject']}"
        one = PublishedVersion(said["number"], hashlib.sha256(found[0]).hexdigest()[:32], text)
        challenger = (one, str(said["reason"]))
        pairs.append((one, state))
    states = {version.key: state for version, state in pairs}
    return [_published(version) for version in there], challenger, states


def _published(version: Version) -> PublishedVersion:
    accuracy = ", ".join(f"{domain} {value:.1f} %" for domain, value in version.accuracy.items())
    head = f"{version.action} {version.subject}".strip()
    tags = {"lada_ray.action": version.action, "lada_ray.subject": version.subject or "-"}
    return PublishedVersion(
        version.number, version.digest, f"{head} ({accuracy})" if accuracy else head, tags
    )
