"""A model's packs without a domain or a class: as they are with its rows taken out, or learnt again without it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lada_ray.calibrate import calibrate
from lada_ray.candidate import learn_candidate
from lada_ray.errors import InputError, LadaError
from lada_ray.fit.plan import Tensors
from lada_ray.forget.subject import Subject
from lada_ray.known import KnownDomain
from lada_ray.model import cached_pack
from lada_ray.pack import TaskPack
from lada_ray.prepare import Stream, plan_fit
from lada_ray.production import Production, identities_of, plan_again
from lada_ray.run import Json

PER_CLASS = frozenset({"text", "memory", "mask", "prototypes"})
PER_COMPONENT = frozenset({"means", "variances", "weights"})
COMPONENT_CLASS = "labels"
SUPERSEDING = ("rail_primal", "rail_dual")
"""Learners whose newest pack holds one solution for all classes together."""


@dataclass(frozen=True)
class Remains:
    """What of a model's tasks is left without a subject.

    Attributes:
        untouched: number of first tasks that stay as they are.
        packs: digests of the packs that are left, of the model as it is.
        known: their records, without the subject.
        identities: what identifies these packs, without the subject.
        beside: names of the domains that were learnt after it.
    """

    untouched: int
    packs: tuple[str, ...]
    known: tuple[KnownDomain, ...]
    identities: tuple[Json, ...]
    beside: tuple[str, ...]


def remains_of(
    subject: Subject, packs: Sequence[str], known: Sequence[KnownDomain], production: Production
) -> Remains:
    """What is left of a model's tasks.

    Args:
        subject: to be forgotten; in at least one of the tasks.
        packs: of the model.
        known: the record of each.
        production: the model.
    """
    first = next(i for i, one in enumerate(known) if subject.in_record(one))
    left = [
        (digest, one, rest)
        for digest, one in zip(packs, known, strict=True)
        if (rest := subject.without(one))
    ]
    before = identities_of(production.run.model_store, [digest for digest, _, _ in left])
    identities = [
        _identity_without(subject, identity, one) for identity, (_, one, _) in zip(before, left, strict=True)
    ]
    later = dict.fromkeys(one.name for one in known[first + 1 :] if one.name != subject.domain)
    return Remains(
        first,
        tuple(digest for digest, _, _ in left),
        tuple(rest for _, _, rest in left),
        tuple(identities),
        tuple(later),
    )


def _identity_without(subject: Subject, identity: Json, known: KnownDomain) -> Json:
    """A pack's identity without a class of it; its samples stand in the order of the record's."""
    if not subject.in_record(known):
        return identity
    shas, labels = known.trained
    if [sha for _, sha in identity["samples"]] != list(shas):
        raise LadaError(
            f"the samples of the pack of {known.name} are not those that are known of it; restore the model from a copy"
        )
    gone = known.class_names.index(str(subject.class_name))
    samples = [sample for sample, label in zip(identity["samples"], labels, strict=True) if label != gone]
    kept = [label for label in identity["labels"] if tuple(label) != (subject.domain, subject.class_name)]
    return {**identity, "labels": kept, "samples": samples}


def take_out(production: Production, stream: Stream, subject: Subject, remains: Remains) -> tuple[str, ...]:
    """Write the packs that are left, each as it is but for the subject's rows and its parent; returns their digests.

    They are calibrated anew.

    Raises:
        InputError: the learner's packs have no rows of their own for each class.
    """
    touched = len(remains.packs) > remains.untouched
    if production.config.method.kind in SUPERSEDING and touched:
        raise InputError(
            [
                f"{production.config.method.kind} keeps one solution for all classes in its newest pack, from which "
                "nothing can be taken out: give --relearn, which learns the later tasks again without it"
            ],
            f"{subject.said} cannot be forgotten so",
        )
    parent: str | None = None
    digests = []
    for i, (digest, identity) in enumerate(zip(remains.packs, remains.identities, strict=True)):
        if i < remains.untouched:
            parent = digest
            digests.append(digest)
            continue
        pack = cached_pack(production.run.model_store.uri, digest)
        tensors = _tensors_without(pack, [tuple(label) for label in identity["labels"]])
        new = pack.rebuilt(parent, identity, tensors)
        _keep(production, digest, new, i)
        parent = new.digest
        digests.append(parent)
    _calibrate(production, stream, remains, digests)
    return tuple(digests)


def _calibrate(production: Production, stream: Stream, remains: Remains, digests: Sequence[str]) -> None:
    """Calibrate packs that are new, as those are that were learnt."""
    plan = plan_fit(stream, tuple(plan_again(remains.known, remains.identities)))
    with production.console.stage("calibrate"):
        calibrate(plan, production.run.model_store.uri, digests, lambda done, total: None)


def _keep(production: Production, old: str, new: TaskPack, position: int) -> None:
    """Write a pack, and its side file before it."""
    found = production.store.read_version(f"tasks/{old}.json")
    if found:
        said = {"digest": new.digest, "parent": new.parent, "position": position}
        record = json.dumps({**json.loads(found[0]), **said}, indent=1, ensure_ascii=False)
        production.store.write(f"tasks/{new.digest}.json", record.encode())
    new.write(production.run.model_store)


def _tensors_without(pack: TaskPack, labels: Sequence[tuple[str, ...]]) -> Tensors:
    """A pack's tensors for some of its labels."""
    keep = np.array([tuple(label) in set(labels) for label in pack.labels], np.bool_)
    if keep.all():
        return dict(pack.tensors)
    names = pack.tensors.keys()
    if unknown := names - PER_CLASS - PER_COMPONENT - {COMPONENT_CLASS}:
        raise LadaError(
            f"pack {pack.digest[:12]}: nobody knows which rows of {', '.join(unknown)} to take out"
        )
    tensors: Tensors = {name: pack.tensors[name][keep] for name in names & PER_CLASS}
    if COMPONENT_CLASS in names:
        tensors |= _components_without(pack, keep)
    return {name: tensors[name] for name in names}


def _components_without(pack: TaskPack, keep: npt.NDArray[np.bool_]) -> Tensors:
    labels: npt.NDArray[Any] = pack.tensors[COMPONENT_CLASS]
    stay, moved = keep[labels], (np.cumsum(keep) - 1).astype(labels.dtype)
    rest = {name: pack.tensors[name][stay] for name in PER_COMPONENT}
    return {**rest, COMPONENT_CLASS: moved[labels[stay]]}


def learn_again(
    production: Production, stream: Stream, subject: Subject, remains: Remains
) -> tuple[str, ...]:
    """Learn every task from the subject's first one on again, from the bank and without it; returns all digests."""
    tasks = plan_again(remains.known, remains.identities)
    before = remains.packs[: remains.untouched]
    said = json.dumps([production.champion.digest, subject.said])
    name = f"forget-{hashlib.sha256(said.encode()).hexdigest()[:24]}"
    return learn_candidate(production, stream, name, before, tasks, remains.identities)
