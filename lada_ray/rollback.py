"""Going back to an earlier version: a new version of the same packs, behind the gate like every other one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lada_ray.candidate import judge_candidate
from lada_ray.console import Console
from lada_ray.domains.base import Domain
from lada_ray.forget import finish_forgetting
from lada_ray.gate import Gate, Limits, print_gate
from lada_ray.known import KnownDomain
from lada_ray.model import cached_pack
from lada_ray.production import Production, Settings
from lada_ray.publish import publish
from lada_ray.versions import Change, Version, find_restorable


@dataclass(frozen=True)
class RolledBack:
    """What `rollback` returns.

    Attributes:
        version: the champion's number now.
        gate: what the gate said; None: the champion consists of these packs already.
        refused: whether the gate refused it, and nothing changed.
    """

    version: int
    gate: Gate | None
    refused: bool


def rollback(
    settings: Settings,
    number: int,
    force: bool = False,
    reason: str | None = None,
    limits: Limits | None = None,
    console: Console | None = None,
) -> RolledBack:
    """Make the packs of an earlier version the champion again, as a new version.

    Args:
        settings: which model.
        number: of the version.
        force: promote what the gate would refuse.
        reason: kept in the history.
        limits: of the gate: the champion's domains may not lose more.
        console: shows progress.

    Raises:
        InputError: there is no such version, or it was forgotten.
        IntegrityError: a pack of it is missing or damaged.
        LeaseHeld: another live process is changing the model.
    """
    console = console or Console()
    with Production.open(settings, console) as production:
        finish_forgetting(production)
        target = find_restorable(production.file, number)
        champion = production.champion
        if champion.state == target.state:
            console.say(f"the champion, version {champion.number}, is what version {number} is")
            publish(production)
            return RolledBack(champion.number, None, False)
        gate = _judge(production, target, limits or Limits())
        if not gate.passed and not force:
            return RolledBack(champion.number, gate, True)
        details: dict[str, Any] = {"reason": reason, "gate": gate.to_json()}
        if not gate.passed:
            details["forced"] = True
        # The same packs on the same images: what was measured of them holds.
        change = Change("rollback", str(number), target.state, target.accuracy, details)
        version = production.promote(champion, change)
        publish(production)
        return RolledBack(version.number, gate, False)


def _judge(production: Production, target: Version, limits: Limits) -> Gate:
    """Hold it against the champion, on the images of all domains that either knows."""
    for digest in target.state.packs:
        cached_pack(production.run.model_store.uri, digest)
    states = {**_records(production, production.champion), **_records(production, target)}
    prompts = {**target.state.prompts, **production.champion.state.prompts}
    domains = [Domain(one.name, one.class_names, (), (), prompts[one.name]) for one in states.values()]
    stream = production.stream(domains)
    tests = [one.tests for one in states.values()]
    judged = judge_candidate(production, stream, target.state.packs, tests, [], limits)
    print_gate(judged.gate, production.console.rich)
    return judged.gate


def _records(production: Production, version: Version) -> dict[str, KnownDomain]:
    return dict(zip(version.state.domains, production.known(version.state), strict=True))
