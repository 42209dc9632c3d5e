"""What has changed since a run was learnt: the images that it was learnt from and tested on."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lada_ray.console import Console
from lada_ray.domains.base import Domain, DomainSpec, Sample
from lada_ray.domains.demo import FOLDER, MARK, DemoSpec
from lada_ray.domains.parts import split_part
from lada_ray.errors import InputError, LadaError
from lada_ray.evaluate import TestSet
from lada_ray.features.fill import Images
from lada_ray.features.index import FileIndex, hash_files
from lada_ray.features.selection import Selection, select
from lada_ray.pack import TaskPack
from lada_ray.store import Store, join, open_store
from lada_ray.verify.record import UNREADABLE, RunRecord, domains_of, few

# Files are hashed by so many threads: each waits for a disk or a network.
READERS = 8

Items = Sequence[tuple[str, str, str]]
"""Images as (path, SHA-256, class name); without the name where it is not recorded."""


def images_now(run: RunRecord, console: Console) -> tuple[Images, list[str]]:
    """What the run would learn from and be tested on if it started now, hashing what is not known yet.

    Returns:
        The images of those domains that can be listed, and a line for each that cannot.
    """
    if run.config is None:
        return Images([], {}), []
    with console.stage("list domains"):
        domains, notes = list_domains(run.config.domains, run.storage)
    config, index = run.config, FileIndex(run.features)
    try:
        reasons, images = index.bad(), Images([], {}, _left_out(run.store))
        with console.stage("hash images"):
            while True:
                images.selections = [
                    select(domain, images.spoilt, config.shots, config.training_views, config.seed)
                    for domain in domains
                ]
                new = {s.uri: s for x in images.selections for s in x.samples if s.uri not in images.hashes}
                if not new:
                    return images, notes
                hashes, unread = _hash(index, list(new.values()), lambda a, b: console.progress("hash", a, b))
                images.hashes |= hashes
                images.spoilt |= unread
                images.spoilt |= {uri: reasons[sha] for uri, sha in hashes.items() if sha in reasons}
    except UNREADABLE as error:
        return Images([], {}), [*notes, f"the images cannot be compared: {error}"]


def list_domains(specs: Iterable[DomainSpec], storage: str) -> tuple[list[Domain], list[str]]:
    """The domains that can be listed, and a line for each that cannot; draws and reads no image."""
    domains, notes = [], []
    for spec in specs:
        try:
            domains.append(_listed(spec, storage))
        except (LadaError, OSError) as error:
            problems = error.problems if isinstance(error, InputError) else [str(error)]
            why = "; ".join(problem.removeprefix(f"{spec.name}: ") for problem in problems)
            notes.append(f"{spec.name}: its images cannot be compared: {why}")
    return domains, notes


def _listed(spec: DomainSpec, storage: str) -> Domain:
    # What the demo has not drawn it would draw; a verification looks and changes nothing.
    if isinstance(spec, DemoSpec) and not open_store(join(storage, FOLDER, spec.drawing)).exists(MARK):
        raise InputError([f"its pictures are not in {join(storage, FOLDER, spec.drawing)}"])
    return spec.load(storage)


def _left_out(store: Store) -> dict[str, str]:
    """Reason by URI, of the images that the run could not use."""
    found = store.read_version("bad_images.csv")
    rows = csv.reader(io.StringIO(found[0].decode(errors="surrogateescape") if found else ""))
    return {row[1]: row[2] for row in rows if len(row) == 3}


def _hash(
    index: FileIndex, samples: Sequence[Sample], progress: Callable[[int, int], None]
) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 by URI, and the reason by URI of files that cannot be read; files known and unchanged are not read."""
    hashes = index.known(samples)
    unread: dict[str, str] = {}
    new = sorted(sample.uri for sample in samples if sample.uri not in hashes)
    parts = [uri for uri in new if split_part(uri)[1] is not None]
    # Parts of one file are read quickest one after another.
    for uris, readers in ((sorted(set(new).difference(parts)), READERS), (parts, 1)):
        with ThreadPoolExecutor(readers) as pool:
            answers = pool.map(hash_files, [[uri] for uri in uris])
            for uri, [(sha, reason)] in zip(uris, answers, strict=True):
                (hashes if sha else unread)[uri] = sha or str(reason)
                progress(len(hashes) + len(unread), len(samples))
    return hashes, unread


def image_changes(run: RunRecord, tests: Sequence[TestSet], images: Images) -> list[str]:
    """Where training images of the packs, test images and classes are not what they were."""
    now = {selection.domain.name: selection for selection in images.selections}
    lines = []
    for pack in run.packs:
        names = domains_of(pack.meta)
        if now.keys() >= set(names):
            lines += _train_changes(pack, [now[name] for name in names], images)
    for test in tests:
        if test.domain in now:
            lines += _test_changes(test, now[test.domain], images)
    return lines


def _train_changes(pack: TaskPack, now: Sequence[Selection], images: Images) -> list[str]:
    then = [(path, sha, "") for path, sha in pack.meta["samples"]]
    found = [(s.path, images.hashes[s.uri], "") for selection in now for s in selection.train]
    listed = {s.path for selection in now for s in selection.domain.train}
    return [f"{pack.domain}: training images: {what}" for what in changed(then, found, listed)]


def _test_changes(test: TestSet, now: Selection, images: Images) -> list[str]:
    names = now.domain.class_names
    lines = (
        [] if names == test.class_names else [f"{test.domain}: its classes are others, or in another order"]
    )
    if not test.paths:
        return lines
    classes = [test.class_names[label] for label in test.labels]
    then = list(zip(test.paths, test.shas, classes, strict=True))
    found = [(s.path, images.hashes[s.uri], names[s.label]) for s in now.test]
    listed = {s.path for s in now.domain.test}
    return lines + [f"{test.domain}: test images: {what}" for what in changed(then, found, listed)]


def changed(then: Items, now: Items, listed: Collection[str]) -> list[str]:
    """How images differ from what was recorded of them, in one line; none if they do not.

    Args:
        then: as recorded.
        now: those that would be used now.
        listed: paths of all that are there, used or not.
    """
    gone, came = Counter(then) - Counter(now), Counter(now) - Counter(then)
    lost, new = {path for path, *_ in gone}, {path for path, *_ in came}
    moved = {path for path, _ in {i[:2] for i in gone} & {i[:2] for i in came}}
    kinds = {
        "changed": (lost & new) - moved,
        "in another class": moved,
        "gone": (lost - new).difference(listed),
        "no longer used": (lost - new).intersection(listed),
        "new": new - lost,
    }
    said = [f"{len(paths)} {kind} ({few(sorted(paths))})" for kind, paths in kinds.items() if paths]
    if said:
        return [", ".join(said)]
    return ["the same ones in another order"] if list(then) != list(now) else []
