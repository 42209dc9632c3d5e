"""The order of forgetting: first a version without it is promoted, with a tombstone; then what is left is deleted.

Until the promotion nothing has changed. After it the tombstone says what is to be deleted, and every start that takes
the model's lease goes on with that until it is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lada_ray.candidate import Judged, judge_candidate
from lada_ray.console import Console
from lada_ray.domains.base import Domain, did_you_mean
from lada_ray.errors import InputError
from lada_ray.features.bank import FeatureBank, banks
from lada_ray.forget.erase import erase
from lada_ray.forget.packs import Remains, learn_again, remains_of, take_out
from lada_ray.forget.subject import Subject, images_of, packs_of, read_records, records_of, versions_of
from lada_ray.gate import Gate, Limits, print_gate
from lada_ray.known import KnownDomain
from lada_ray.model import ModelFile
from lada_ray.prepare import Stream
from lada_ray.production import Production, Settings
from lada_ray.publish import check_registry, publish, registered_name
from lada_ray.store import Store, join, open_store
from lada_ray.tracking import withdraw
from lada_ray.versions import TOMBSTONE, Change, State, Version, history, restorable

Json = dict[str, Any]


@dataclass(frozen=True)
class Forgotten:
    """What `forget` returns.

    Attributes:
        version: the champion's number now.
        gate: what the gate said; None: nothing had to be judged.
        refused: whether the gate refused it, and nothing was forgotten.
        finished: whether everything is deleted; else the next start goes on.
    """

    version: int
    gate: Gate | None
    refused: bool
    finished: bool


def forget(
    settings: Settings,
    subject: Subject,
    relearn: bool = False,
    force: bool = False,
    reason: str | None = None,
    limits: Limits | None = None,
    console: Console | None = None,
) -> Forgotten:
    """Make a model forget a domain or a class of it; the same call again goes on with what a kill interrupted.

    Args:
        settings: which model.
        subject: the domain or class.
        relearn: learn the later tasks again without it, from the bank. Else they keep their numbers, which were
            learnt beside it.
        force: promote what the gate would refuse.
        reason: kept in the history.
        limits: of the gate: what the other domains may lose.
        console: shows progress.

    Raises:
        InputError: the model knows no such domain or class, or would know nothing without it; or MLflow is another
            one than the model's history is shown in.
        LeaseHeld: another live process is changing the model.
        LostLease: another process has taken it over.
    """
    console = console or Console()
    with Production.open(settings, console) as production:
        # Where MLflow is unknown, or another one, that is told before anything changes.
        check_registry(production)
        finish_forgetting(production)
        records = read_records(production.store)
        if not records_of(subject, records):
            version = _forgotten_before(subject, production, records)
            return Forgotten(version, None, False, not is_forgetting(production.store, production.file))
        gate = _Forgetting(production, subject, records, relearn, force, reason).promote(limits or Limits())
        refused = gate is not None and not gate.passed and not force
        finished = not refused and finish_forgetting(production)
        return Forgotten(production.champion.number, gate, refused, finished)


def _forgotten_before(subject: Subject, production: Production, records: Mapping[str, KnownDomain]) -> int:
    """Number of the version with which it was forgotten.

    Raises:
        InputError: it never was, and it is not known.
    """
    for version in reversed(production.versions):
        if _subject_of(version) == subject:
            production.console.say(f"{subject.said} was forgotten with version {version.number}")
            return version.number
    names = sorted({one.name for one in records.values()})
    classes = sorted({c for one in records.values() if one.name == subject.domain for c in one.class_names})
    if not classes:
        near = did_you_mean(subject.domain, names)
        raise InputError(
            [f"the model knows no domain {subject.domain!r}{near} (it knows {', '.join(names)})"]
        )
    near = did_you_mean(str(subject.class_name), classes)
    raise InputError([f"{subject.domain} has no class {subject.class_name!r}{near}"])


def _subject_of(version: Version) -> Subject | None:
    said = version.details.get(TOMBSTONE)
    return Subject(said["domain"], said["class_name"]) if said else None


class _Forgetting:
    """A subject that is about to be forgotten."""

    def __init__(
        self,
        production: Production,
        subject: Subject,
        records: Mapping[str, KnownDomain],
        relearn: bool,
        force: bool,
        reason: str | None,
    ) -> None:
        self.production, self.subject, self.records = production, subject, records
        self.relearn, self.force, self.reason = relearn, force, reason
        self.champion = production.champion

    def promote(self, limits: Limits) -> Gate | None:
        """Promote a version without it, unless the gate refuses; returns what it said, None if it was not asked."""
        known = self.production.known(self.champion.state)
        if not any(self.subject.in_record(one) for one in known):
            # Another version knows it, or a candidate that was refused; the champion stays what it is.
            self._promote(self.champion.state, self.champion.accuracy, known, (), None)
            return None
        remains = remains_of(self.subject, self.champion.state.packs, known, self.production)
        if not remains.packs:
            what = f"without {self.subject.said} the model would know nothing"
            raise InputError([f"{what}: remove its folder {self.production.store.uri} instead"])
        stream = self.production.stream(self._domains(remains))
        packs = self._packs(stream, remains)
        judged = self._judge(stream, packs, remains, limits)
        if judged.gate.passed or self.force:
            prompts = {one.name: self.champion.state.prompts[one.name] for one in remains.known}
            state = State(packs, prompts, tuple(one.write(self.production.store) for one in remains.known))
            beside = () if self.relearn else remains.beside
            self._promote(state, judged.accuracy, remains.known, beside, judged.gate)
        return judged.gate

    def _domains(self, remains: Remains) -> list[Domain]:
        """As far as their text features are concerned: a class less makes another list of prompts."""
        prompts = self.champion.state.prompts
        return [Domain(one.name, one.class_names, (), (), prompts[one.name]) for one in remains.known]

    def _packs(self, stream: Stream, remains: Remains) -> tuple[str, ...]:
        if self.relearn:
            return learn_again(self.production, stream, self.subject, remains)
        return take_out(self.production, stream, self.subject, remains)

    def _judge(self, stream: Stream, packs: tuple[str, ...], remains: Remains, limits: Limits) -> Judged:
        tests = [one.tests for one in remains.known]
        judged = judge_candidate(self.production, stream, packs, tests, [], limits)
        print_gate(judged.gate, self.production.console.rich)
        return judged

    def _promote(
        self,
        state: State,
        accuracy: Mapping[str, float],
        left: list[KnownDomain] | tuple[KnownDomain, ...],
        beside: tuple[str, ...],
        gate: Gate | None,
    ) -> None:
        tombstone = self._tombstone(state, left, beside)
        details: Json = {TOMBSTONE: tombstone, **({"gate": gate.to_json()} if gate else {})}
        if gate and not gate.passed:
            details["forced"] = True
        self.production.promote(self.champion, Change("forget", self.subject.said, state, accuracy, details))

    def _tombstone(
        self, state: State, left: list[KnownDomain] | tuple[KnownDomain, ...], beside: tuple[str, ...]
    ) -> Json:
        """What the history says of it: who and when stand in the version itself."""
        versions = restorable(self.production.versions)
        gone = versions_of(self.subject, self.records, versions)
        kept = [v.state for v in versions if v.number not in gone]
        keys = {key for one in kept for key in one.domains}
        others = [*left, *(known for key, known in self.records.items() if key in keys)]
        shas = images_of(self.subject, self.records.values(), others)
        packs = {*state.packs, *(digest for one in kept for digest in one.packs)}
        dead = packs_of(self.subject, self.production.run.model_store, packs)
        return {
            "domain": self.subject.domain,
            "class_name": self.subject.class_name,
            "reason": self.reason,
            "relearnt": self.relearn,
            "trained_beside": list(beside),
            "images": len(shas),
            "views": _views(self.production, shas),
            "packs": sorted(dead),
            "versions": gone,
        }


def _views(production: Production, shas: frozenset[str]) -> int:
    """Features of these images in all banks of the storage."""
    features = open_store(join(production.config.storage, "features"))
    tables = [FeatureBank.open(features, key).table for key, _ in list(banks(features))]
    rows = (rows for table in tables for _, rows in table.scan(["sha256"]))
    return sum(sha in shas for some in rows for sha in some["sha256"].to_pylist())


# ---------------------------------------------------------------- after the promotion


def _mark(version: Version) -> str:
    return f"forgotten/{version.number}.json"


def _marks(store: Store, version: Version) -> Json:
    found = store.read_version(_mark(version))
    return json.loads(found[0]) if found else {}


def _pending(store: Store, versions: list[Version]) -> list[Version]:
    tombs = [version for version in versions if TOMBSTONE in version.details]
    return [version for version in tombs if not {"storage", "mlflow"} <= _marks(store, version).keys()]


def is_forgetting(store: Store, file: ModelFile) -> bool:
    """Whether something that was forgotten is not deleted everywhere yet.

    Args:
        store: the run folder.
        file: its model.json.
    """
    return bool(_pending(store, history(file)))


def finish_forgetting(production: Production) -> bool:
    """Delete what is left of all that was forgotten; to be called by every job that has taken the model's lease.

    Returns:
        whether nothing is left. What MLflow does not do now, the next start asks for again.
    """
    store, console = production.store, production.console
    for version in _pending(store, production.versions):
        subject = _subject_of(version)
        if subject is None:
            continue
        if "storage" not in _marks(store, version):
            with console.stage("delete"):
                views = erase(production, subject)
            console.say(f"  {subject.said}: {views} image views deleted")
            _note(production, version, "storage")
        if publish(production) and _withdraw(production, version):
            _note(production, version, "mlflow")
    return not _pending(store, production.versions)


def _note(production: Production, version: Version, what: str) -> None:
    """Note that a part of the deletion is done."""
    production.run.lease.check()
    said = _marks(production.store, version) | {what: datetime.now(UTC).isoformat(timespec="seconds")}
    production.store.write(_mark(version), json.dumps(said, indent=1).encode())


def _withdraw(production: Production, version: Version) -> bool:
    """Delete from MLflow the versions that are gone, and what the stream's runs hold."""
    kept = {(str(one.number), one.digest) for one in restorable(production.versions)}
    tracking = production.config.tracking
    name = registered_name(production.config)
    dead = version.details[TOMBSTONE]["packs"]
    with production.console.stage("registry"):
        return withdraw(
            *(production.mlflow, tracking.experiment, name, production.run.id, kept, dead),
            production.console.warn,
        )
