"""MLflow's registry as a projection of a production model's history: a registry version for each of its versions.

The history (`model.json`) is the truth. Registry versions carry its numbers and digests as tags, so that whatever a
kill or an outage left undone is found and done by the next call, and nothing is done twice. Aliases:

    champion      the version that applications ask
    previous      the one before it
    challenger    the candidate that was refused last

Each version's folder (`pyfunc`) is uploaded to a run of its own: RUNNING until it is whole, then FINISHED.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lada_ray.config import hide_password
from lada_ray.errors import LadaError
from lada_ray.lease import Owner
from lada_ray.tracking.connection import UPLOAD_TIMEOUT_S, connect, pages, quiet_client
from lada_ray.tracking.group import without_passwords
from lada_ray.tracking.pyfunc import save_pyfunc
from lada_ray.tracking.stream_run import ROLE_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL_TAG = "lada_ray.model"  # the registered model that an upload is for
VERSION_TAG = "lada_ray.version"  # number in the history
DIGEST_TAG = "lada_ray.digest"  # of the history's record
REFUSED_TAG = "lada_ray.refused"  # why a candidate was refused
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
ROLE = "version"
TEXT_LENGTH = 5000  # what MLflow takes as a tag or a description
PASSES = 5

Key = tuple[str, str]


@dataclass(frozen=True)
class PublishedVersion:
    """A version of the history, or a refused candidate, as the registry shows it."""

    number: int
    """In the history; a candidate's is the one that it would have had."""
    digest: str
    """Of its record in the history."""
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    """More tags for its registry version."""

    @property
    def key(self) -> Key:
        """What tells it apart in the registry."""
        return str(self.number), self.digest


Save = Callable[[PublishedVersion, Path], None]


def project(
    uri: str,
    experiment: str,
    name: str,
    versions: Sequence[PublishedVersion],
    save: Save,
    say: Callable[[str], None],
    champion: int,
    challenger: tuple[PublishedVersion, str] | None = None,
) -> bool:
    """Bring the registry up to the history, repairing what an earlier call left undone. Never raises because of MLflow.

    Hold the model's lease. A call that comes from a process that lost it does no lasting harm: the alias `champion`
    does not go back from a newer version, and versions that two calls made twice are merged by the next.

    Args:
        uri: a tracking URI; its registry is the one next to it.
        experiment: where the uploads become runs; created when missing.
        name: of the registered model; created when missing.
        versions: the history, the oldest first; without those that cannot be written any more.
        save: writes the model of a version to a folder, as `LadaModel.save` does; a version for which it raises a
            LadaError is left out until the next call.
        say: told, once, what the registry lacks and why.
        champion: number of the version that `champion` names; the newest, as a rule.
        challenger: a candidate that was refused, and why; None: there is none, or it was promoted after all.

    Returns:
        whether the registry shows all of it now.
    """
    try:
        with quiet_client():
            registry = _Registry(uri, experiment, name)
            wanted = [*((version, None) for version in versions), *([challenger] if challenger else [])]
            registry.close_left_over([version.key for version, _ in wanted])
            problems = [registry.show(version, refused, save) for version, refused in wanted]
            registry.point(versions, champion)
            if challenger:
                registry.challenge(challenger[0])
            else:
                registry.unchallenge(champion)
            for problem in filter(None, problems):
                raise problem
    # Whatever goes wrong in MLflow, its database, or the network must not cost the model, which is safe in storage.
    except Exception as error:
        say(what_failed(error, uri, name))
        return False
    if registry.newest > max((version.number for version in versions), default=0):
        say(
            f"The registry ({hide_password(uri)}) has version {registry.newest} of {name}, which is newer than all of "
            "this model's: its aliases stay there. If the model was put back from a copy, delete the versions that "
            "are no longer true in MLflow, and start again."
        )
    return True


def what_failed(error: Exception, uri: str, name: str) -> str:
    """Say that the registry is behind the history, why, and that this costs nothing; without passwords."""
    told = without_passwords(str(error), uri).rpartition("Caused by")[2]  # where requests tells it
    reason = " ".join(told.split())
    reason = reason if len(reason) <= 300 else f"{reason[:300]}…"
    return (
        f"MLflow's registry does not show all versions of {name} yet ({hide_password(uri)}): "
        f"{type(error).__name__}: {reason}\n"
        "Nothing is lost: the model itself is whole. The next start of this command makes up for it."
    )


class _Registry:
    """One registered model, and the runs of its uploads. Calls may raise whatever MLflow raises.

    Attributes:
        newest: the highest number of a version that was not refused, as of the last look; 0 when there is none.
    """

    def __init__(self, uri: str, experiment: str, name: str) -> None:
        self.client, self._experiment_id = connect(uri, experiment)
        self.name, self.newest = name, 0
        self._create()
        self._runs = self._find_runs()
        # Of two for one version, which a lost answer may leave, one that is whole.
        whole_last = sorted(self._runs, key=lambda run: run.info.status == "FINISHED")
        self._uploads: dict[Key, Run] = {_key(run.data.tags): run for run in whole_last}
        self._look()

    def _create(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.create_registered_model(self.name)

    def _find_runs(self) -> list[Run]:
        wanted = f"tags.`{ROLE_TAG}` = '{ROLE}'"
        runs = pages(partial(self.client.search_runs, [self._experiment_id], wanted, max_results=1000))
        return [run for run in runs if run.data.tags.get(MODEL_TAG) == self.name]

    def _look(self) -> None:
        """Read what the registry has now; of two versions for one of ours, drop the one that no alias names."""
        model = self.client.get_registered_model(self.name)
        self._aliases = {alias: str(number) for alias, number in model.aliases.items()}
        search = partial(self.client.search_model_versions, f"name = '{self.name}'", max_results=1000)
        found = [entry for entry in pages(search) if VERSION_TAG in entry.tags]
        found.sort(key=lambda entry: (str(entry.version) not in self._aliases.values(), int(entry.version)))
        self._entries: dict[Key, ModelVersion] = {}
        for entry in found:
            if self._entries.setdefault(_key(entry.tags), entry) is not entry:
                self.client.delete_model_version(self.name, str(entry.version))
        self.newest = max(self._numbers(), default=0)

    def _numbers(self) -> dict[int, str]:
        """Registry versions that were not refused, by number in the history."""
        entries = sorted(self._entries.values(), key=lambda entry: int(entry.version))
        return {_number(entry): str(entry.version) for entry in entries if REFUSED_TAG not in entry.tags}

    def close_left_over(self, wanted: Collection[Key]) -> None:
        """Close uploads that a kill left RUNNING and that this call will not go on with."""
        lacking = set(wanted) - self._entries.keys()
        for run in self._runs:
            key = _key(run.data.tags)
            if run.info.status == "RUNNING" and not (key in lacking and self._uploads[key] is run):
                self.client.set_terminated(run.info.run_id, "KILLED")

    def show(self, version: PublishedVersion, refused: str | None, save: Save) -> LadaError | None:
        """Make the registry version of a version, unless it is there.

        Returns:
            why its model cannot be written; None when the registry has it.
        """
        entry = self._entries.get(version.key)
        if entry is None:
            try:
                self._register(version, refused, *self._upload(version, save))
            except LadaError as error:
                return error
        elif refused is None and REFUSED_TAG in entry.tags:
            self._accept(entry)
        return None

    def _register(self, version: PublishedVersion, refused: str | None, source: str, run_id: str) -> None:
        self._look()  # an upload takes its time: another process may have been quicker
        if version.key in self._entries:
            return
        tags = {**version.tags, VERSION_TAG: str(version.number), DIGEST_TAG: version.digest}
        if refused is not None:
            tags[REFUSED_TAG] = refused or "refused"
        self._entries[version.key] = self.client.create_model_version(
            self.name,
            source,
            run_id,
            tags={key: str(text)[:TEXT_LENGTH] for key, text in tags.items()},
            description=version.description[:TEXT_LENGTH],
            await_creation_for=UPLOAD_TIMEOUT_S,
        )

    def _accept(self, entry: ModelVersion) -> None:
        """A candidate that was refused has been promoted after all."""
        if self._aliases.get(CHALLENGER) == str(entry.version):
            self.client.delete_registered_model_alias(self.name, CHALLENGER)
        self.client.delete_model_version_tag(self.name, str(entry.version), REFUSED_TAG)
        self._look()

    def _upload(self, version: PublishedVersion, save: Save) -> tuple[str, str]:
        """Where the version's folder is, and the run that has it."""
        run = self._uploads.get(version.key) or self._begin(version)
        run_id = run.info.run_id
        if run.info.status != "FINISHED":
            with tempfile.TemporaryDirectory(prefix="lada_ray_") as folder, quiet_client(UPLOAD_TIMEOUT_S):
                save_pyfunc(partial(save, version), Path(folder) / "model")
                self.client.log_artifacts(run_id, folder)
            self.client.set_terminated(run_id, "FINISHED")
        return f"{run.info.artifact_uri}/model", run_id

    def _begin(self, version: PublishedVersion) -> Run:
        number, digest = version.key
        tags = {ROLE_TAG: ROLE, MODEL_TAG: self.name, VERSION_TAG: number, DIGEST_TAG: digest}
        user = {"mlflow.source.name": "lada_ray", "mlflow.user": Owner.this_process(0).user}
        run_name = f"{self.name} version {number}"
        return self.client.create_run(self._experiment_id, tags={**tags, **user}, run_name=run_name)

    def point(self, versions: Sequence[PublishedVersion], champion: int) -> None:
        """Let the aliases name champion and previous version; look again until they do, and never go back."""
        ours = max((version.number for version in versions), default=0)
        for _ in range(PASSES):
            self._look()
            numbers = self._numbers()
            shown = [version for version in versions if version.key in self._entries]
            numbers |= {version.number: str(self._entries[version.key].version) for version in shown}
            # A newer version was made by a process that took the model over from this one.
            number = self.newest if self.newest > ours else champion
            named = next((one for one in numbers if numbers[one] == self._aliases.get(CHAMPION)), 0)
            if named > number or number not in numbers:
                return
            # Of ours alone: what the history is without any more (it was forgotten) is no version to go back to.
            before = max((one.number for one in shown if one.number < number), default=None)
            # Champion last: until then `previous` names the same version as it, never an older one.
            moved = before is not None and self._set(PREVIOUS, numbers[before])
            if not (self._set(CHAMPION, numbers[number]) or moved):
                return

    def challenge(self, candidate: PublishedVersion) -> None:
        """Let the alias `challenger` name a refused candidate, unless it names a later one or this one was promoted."""
        entry = self._entries.get(candidate.key)
        named = self._aliases.get(CHALLENGER)
        number = next((_number(one) for one in self._entries.values() if str(one.version) == named), 0)
        if entry and number <= candidate.number and REFUSED_TAG in entry.tags:
            self._set(CHALLENGER, str(entry.version))

    def unchallenge(self, champion: int) -> None:
        """Remove the alias `challenger` from a candidate that was refused before this version."""
        named = self._aliases.get(CHALLENGER)
        entry = next((one for one in self._entries.values() if str(one.version) == named), None)
        if entry is not None and _number(entry) <= champion:
            self.client.delete_registered_model_alias(self.name, CHALLENGER)
            del self._aliases[CHALLENGER]

    def _set(self, alias: str, version: str) -> bool:
        if self._aliases.get(alias) == version:
            return False
        self.client.set_registered_model_alias(self.name, alias, version)
        self._aliases[alias] = version
        return True


def _key(tags: Mapping[str, str]) -> Key:
    return tags.get(VERSION_TAG, ""), tags.get(DIGEST_TAG, "")


def _number(entry: ModelVersion) -> int:
    text = str(entry.tags[VERSION_TAG])
    return int(text) if text.isdigit() else 0
