"""Learning what arrives: each new domain of an inbox becomes a task on top of the champion, if the gate lets it pass.

For each complete entry, in order of arrival: validate, recognise by content, encode, learn, judge; then promote, which
is one conditional write of `model.json`, or refuse. Whatever is killed in between is gone on with, or made again to the
same result, by the next start; what came of an entry is kept by its fingerprint, so that no tick looks at it twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from lada_ray.candidate import Judged, candidate_file, judge_candidate, learn_candidate, tests_alone
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains.base import Domain
from lada_ray.domains.check import MAX_OVERLAP, load_domains
from lada_ray.errors import Conflict, InputError, LadaError, LeaseHeld, LostLease
from lada_ray.evaluate import TestSet
from lada_ray.features.fill import Images
from lada_ray.features.index import fill_index
from lada_ray.forget import finish_forgetting, is_forgetting
from lada_ray.gate import Limits, print_gate
from lada_ray.inbox import (
    ADVICE,
    Arrival,
    Entry,
    check_there,
    clear_rejection,
    images_by_class,
    recognise,
    reject,
    scan,
    validate,
)
from lada_ray.known import KnownDomain
from lada_ray.model import read_model_file
from lada_ray.prepare import Stream, choose, encode, pack_identities, plan_tests
from lada_ray.production import Production, Settings, identities_of, plan_again
from lada_ray.publish import accept, is_published, publish, refuse
from lada_ray.store import Store
from lada_ray.versions import Change, State, Version, history, read_production

Status = Literal["learnt", "refused", "rejected", "known", "failed"]
REFUSED = (
    "The gate refused what was learnt from this domain; the champion is as it was. If labels or images are wrong, "
    "correct them: the entry is tried again once a file in its folder changes, _READY too."
)


@dataclass(frozen=True)
class Ending:
    """What came of an entry of the inbox."""

    entry: str
    fingerprint: str
    domain: str
    status: Status
    """learnt: it is a new version; refused: by the gate; rejected: it cannot be used; known: nothing is new in it;
    failed: not its fault, the next start tries again."""
    said: tuple[str, ...]
    at: str
    version: int | None = None
    gate: dict[str, Any] | None = None
    told: bool = True
    """Whether it could be written beside the entry that it was rejected or refused."""


@dataclass
class Retrained:
    """What `retrain` returns."""

    endings: list[Ending] = field(default_factory=list)
    incomplete: tuple[str, ...] = ()
    """Names of entries without _READY."""
    waiting: tuple[str, ...] = ()
    """Names of entries that were rejected or refused before, and have not changed."""
    unreadable: tuple[str, ...] = ()
    """One line for each entry that cannot be listed."""
    version: int = 0
    """The champion's number."""
    published: bool = True
    """Whether MLflow's registry shows it."""

    @property
    def good(self) -> bool:
        """Whether no entry was refused or rejected, or failed, and all could be listed."""
        return not self.unreadable and all(ending.status in ("learnt", "known") for ending in self.endings)


def retrain(
    settings: Settings,
    inbox: str,
    limits: Limits,
    guards: str | None = None,
    outside: bool = False,
    console: Console | None = None,
) -> Retrained:
    """Learn every new domain of an inbox that the gate lets pass.

    Args:
        settings: which model, and how the job runs.
        inbox: local folder or object-store prefix.
        limits: of the gate.
        guards: YAML of a run, whose domains are not learnt: zero-shot ability is watched on them.
        outside: let entries name data outside their own folders.
        console: shows progress.

    Raises:
        InputError: there is no such inbox or model, or the guards cannot be used.
        LeaseHeld: another live process is changing the model.
        LostLease: another process has taken it over.
    """
    console = console or Console()
    found, file = scan(inbox), read_production(settings.store.child("model"))[0]
    done = Retrained([], found.incomplete, found.rejected, found.unreadable, len(file.history))
    for line in found.unreadable:
        console.warn(line)
    new = [entry for entry in found.entries if not _ended(settings.store, history(file), entry)]
    settled = file.history and not is_forgetting(settings.store, file)
    if not new and settled and is_published(settings.store, file, settings.config()):
        return done
    watched = load_guards(guards, settings.storage) if new and guards else ()
    if new and not guards:
        console.warn("no --guards: whether zero-shot ability on other domains is kept is not watched")
    with Production.open(settings, console) as production:
        finish_forgetting(production)
        done.published = publish(production)
        # Another start may have looked at some while this one waited for the lease.
        for entry in scan(inbox).entries:
            if _ended(production.store, production.versions, entry):
                continue
            done.endings.append(Learning(production, limits, watched, outside).take(entry))
            done.published = publish(production)
        done.version = production.champion.number
    return done


def _ended(store: Store, versions: Sequence[Version], entry: Entry) -> bool:
    """Whether an entry, which is not marked as rejected, was looked at as it is now.

    Whoever deletes `_REJECTED.json` asks for another look; where it could not be written, the ending stands for it.
    """
    found = store.read_version(_ending_key(entry))
    if _learnt_as(versions, entry) is not None:
        return found is not None and json.loads(found[0])["status"] in ("learnt", "known")
    ending = json.loads(found[0]) if found else {"status": "failed"}
    return ending["status"] in ("learnt", "known") or not ending.get("told", True)


def _learnt_as(versions: Sequence[Version], entry: Entry) -> Version | None:
    """The version with which an entry, as it is now, was learnt."""
    return next((one for one in versions if one.details.get("fingerprint") == entry.fingerprint), None)


def _ending_key(entry: Entry) -> str:
    return f"inbox/{entry.fingerprint}.json"


class Learning:
    """What is done with an entry.

    Args:
        production: the model.
        limits: of the gate.
        guards: domains on which zero-shot ability is watched.
        outside: let entries name data outside their own folders.
    """

    def __init__(
        self, production: Production, limits: Limits, guards: Sequence[Domain], outside: bool
    ) -> None:
        self.production, self.limits, self.outside = production, limits, outside
        self.guards = [tests_alone(guard) for guard in guards]
        self.known = production.known(production.champion.state)

    def take(self, entry: Entry) -> Ending:
        """Learn an entry, if it can be and may be; what came of it is kept, and told beside it if it is bad.

        What is not the entry's fault is said, and does not keep the others from being learnt.

        Raises:
            LostLease: another process has taken the model over.
        """
        console = self.production.console
        console.say(f"{entry.name} ({entry.uri})")
        try:
            # A kill after the promotion leaves what is told of it to the next start.
            ending = self._learnt_before(entry) or self._learn(entry)
        except _Rejected as error:
            ending = _ending(entry, entry.name, "rejected", error.problems)
        except (LostLease, LeaseHeld, Conflict):
            raise
        except LadaError as error:
            console.say(f"  failed: {error}")
            return _ending(entry, entry.name, "failed", [str(error), "the next start tries again"])
        return self._keep(entry, ending)

    def _learnt_before(self, entry: Entry) -> Ending | None:
        version = _learnt_as(self.production.versions, entry)
        if version is None:
            return None
        said = (f"version {version.number}",)
        return _ending(entry, version.subject, "learnt", said, version.number, version.details.get("gate"))

    def _keep(self, entry: Entry, ending: Ending) -> Ending:
        """Write an ending down, and beside the entry what its owner has to know."""
        production = self.production
        production.run.lease.check()
        if ending.status in ("rejected", "refused"):
            where = reject(entry, ending.said, advice=REFUSED if ending.status == "refused" else ADVICE)
            how = f"{where} says why" if where else "nothing can be written into its folder"
            production.console.say(f"  {ending.status}: {how}")
            ending = replace(ending, told=where is not None)
        else:
            clear_rejection(entry)
            accept(production.store, ending.domain)
        said = json.dumps(asdict(ending), indent=1, ensure_ascii=False)
        production.store.write(_ending_key(entry), said.encode())
        return ending

    def _learn(self, entry: Entry) -> Ending:
        production, console = self.production, self.production.console
        known = [one.known for one in self.known]
        with _as_rejection(entry):
            arrival = validate(entry, known, production.config.storage, self.outside)
            if arrival.card.extends and production.config.method.kind != "lada":
                kind = production.config.method.kind
                raise InputError([f"extends: a model of kind {kind} cannot learn more of a known class"])
        guards = self._guards(arrival)
        stream = production.stream([arrival.domain, *guards], arrival.card.shots)
        own, watched = replace(stream, domains=(arrival.domain,)), replace(stream, domains=tuple(guards))
        hashes = self._hash(stream, arrival)
        with _as_rejection(entry):
            recognition = recognise(arrival, images_by_class(arrival.domain, hashes), known)
        for note in (*arrival.notes, *recognition.notes):
            console.say(f"  {note}")
        if recognition.same is not None:
            return _ending(entry, arrival.domain.name, "known", recognition.notes)
        with _as_rejection(entry):
            self._refuse_known_tests(choose(own, production.run, console))
            (images,), _ = encode(own, [own.choice], production.run, console)
        tests = self._guard_tests(watched)
        return self._candidate(arrival, own, images, hashes, tests)

    def _guards(self, arrival: Arrival) -> list[Domain]:
        """The guards, without those that are learnt."""
        learnt = {one.name for one in self.known} | {arrival.domain.name}
        for guard in self.guards:
            if guard.name in learnt:
                self.production.console.say(f"  {guard.name} is learnt, and no guard any more")
        return [guard for guard in self.guards if guard.name not in learnt]

    def _guard_tests(self, watched: Stream) -> list[TestSet]:
        """Test images of the guards, encoded."""
        if not watched.domains:
            return []
        production = self.production
        (images,), _ = encode(watched, [watched.choice], production.run, production.console)
        return list(plan_tests(watched.config, images))

    def _refuse_known_tests(self, images: Images) -> None:
        """A model that is trained on the images that it is judged by would pass whatever it is.

        Raises:
            InputError: more than 1 % of a known domain's test images are to be trained on.
        """
        trained = set(images.shas(images.selections[0].train))
        problems = []
        for one in self.known:
            shared = sum(sha in trained for sha in one.tests.shas)
            if shared > MAX_OVERLAP * len(one.tests.shas):
                problems.append(
                    f"{shared} of the {len(one.tests.shas)} test images of the known domain {one.name} are among its "
                    "training images: leave them out, or keep them for testing"
                )
        if problems:
            raise InputError(problems)

    def _hash(self, stream: Stream, arrival: Arrival) -> dict[str, str]:
        """SHA-256 by URI of all images of a domain, chosen or not: it has to be recognised when it comes again."""
        samples = (*arrival.domain.train, *arrival.domain.test)
        console = self.production.console
        with console.stage("hash images"):
            hashes, _ = fill_index(
                stream.index, samples, self.production.run.id, lambda a, b: console.progress("hash", a, b)
            )
        return hashes

    def _candidate(
        self,
        arrival: Arrival,
        stream: Stream,
        images: Images,
        hashes: dict[str, str],
        guards: Sequence[TestSet],
    ) -> Ending:
        """Learn the domain on the champion's packs, and judge what comes of it."""
        production, champion = self.production, self.production.champion
        prompts = stream.prompts(arrival.domain)
        new = KnownDomain.of(arrival.domain, images.selections[0], prompts, hashes | images.hashes)
        (identity,) = pack_identities(stream, images)
        identities = [*identities_of(production.run.model_store, champion.state.packs), identity]
        tasks = plan_again([*self.known, new], identities)
        name = arrival.entry.fingerprint[:32]
        packs = learn_candidate(production, stream, name, champion.state.packs, tasks, identities)
        learnt = read_model_file(production.run.model_store, candidate_file(name))
        key = new.write(production.store)
        state = State(packs, learnt[0].prompts if learnt else {}, (*champion.state.domains, key))
        tests = [one.tests for one in (*self.known, new)]
        judged = judge_candidate(production, stream, packs, tests, guards, self.limits)
        print_gate(judged.gate, production.console.rich)
        return self._end(arrival, champion, state, judged)

    def _end(self, arrival: Arrival, champion: Version, state: State, judged: Judged) -> Ending:
        """Promote the candidate, or refuse it."""
        name, gate = arrival.domain.name, judged.gate.to_json()
        if not judged.gate.passed:
            self.production.run.lease.check()
            refuse(self.production.store, champion, name, state, judged.gate.said)
            said = tuple(check.said for check in judged.gate.blocked)
            return _ending(arrival.entry, name, "refused", said, gate=gate)
        details = {
            "entry": arrival.entry.name,
            "fingerprint": arrival.entry.fingerprint,
            "owner": arrival.card.owner,
            "spec": arrival.spec.model_dump(mode="json"),
            "shots": arrival.card.shots,
            "gate": gate,
        }
        change = Change("learn", name, state, judged.accuracy, details)
        version = self.production.promote(champion, change)
        said = (f"version {version.number}; {judged.gate.said}",)
        return _ending(arrival.entry, name, "learnt", said, version.number, gate)


class _Rejected(InputError):
    """What is wrong with an entry itself."""


@contextmanager
def _as_rejection(entry: Entry) -> Iterator[None]:
    """What is wrong with the input in this block is the entry's fault, unless its storage cannot be reached."""
    try:
        yield
    except InputError as error:
        check_there(entry)
        raise _Rejected(error.problems, error.heading) from error


def _ending(
    entry: Entry,
    domain: str,
    status: Status,
    said: Sequence[str],
    version: int | None = None,
    gate: dict[str, Any] | None = None,
) -> Ending:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Ending(entry.name, entry.fingerprint, domain, status, tuple(said), at, version, gate)


def load_guards(yaml: str, storage: str) -> tuple[Domain, ...]:
    """List the domains of a run's YAML, to be tested on alone.

    Raises:
        InputError: the YAML is no run's, or its domains cannot be used.
    """
    config = StreamConfig.from_yaml(yaml, {"storage": storage})
    return load_domains(config.domains, config.storage)


def show(done: Retrained, console: Console) -> None:
    """Print what came of every entry."""
    for ending in done.endings:
        console.say(f"{ending.status:9} {ending.entry}: {ending.domain}")
        for line in ending.said:
            console.say(f"          {line}")
    if done.incomplete:
        console.say(f"not complete yet (no _READY): {', '.join(done.incomplete)}")
    if done.waiting:
        console.say(f"rejected or refused before, and unchanged since: {', '.join(done.waiting)}")
    if not done.endings:
        console.say(f"nothing new; the champion is version {done.version}")
