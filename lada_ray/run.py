"""A run's folder: who owns it, what identifies it, and how learnt tasks are committed to it."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lada_ray.config import LATER, StreamConfig
from lada_ray.domains.base import Domain
from lada_ray.encoder import EncoderInfo, EncoderSpec
from lada_ray.errors import Conflict, InputError
from lada_ray.fit.plan import Fitted, TaskPlan
from lada_ray.head import Prediction
from lada_ray.lease import Lease
from lada_ray.model import MODEL, ModelFile, cached_pack, check_epoch, commit, read_model_file
from lada_ray.pack import TaskPack
from lada_ray.store import Store, join, open_store

Json = dict[str, Any]
CHECKPOINT = "checkpoint/latest.pt"
# What a learner in closed form needs to go on: one file, named by the pack it was kept after.
SOLVER = "solver"
# The run's epoch and id: there from the first start on, long before a model.json; starting over keeps the epoch.
START = "start.json"
# What starting over leaves: who owns the run, which start it is, and what runs of it MLflow may still show as running.
KEPT = ("lease.json", START, "tracking.json")
FENCE_TRIES = 50
PRODUCTION = (
    "it is a production model by now, with a history: jobs/retrain.py learns more on top, jobs/model.py tells and "
    "changes it; to learn all of it with other settings or another encoder, write what it knows to a YAML "
    "(python jobs/model.py show --model NAME --yaml FILE) and give that another --name"
)


class Run:
    """The run's folder, owned by this process as long as its lease holds.

    Args:
        store: `<storage>/<name>/`.
        lease: held on it.
        fresh: forget everything learnt under this name, when it `begin`s: a start that is refused before that costs
            nothing.
    """

    def __init__(self, store: Store, lease: Lease, fresh: bool = False) -> None:
        self.store, self.lease = store, lease
        self.model_store = store.child("model")
        self.fresh = fresh
        self.id, self.epoch = self._fence(fresh)

    @classmethod
    def acquire(cls, config: StreamConfig, fresh: bool, say: Callable[[str], None]) -> Run:
        """Take the run's lease, waiting for a dead owner's to expire.

        Args:
            config: gives storage and name.
            fresh: forget everything learnt under this name.
            say: told who holds the lease, while waiting.

        Raises:
            LeaseHeld: a live process is writing this run.
        """
        store = open_store(join(config.storage, config.name))
        lease = Lease.acquire(store, say)
        try:
            return cls(store, lease, fresh)
        except BaseException:
            lease.release()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.lease.release()

    def _fence(self, fresh: bool) -> tuple[str, int]:
        """Raise the epoch, so that nobody who owned the run before can commit any more; returns id and epoch."""
        for _ in range(FENCE_TRIES):
            try:
                return self._try_fence(fresh)
            except Conflict:
                # A worker of the owner before, not dead yet, has just committed.
                time.sleep(0.1)
        raise Conflict(
            f"{self.store.uri} is being written by somebody who does not hold its lease; stop that first"
        )

    def _try_fence(self, fresh: bool) -> tuple[str, int]:
        model = None if fresh else read_model_file(self.model_store)
        start = self.store.read_version(START)
        old: Json = json.loads(start[0]) if start else {"run": "", "epoch": 0}
        known = "" if fresh else (model[0].run if model else "") or old["run"]
        run, epoch = known or uuid.uuid4().hex, max(old["epoch"], model[0].epoch if model else 0) + 1
        self.store.replace(START, _json({"run": run, "epoch": epoch}), start[1] if start else None)
        if model:
            self.model_store.replace(MODEL, replace(model[0], epoch=epoch).to_bytes(), model[1])
        return run, epoch

    def forget(self) -> None:
        """Remove everything learnt under this name, if that was asked for and not done yet."""
        if self.fresh:
            self._start_over()
            self.fresh = False

    def _start_over(self) -> None:
        # model.json first: without it the rest is rubble that no reader takes for a model.
        keys = [entry.key for entry in self.store.list() if entry.key not in KEPT]
        for key in sorted(keys, key=lambda key: key != f"model/{MODEL}"):
            self.store.delete(key)

    def record(self, digest: str) -> Json:
        """The side file of a task: timings, losses, counts."""
        return json.loads(self.store.read(f"tasks/{digest}.json"))

    def tidy(self) -> None:
        """Remove what only serves going on after a kill: training state, and Ray Train's own notes."""
        for folder in ("checkpoint", "train"):
            for entry in list(self.store.list(folder)):
                self.store.delete(entry.key)

    @property
    def packs(self) -> tuple[str, ...]:
        """Digests of the committed packs, in order."""
        found = read_model_file(self.model_store)
        return found[0].packs if found else ()

    def check(
        self,
        config: StreamConfig,
        spec: EncoderSpec | None = None,
        info: EncoderInfo | None = None,
        expected: Sequence[Json] = (),
    ) -> None:
        """Make sure that what was learnt under this name was started like this, unless it is to be forgotten.

        Arguments as of `started_differently`.

        Raises:
            InputError: naming everything that differs.
        """
        problems = [] if self.fresh else started_differently(self.model_store, config, spec, info, expected)
        found = None if self.fresh else read_model_file(self.model_store)
        if found and found[0].history:
            # Whatever is committed past the history would be a champion that no gate has seen.
            problems = [*problems, PRODUCTION]
        if problems:
            where = self.store.uri
            raise InputError(
                problems, f"{where} was started differently (use another --name, or --fresh to start over)"
            )

    def begin(
        self, config: StreamConfig, spec: EncoderSpec, info: EncoderInfo, expected: Sequence[Json]
    ) -> None:
        """Write model.json at the first start, or after forgetting; else make sure that the run is the same.

        Raises:
            InputError: naming everything that differs from what the run was started with.
            LostLease: another process has taken the run over.
        """
        self.check(config, spec, info, expected)
        self.forget()
        found = read_model_file(self.model_store)
        encoder = {"spec": spec.to_json(), "fingerprint": info.fingerprint, "prompt": config.encoder.prompt}
        if found is None:
            identity = {**config_identity(config), "encoder": info.feature_key}
            prediction = prediction_of(config, info)
            file = ModelFile(encoder, prediction, identity=identity, run=self.id, epoch=self.epoch)
            self.model_store.replace(MODEL, file.to_bytes(), None)
        else:
            check_epoch(found[0], self.epoch, self.model_store)
            # The same weights may lie elsewhere now.
            self.model_store.replace(MODEL, replace(found[0], encoder=encoder).to_bytes(), found[1])
        self.store.write("config.yaml", config.without_password().to_yaml().encode())


def started_differently(
    model_store: Store,
    config: StreamConfig,
    spec: EncoderSpec | None = None,
    info: EncoderInfo | None = None,
    expected: Sequence[Json] = (),
) -> list[str]:
    """One line for each thing in which a run's model differs from this configuration.

    Args:
        model_store: the model's folder.
        config: resolved configuration.
        spec: the encoder; None as long as it is not known.
        info: its fingerprint; likewise.
        expected: identity of every task's pack, in order (`pack_identity`); compared when the encoder is known.
            Where `samples` is missing, they are not compared.
    """
    found = read_model_file(model_store)
    if found is None:
        return []
    model, now = found[0], config_identity(config)
    lines = differences({key: model.identity.get(key) for key in now}, now)
    if spec is None or info is None:
        return lines
    if model.identity["encoder"] != info.feature_key:
        lines += _other_encoder(model.encoder["spec"], spec)
    return lines or _other_packs(model_store, model.packs, expected)


def _other_encoder(then: Mapping[str, Any], now: EncoderSpec) -> list[str]:
    said = json.loads(json.dumps(now.to_json()))
    lines = differences({**then, "pretrained": ""}, {**said, "pretrained": ""}, "encoder.")
    return lines or [f"encoder: other weights ({then['pretrained']} in the run, {now.pretrained} now)"]


def _other_packs(model_store: Store, packs: Sequence[str], expected: Sequence[Json]) -> list[str]:
    problems = []
    for i, digest in enumerate(packs):
        meta = TaskPack.read_meta(model_store, digest)
        domain = meta["labels"][0][0]
        now = expected[i]["labels"][0][0] if i < len(expected) else "no domain"
        if domain != now:
            problems.append(
                f"domains: task {i + 1} learnt {domain}, now it is {now}; new domains go to the end"
            )
        else:
            problems += [f"domain {domain}: {line}" for line in _changed(meta, expected[i])]
    return problems


def prediction_of(config: StreamConfig, info: EncoderInfo) -> Prediction:
    """The parameters that act when predicting."""
    m = config.method
    return Prediction(info.tau, m.alpha, m.beta, m.fusion, m.kind)


def config_identity(config: StreamConfig) -> Json:
    """What may not change under one run name, besides the encoder and the domains already learnt."""
    return {
        "method": config.method.identity,
        "seed": config.seed,
        "shots": config.shots,
        "views": config.training_views,
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each value that differs between two nested mappings; of another kind's values for the kind alone."""
    if "kind" in old and "kind" in new and old["kind"] != new["kind"]:
        return [f"{prefix}kind: {old['kind']} in the run, {new['kind']} now"]
    lines = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key, LATER.get(key)), new.get(key, LATER.get(key))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} in the run, {b} now")
    return lines


def pack_identity(
    config: StreamConfig,
    info: EncoderInfo,
    domains: Sequence[Domain],
    samples: Sequence[Sequence[tuple[str, str]]] | None = None,
) -> Json:
    """What decides the tensors of a task's pack, besides its parent and the code's versions.

    Args:
        config: resolved configuration.
        info: the encoder.
        domains: the listed domains of the task: one, but for joint training.
        samples: (path, SHA-256) of each domain's training images, in order; None before they are chosen.
    """
    identity: Json = {
        "labels": [[domain.name, name] for domain in domains for name in domain.class_names],
        "config": {"encoder": info.feature_key, **config_identity(config), **_learnt_as(config, domains)},
    }
    if samples is None:
        return identity
    return {**identity, "samples": [list(sample) for some in samples for sample in some]}


def _learnt_as(config: StreamConfig, domains: Sequence[Domain]) -> Json:
    """What of a domain's own settings decides the tensors; by domain where there are several."""
    if len(domains) > 1:
        return {"domains": {domain.name: _learnt_as(config, [domain]) for domain in domains}}
    (domain,) = domains
    prompt = {"prompt": domain.prompt or config.encoder.prompt}
    if not config.method.trains:
        return prompt
    return {**prompt, "augment": domain.augment, "epochs": domain.epochs or config.method.epochs}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = differences(old["config"], new["config"])
    if old["labels"] != new["labels"]:
        lines.append(f"classes: {_listed(old['labels'], new['labels'], 1)}")
    if "samples" in new and old["samples"] != new["samples"]:
        lines.append(f"training images: {_listed(old['samples'], new['samples'], 0)}")
    return lines


def _listed(old: list[list[str]], new: list[list[str]], column: int) -> str:
    before, now = set(map(tuple, old)), set(map(tuple, new))
    gone = [row[column] for row in old if tuple(row) not in now]
    came = [row[column] for row in new if tuple(row) not in before]
    if not gone and not came:
        return "their order changed"
    return f"{len(gone)} are gone ({_few(gone)}), {len(came)} are new ({_few(came)})"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) or "none"


@dataclass(frozen=True)
class RunLedger:
    """The `fit.task.Ledger` of a run: packs in its model folder, one training state beside it."""

    uri: str
    """Of the run's folder."""
    epoch: int
    identities: tuple[Json, ...]
    """Of every task's pack, in order."""
    watch: Callable[[str, int, int], None] | None = None
    """Told (domain, step, steps) while a task is learnt."""
    file: str = MODEL
    """Of the model; a candidate for promotion has one of its own."""

    @property
    def _run(self) -> Store:
        return open_store(self.uri)

    @property
    def _model(self) -> Store:
        return self._run.child("model")

    def packs(self) -> tuple[str, ...]:
        """See Ledger."""
        found = read_model_file(self._model, self.file)
        if found is None:
            raise Conflict(f"{self.uri}/model/{self.file} is gone: somebody removed or moved the run")
        return found[0].packs

    def tensors(self, digest: str) -> Mapping[str, Any]:
        """See Ledger."""
        return cached_pack(self._model.uri, digest).tensors

    def commit(self, task: TaskPlan, fitted: Fitted, parent: str | None) -> str:
        """See Ledger. The task's side file is written first: whoever sees the pack finds it."""
        identity = self.identities[task.position]
        # After the pack it was learnt on: if a worker thought dead has committed this very task, that shows here.
        pack = TaskPack.build(identity, parent, fitted.tensors)
        self._run.write(f"tasks/{pack.digest}.json", _json(_record(task, fitted, pack)))
        commit(self._model, pack, prompts_of(identity), self.epoch, self.file)
        return pack.digest

    def save_checkpoint(self, data: bytes) -> None:
        """See Ledger."""
        self._run.write(CHECKPOINT, data)

    def load_checkpoint(self) -> bytes | None:
        """See Ledger."""
        found = self._run.read_version(CHECKPOINT)
        return found[0] if found else None

    def save_state(self, pack: str, state: Mapping[str, Any]) -> None:
        """See Ledger."""
        from safetensors.numpy import save

        older = [entry.key for entry in self._run.list(SOLVER)]
        self._run.write(f"{SOLVER}/{pack}.safetensors", save(dict(state)))
        for key in older:
            self._run.delete(key)

    def load_state(self, pack: str) -> Mapping[str, Any] | None:
        """See Ledger."""
        from safetensors.numpy import load

        found = self._run.read_version(f"{SOLVER}/{pack}.safetensors")
        return load(found[0]) if found else None

    def progress(self, task: TaskPlan, step: int, steps: int) -> None:
        """See Ledger."""
        if self.watch is not None:
            self.watch(task.name, step, steps)


def prompts_of(identity: Mapping[str, Any]) -> dict[str, str]:
    """The prompt template of each domain of a pack."""
    config = identity["config"]
    if "domains" in config:
        return {name: domain["prompt"] for name, domain in config["domains"].items()}
    return {identity["labels"][0][0]: config["prompt"]}


def _record(task: TaskPlan, fitted: Fitted, pack: TaskPack) -> Json:
    def iso(t: float) -> str:
        return datetime.fromtimestamp(t, UTC).isoformat(timespec="seconds")

    config = pack.meta["config"]
    return {
        "digest": pack.digest,
        "parent": pack.parent,
        "domain": task.name,
        "position": task.position,
        "host": socket.gethostname(),
        "started": iso(fitted.started),
        "finished": iso(fitted.started + fitted.seconds),
        "timings": {"fit": fitted.seconds},
        "loss": list(fitted.losses),
        "counts": {
            "classes": len(pack.labels),
            "train_images": len(task.shas),
            "pack_bytes": pack.bytes,
            **fitted.counts,
        },
        "params": _flat(config),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Json:
    flat: Json = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False).encode()
