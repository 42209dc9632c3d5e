"""Whether a production model is whole: packs, history, records of images, and the accuracies that it records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lada_ray.console import Console
from lada_ray.errors import IntegrityError
from lada_ray.evaluate import Evaluation, accuracies, load_tests
from lada_ray.forget import is_forgetting
from lada_ray.forget.subject import Subject, packs_of
from lada_ray.known import KnownDomain, read_known
from lada_ray.model import cached_pack
from lada_ray.production import Settings
from lada_ray.verify.record import UNREADABLE, RunRecord
from lada_ray.versions import TOMBSTONE, Version, history, read_production, restorable

TOLERANCE = 1e-6
"""In points: a count divided in another order."""


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        numbers: accuracies that were computed again.
        differences: a line for each that is not the recorded one, or thing that contradicts another.
        problems: why something could not be verified.
        notes: what is to be known besides.
    """

    numbers: int
    differences: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def audit(settings: Settings, console: Console | None = None) -> Audit:
    """Verify a model and all versions that can be gone back to; changes nothing, and needs no cluster.

    Args:
        settings: which model.
        console: shows progress.

    Raises:
        InputError: there is no such model.
        IntegrityError: model.json is damaged.
    """
    console = console or Console()
    file = read_production(settings.store.child("model"))[0]
    record = RunRecord(settings.store, file, (), settings.config(), (), ())
    # What the storage holds now counts, not what this process once read.
    cached_pack.cache_clear()
    auditor = _Auditor(record, history(file))
    with console.stage("read packs"):
        auditor.look()
    for version in restorable(auditor.versions):
        with console.stage("recompute the accuracies"):
            auditor.recompute(version)
    return Audit(
        auditor.numbers,
        tuple(auditor.differences),
        tuple(dict.fromkeys(auditor.problems)),
        tuple(auditor.notes),
    )


class _Auditor:
    """Collects what is found."""

    def __init__(self, record: RunRecord, versions: Sequence[Version]) -> None:
        self.record, self.versions = record, list(versions)
        self.numbers = 0
        self.differences: list[str] = []
        self.problems: list[str] = []
        self.notes: list[str] = []

    def look(self) -> None:
        """History against model.json, and what should be gone."""
        self.differences += _history_lines(self.record, self.versions)
        if is_forgetting(self.record.store, self.record.model):
            self.notes.append(
                "what was forgotten is not deleted everywhere yet; the next job on this model goes on"
            )
            return
        kept = {digest for v in restorable(self.versions) for digest in v.state.packs}
        for version in self.versions:
            said = version.details.get(TOMBSTONE)
            if said is None or _known_again(said, self.versions[version.number :]):
                continue
            left = packs_of(Subject(said["domain"], said["class_name"]), self.record.model_store, kept)
            self.differences += [
                f"pack {digest[:12]} was made with {version.subject}, which was forgotten"
                for digest in sorted(left)
            ]

    def recompute(self, version: Version) -> None:
        """Packs and records of a version, and its accuracies."""
        try:
            known = [self._record(key) for key in version.state.domains]
            self.differences += [
                f"version {version.number}: {line}" for line in self._pack_lines(version, known)
            ]
            found = self._accuracy(version, known)
        except UNREADABLE as error:
            self.problems.append(f"version {version.number}: {error}")
            return
        if not version.accuracy:
            self.notes.append(f"version {version.number} records no accuracies")
        self.numbers += len(version.accuracy)
        for name, value in version.accuracy.items():
            now = found.get(name, float("nan"))
            if not abs(now - value) < TOLERANCE:
                self.differences.append(
                    f"version {version.number}: {name}: {value:.4f} % is recorded, {now:.4f} % is recomputed"
                )

    def _record(self, key: str) -> KnownDomain:
        known = read_known(self.record.store, key)
        if known.key != key:
            raise IntegrityError(
                f"{self.record.store.uri}/{key} was changed: restore it from a copy of the model"
            )
        return known

    def _pack_lines(self, version: Version, known: Sequence[KnownDomain]) -> Iterator[str]:
        """Where packs contradict each other or the records; a damaged pack raises."""
        parent = None
        for digest, one in zip(version.state.packs, known, strict=True):
            pack = cached_pack(self.record.model_store.uri, digest)
            if pack.parent != parent:
                yield f"pack {digest[:12]} does not follow the pack before it"
            if pack.labels != one.tests.all_labels():
                yield f"pack {digest[:12]} has other classes than the record of {one.name}"
            if [sha for _, sha in pack.meta["samples"]] != list(one.trained[0]):
                yield f"pack {digest[:12]} was learnt from other images than the record of {one.name} says"
            parent = digest

    def _accuracy(self, version: Version, known: Sequence[KnownDomain]) -> dict[str, float]:
        """In %, by domain; one that got more images later has several test sets."""
        run = self.record
        tests = tuple(one.tests for one in known)
        evaluation = Evaluation(tests, run.bank, run.model_store.uri, run.model.prediction)
        return accuracies(evaluation, version.state.packs, load_tests(evaluation))


def _known_again(tombstone: dict[str, object], later: Sequence[Version]) -> bool:
    """Whether what was forgotten was learnt anew, so that packs of it are as they should be."""
    return any(version.action == "learn" and version.subject == tombstone["domain"] for version in later)


def _history_lines(record: RunRecord, versions: Sequence[Version]) -> Iterator[str]:
    """Where the history contradicts itself or model.json."""
    if not versions:
        yield "there is no history yet: jobs/retrain.py starts one"
        return
    if [version.number for version in versions] != list(range(1, len(versions) + 1)):
        yield "the versions are not numbered 1, 2, ...: model.json was edited"
    champion = versions[-1].state
    if (record.model.packs, dict(record.model.prompts)) != (champion.packs, dict(champion.prompts)):
        yield "the packs of model.json are not those of its newest version: something wrote it without the history"


def show(found: Audit, where: str, console: Console) -> None:
    """Print what an audit found; the last line is the verdict."""
    for note in found.notes:
        console.warn(note)
    for line in (*found.differences, *found.problems):
        console.say(f"  - {line}")
    if found.problems:
        console.say(f"{where} cannot be verified as a whole")
    elif found.differences:
        console.say(f"{where} is not what it records")
    else:
        console.say(f"{where} is whole; all {found.numbers} accuracies are the recorded ones")
