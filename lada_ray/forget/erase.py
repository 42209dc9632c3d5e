"""Deleting from storage all that is left of a forgotten domain or class; whatever is killed is done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lada_ray.calibration import calibration_key
from lada_ray.errors import IntegrityError
from lada_ray.evaluate import TEST_IMAGES, TestSet, read_tests, write_tests
from lada_ray.features.bank import FeatureBank, banks
from lada_ray.features.index import FileIndex
from lada_ray.fit.classes import ClassImages, remove_fits
from lada_ray.forget.subject import Subject, images_of, packs_of, read_records, records_of
from lada_ray.known import KNOWN_DOMAINS, KnownDomain
from lada_ray.production import Production, needed_views
from lada_ray.publish import CHALLENGER
from lada_ray.run import SOLVER
from lada_ray.store import Store, join, open_store
from lada_ray.versions import restorable

TOLD = (
    "report.html",
    "bad_images.csv",
    "overlaps.csv",
    "accuracy_matrix.csv",
    "metrics.json",
    "history.html",
)
"""What a run's folder tells people of the packs that it had; the history has their accuracies."""
ENDINGS = "inbox"


def erase(production: Production, subject: Subject) -> int:
    """Delete what storage has of a subject that the champion is without; returns the number of views of its images.

    Its records go last: they say which images these are.
    """
    store, versions = production.store, restorable(production.versions)
    records = read_records(store)
    kept = [records[key] for key in {key for v in versions for key in v.state.domains} if key in records]
    shas = images_of(subject, records.values(), kept)
    views = _erase_features(production, shas, kept)
    for step in (_erase_packs, _erase_told, _erase_tests, _erase_endings):
        step(production, subject)
    for key in records_of(subject, records):
        store.delete(key)
    return views


def _erase_features(production: Production, shas: frozenset[str], kept: Sequence[KnownDomain]) -> int:
    """Rows of every bank of the storage, what was fitted to them, and what is known of the files.

    What another production model is judged by stays, and that is said: it has to forget it as well.
    """
    config = production.config
    others = {sha for sha, _ in needed_views(config.storage, but=config.name)}
    if shas & others:
        production.console.warn(
            f"{len(shas & others)} of its {len(shas)} images stay in the feature bank: other models in production in "
            f"{config.storage} know them; forget them there, too"
        )
    shas -= others
    if not shas:
        return 0
    features = open_store(join(production.config.storage, "features"))
    classes = [ClassImages.of(*_arrays(known)) for known in kept]
    views = 0
    for key, _ in list(banks(features)):
        bank = FeatureBank.open(features, key)
        remove_fits(bank, classes)
        views += bank.remove_images(shas)
    FileIndex(features).remove_images(shas)
    return views


def _arrays(known: KnownDomain) -> tuple[tuple[str, ...], Any]:
    shas, labels = known.trained
    return shas, np.array(labels, np.int64)


def _erase_packs(production: Production, subject: Subject) -> None:
    """Packs that were made with it, what was noted of them, and what serves going on after a kill."""
    store, model_store = production.store, production.run.model_store
    versions = restorable(production.versions)
    dead = packs_of(subject, model_store, {digest for v in versions for digest in v.state.packs})
    for digest in dead:
        # The pack goes last: while it is there the rest is found again.
        model_store.delete(calibration_key(digest))
        store.delete(f"tasks/{digest}.json")
        _delete_below(model_store, f"packs/{digest}")
    _delete_below(model_store, "candidates")
    newest = production.champion.state.packs[-1]
    _delete_below(store, SOLVER, lambda key: newest not in key)
    production.run.tidy()


def _erase_told(production: Production, subject: Subject) -> None:
    """Pages with pictures, rows and lists of the packs that were."""
    for key in (*TOLD, KNOWN_DOMAINS, CHALLENGER):
        production.store.delete(key)
    _delete_below(production.store, "rows")


def _erase_tests(production: Production, subject: Subject) -> None:
    """Its rows in the list of test images."""
    if not production.store.exists(TEST_IMAGES):
        return
    try:
        tests = read_tests(production.store)
    except IntegrityError:
        # Nobody can tell what stands in it.
        production.store.delete(TEST_IMAGES)
        return
    left = [rest for test in tests if (rest := _test_without(subject, test)) is not None]
    write_tests(production.store, left)


def _test_without(subject: Subject, test: TestSet) -> TestSet | None:
    if test.domain != subject.domain or subject.class_name not in (None, *test.class_names):
        return test
    if subject.class_name is None:
        return None
    gone = test.class_names.index(subject.class_name)
    stay = [i for i, label in enumerate(test.labels) if label != gone]

    def of(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in stay) if values else ()

    names, prompts = ((*some[:gone], *some[gone + 1 :]) for some in (test.class_names, test.prompts))
    labels = tuple(label - (label > gone) for label in of(test.labels))
    return replace(
        test, class_names=names, prompts=prompts, shas=of(test.shas), labels=labels, paths=of(test.paths)
    )


def _erase_endings(production: Production, subject: Subject) -> None:
    """What was said of it as it arrived; that it was looked at stays, or the next tick would learn it again."""
    if subject.class_name is not None:
        return
    for entry in list(production.store.list(ENDINGS)):
        ending = json.loads(production.store.read(entry.key))
        if ending.get("domain") == subject.domain:
            said = {**ending, "status": "known", "said": ["it was forgotten"], "gate": None}
            production.store.write(entry.key, json.dumps(said, indent=1, ensure_ascii=False).encode())


def _delete_below(store: Store, prefix: str, which: Callable[[str], bool] = lambda key: True) -> None:
    for entry in list(store.list(prefix)):
        if which(entry.key):
            store.delete(entry.key)
