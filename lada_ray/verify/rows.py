"""The rows of a run's accuracy matrix, recomputed from its packs and the bank; and what the bank lacks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lada_ray.console import Console
from lada_ray.errors import IntegrityError
from lada_ray.evaluate import TEST_IMAGES, Evaluation, Row, TestSet, evaluate_row, load_tests, read_tests
from lada_ray.features.bank import KEYS, FeatureBank
from lada_ray.features.fill import Images
from lada_ray.features.text import text_key
from lada_ray.pack import TaskPack
from lada_ray.prepare import plan_tests
from lada_ray.verify.record import UNREADABLE, RunRecord, few
from lada_ray.views import TEST_VIEW


def tests_of(run: RunRecord, images: Images) -> tuple[tuple[TestSet, ...], list[str]]:
    """What the run was tested on, and why that cannot be told.

    A run of an earlier version did not keep it: then it is what would be tested on now.
    """
    try:
        return read_tests(run.store), []
    except IntegrityError as error:
        return (), [str(error)]
    except FileNotFoundError:
        pass
    listed = [selection.domain.name for selection in images.selections]
    unlisted = [spec.name for spec in run.config.domains if spec.name not in listed] if run.config else []
    if run.config is None or unlisted:
        what = f", and the domains cannot be listed ({few(unlisted)})" if unlisted else ""
        return (), [f"{TEST_IMAGES} is missing{what}: {run.again}; it learns nothing anew, and writes it"]
    return plan_tests(run.config, images), []


def lacking(run: RunRecord, tests: Sequence[TestSet]) -> list[str]:
    """What the bank lacks of what the rows are computed from."""
    shas = [sha for test in tests for sha in test.shas]
    try:
        absent = int(run.bank.missing(shas, [TEST_VIEW] * len(shas)).sum())
    except UNREADABLE as error:
        return [f"the bank {run.bank.store.uri} cannot be read: {error}", *damaged_parts(run.bank, tests)]
    where, problems = run.bank.store.uri, []
    if absent:
        what = f"{absent} of {len(shas)} test features are not in the bank {where}"
        problems.append(f"{what}: {run.again}; it encodes them again")
    untold = [test.domain for test in tests if not run.bank.store.exists(text_key(test.prompts))]
    if untold:
        what = f"the text features of {few(untold)} are not in the bank {where}"
        problems.append(f"{what}: {run.again}; it encodes them again")
    return problems


def recompute(evaluation: Evaluation, packs: Sequence[TaskPack], console: Console) -> list[Row]:
    """The zero-shot row, then the row after each pack, computed in this process."""
    digests = [pack.digest for pack in packs]
    names = ["zero-shot", *(pack.domain for pack in packs)]
    rows = []
    with console.stage("recompute the rows"):
        features = load_tests(evaluation)
        for done, name in enumerate(names):
            console.progress("rows", done, len(names))
            rows.append(evaluate_row(evaluation, digests[:done], name, features))
    return rows


def damaged_parts(bank: FeatureBank, tests: Sequence[TestSet]) -> list[str]:
    """A line for each part of the bank with test features whose bytes are not those that were written."""
    wanted = {sha for test in tests for sha in test.shas}
    return [
        f"{bank.store.uri}/parts/{name} was changed or cut short: delete it and its line in the manifest.json beside it"
        for name in bank.table.manifest().parts
        if _damaged(bank, name, wanted)
    ]


def _damaged(bank: FeatureBank, name: str, wanted: set[str]) -> bool:
    try:
        if wanted.isdisjoint(bank.table.read(name, KEYS)["sha256"].to_pylist()):
            return False
        data = bank.store.read(f"parts/{name}")
    except UNREADABLE:
        return True
    return not name.startswith(hashlib.sha256(data).hexdigest()[:32])
