"""A run's folder as it is: model.json, packs, configuration, and where its bank is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from lada_ray.config import StreamConfig, find_problems
from lada_ray.encoder import EncoderInfo
from lada_ray.errors import InputError, LadaError
from lada_ray.features.bank import FeatureBank
from lada_ray.model import MODEL, ModelFile, cached_pack, read_model_file
from lada_ray.pack import TaskPack
from lada_ray.store import Store, is_remote, join, open_store

CONFIG = "config.yaml"
# What reading damaged Parquet or JSON raises.
UNREADABLE = (LadaError, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class RunRecord:
    """A run's folder as it is."""

    store: Store
    model: ModelFile
    packs: tuple[TaskPack, ...]
    """Those that are whole."""
    config: StreamConfig | None
    """None where config.yaml cannot be used."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def model_store(self) -> Store:
        """The model's folder."""
        return self.store.child("model")

    @property
    def info(self) -> EncoderInfo:
        """What the model says of its encoder."""
        width = self.model.encoder["spec"]["architecture"]["embed_dim"]
        return EncoderInfo(self.model.encoder["fingerprint"], width, self.model.prediction.tau, 0)

    @cached_property
    def storage(self) -> str:
        """The storage that has the run's bank: where the folder is now, or where it was written."""
        here = self.store.uri.rpartition("/")[0]
        roots = [here] + ([self.config.storage] if self.config else [])
        key = f"features/{self.info.feature_key}/manifest.json"
        return next((root for root in roots if open_store(root).exists(key)), here)

    @property
    def features(self) -> Store:
        """The features folder of the storage."""
        return open_store(join(self.storage, "features"))

    @property
    def bank(self) -> FeatureBank:
        """The features that the packs were learnt and tested with."""
        return FeatureBank(self.features, self.info.feature_key, self.info.width)

    @property
    def again(self) -> str:
        """How the run is started again."""
        if is_remote(self.store.uri):
            return "start the run again with its configuration"
        return f"start the run again (python jobs/run_stream.py --config {join(self.store.uri, CONFIG)})"


def read_run(folder: str) -> RunRecord:
    """Read model.json, every pack, checked against its digest and its parent, and the configuration.

    Raises:
        InputError: it is no run's folder, or a production model's.
        IntegrityError: model.json is damaged.
    """
    store = open_store(folder)
    found = read_model_file(store.child("model"))
    if found is None:
        hint = "give the folder of one run, <storage>/<name>"
        raise InputError([f"{store.uri} has no model/{MODEL}: {hint}"], "Nothing to verify")
    if found[0].history:
        # Its packs and its tests are no longer those that the run's configuration and records tell.
        storage, _, name = store.uri.rpartition("/")
        hint = shlex.join(["python", "jobs/model.py", "verify", "--model", name, "--storage", storage])
        raise InputError([f"{store.uri} is a production model by now: {hint}"], "Not verified as a run")
    packs, problems = _read_packs(store.child("model"), found[0].packs)
    config, notes = _read_config(store)
    if config and not problems:
        learnt = {label.domain for pack in packs for label in pack.labels}
        lacking = [spec.name for spec in config.domains if spec.name not in learnt]
        problems += [f"not learnt yet: {few(lacking)}; the run's command goes on"] if lacking else []
    return RunRecord(store, found[0], tuple(packs), config, tuple(problems), tuple(notes))


def _read_packs(store: Store, digests: Sequence[str]) -> tuple[list[TaskPack], list[str]]:
    """The whole packs, and a line for each that is not."""
    # What the storage holds now counts, not what this process once read.
    cached_pack.cache_clear()
    packs, problems = [], [] if digests else ["nothing is learnt yet; the run's command goes on"]
    for digest, parent in zip(digests, [None, *digests], strict=False):
        try:
            packs.append(cached_pack(store.uri, digest))
        except LadaError as error:
            problems.append(str(error))
        else:
            if packs[-1].parent != parent:
                problems.append(f"{store.uri}: pack {digest[:12]} does not follow the pack before it")
    return packs, problems


def _read_config(store: Store) -> tuple[StreamConfig | None, list[str]]:
    found = store.read_version(CONFIG)
    if found is None:
        return None, [f"{CONFIG} is missing"]
    try:
        raw = yaml.safe_load(found[0])
    except yaml.YAMLError as error:
        return None, [f"{CONFIG} is no YAML: {error}"]
    problems = find_problems(raw) if isinstance(raw, dict) else ["must be keys with values"]
    return None if problems else StreamConfig(**raw), [f"{CONFIG}: {problem}" for problem in problems]


def few(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def domains_of(meta: Mapping[str, Any]) -> list[str]:
    """Names of the domains that a pack was learnt from, by its pack.json."""
    return list(dict.fromkeys(domain for domain, _ in meta["labels"]))
