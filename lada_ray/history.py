"""A production model's history for people: a line per version, a table of accuracies, one version in full, a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from lada_ray.errors import InputError
from lada_ray.forget import is_forgetting
from lada_ray.model import ModelFile
from lada_ray.page import page_environment
from lada_ray.production import Settings
from lada_ray.store import Store, join
from lada_ray.versions import TOMBSTONE, Version, find_version, history, read_production, restorable

PAGE = "history.html"


@dataclass(frozen=True)
class History:
    """What is told of a model.

    Attributes:
        name: of the model.
        store: its run folder.
        file: its model.json.
    """

    name: str
    store: Store
    file: ModelFile

    @cached_property
    def versions(self) -> list[Version]:
        """The oldest first."""
        return history(self.file)

    @cached_property
    def there(self) -> frozenset[int]:
        """Numbers of the versions that can be gone back to."""
        return frozenset(version.number for version in restorable(self.versions))

    @property
    def table(self) -> pd.DataFrame:
        """Accuracy in %: a row per version, a column per domain; NaN where a version does not know it."""
        rows = {version.number: dict(version.accuracy) for version in self.versions}
        table = pd.DataFrame.from_dict(rows, orient="index").astype(float)
        table.index.name = "version"
        return table


def read_history(settings: Settings) -> History:
    """Read a model's history.

    Raises:
        InputError: there is no such model, or it has no history yet.
    """
    file = read_production(settings.store.child("model"))[0]
    if not file.history:
        what = f"{settings.store.uri} has no history yet: jobs/retrain.py, or any change by jobs/model.py, starts one"
        raise InputError([what], "Nothing to show")
    return History(settings.model, settings.store, file)


def log_lines(told: History) -> Iterator[str]:
    """A line per version, the newest first: number, date, action, subject, digest, packs, and what is special."""
    for version in reversed(told.versions):
        packs = f"{len(version.state.packs)} packs"
        head = f"{version.number:>4}  {version.at[:16].replace('T', ' ')}  {version.action:8}"
        yield f"{head}  {version.subject or '-'}  {version.digest[:12]}  {packs}{_special(told, version)}"


def _special(told: History, version: Version) -> str:
    words = ["champion"] if version.number == told.versions[-1].number else []
    words += ["forced"] if version.details.get("forced") else []
    words += [] if version.number in told.there else ["forgotten"]
    return f"  ({', '.join(words)})" if words else ""


def table_lines(told: History) -> Iterator[str]:
    """The accuracies of all versions, in %, and what is to be known beside them."""
    table = told.table
    table.insert(0, "change", [_change(version) for version in told.versions])
    yield table.to_string(float_format=lambda value: f"{value:.1f}", na_rep="", line_width=None)
    yield f"accuracy in % on each domain's held-out images; the champion is version {told.versions[-1].number}"
    if is_forgetting(told.store, told.file):
        yield "what was forgotten is not deleted everywhere yet; the next job on this model goes on with that"


def _change(version: Version) -> str:
    return f"{version.action} {version.subject}".strip()


def version_lines(told: History, number: int) -> Iterator[str]:
    """One version in full.

    Raises:
        InputError: there is none of this number.
    """
    version = find_version(told.file, number)
    details = dict(version.details)
    yield f"version {version.number}: {_change(version)}{_special(told, version)}"
    yield f"  {version.at}, by {version.by}"
    yield f"  digest {version.digest}"
    if version.number in told.there:
        yield from _pack_lines(told, version)
    else:
        yield f"  {len(version.state.packs)} packs, which are gone: something in them was forgotten"
    for name, value in version.accuracy.items():
        yield f"  {name}: {value:.2f} %"
    gate = details.pop("gate", None)
    if gate:
        yield f"  {gate['said']}"
        yield from (f"    {check['said']}" for check in gate["checks"])
    tombstone = details.pop(TOMBSTONE, None)
    if tombstone:
        yield from (f"  {line}" for line in tombstone_lines(tombstone))
    for name, value in details.items():
        if value is not None:
            yield f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def _pack_lines(told: History, version: Version) -> Iterator[str]:
    """A line per pack: digest, domain, when it was learnt."""
    for digest in version.state.packs:
        found = told.store.read_version(f"tasks/{digest}.json")
        record: dict[str, Any] = json.loads(found[0]) if found else {}
        yield f"  pack {digest[:12]}  {record.get('domain', '?')}  {record.get('finished', '')[:16]}".rstrip()


def tombstone_lines(tombstone: dict[str, Any]) -> Iterator[str]:
    """What was forgotten, and what that means for what was learnt after it."""
    what = tombstone["domain"]
    if tombstone["class_name"]:
        what = f"the class {tombstone['class_name']} of {what}"
    why = f" ({tombstone['reason']})" if tombstone["reason"] else ""
    yield f"forgotten: {what}{why}"
    images, views, packs = tombstone["images"], tombstone["views"], len(tombstone["packs"])
    gone = ", ".join(map(str, tombstone["versions"])) or "none"
    yield f"deleted: {views} views of {images} images, {packs} packs; versions that are gone with them: {gone}"
    if tombstone["relearnt"]:
        yield "what was learnt after it was learnt again without it"
    elif tombstone["trained_beside"]:
        yield f"trained beside it, and not again since: {', '.join(tombstone['trained_beside'])}"


def write_page(told: History) -> str:
    """Write the history as a page into the model's run folder; returns its URI."""
    template = page_environment().get_template("history.html.jinja")
    table = told.table
    rows = [
        {
            "version": version,
            "change": _change(version),
            "special": _special(told, version).strip(" ()"),
            "cells": cells,
            "lines": list(version_lines(told, version.number)),
        }
        for version, cells in zip(reversed(told.versions), reversed(table.to_numpy().tolist()), strict=True)
    ]
    html = template.render(name=told.name, folder=told.store.uri, domains=list(table), rows=rows)
    told.store.write(PAGE, html.encode())
    return join(told.store.uri, PAGE)
