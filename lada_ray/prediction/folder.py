"""The folder that predictions are written to: what it holds, whether it is ours, and what is done already.

<out>/predictions/*.parquet    a row per image: path, domain, class, score, seen, ...
<out>/bad_images.csv           files without a prediction, with the reason
<out>/summary.json             counts, shares, drift figures; written last
<out>/_meta.json               of which model, images and options all this is
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from lada_ray.domains.listed import some
from lada_ray.errors import InputError, IntegrityError
from lada_ray.lease import KEY as LEASE
from lada_ray.prediction.asked import differences
from lada_ray.prediction.drift import Tensors, nothing
from lada_ray.prediction.listing import Listing
from lada_ray.prediction.parts import OUTCOME, Outcome
from lada_ray.store import Store

PARTS = "predictions"
META, SUMMARY, BAD = "_meta.json", "summary.json", "bad_images.csv"
# Parts whose metadata are read at once.
REQUESTS = 8


def check_folder(store: Store, meta: Mapping[str, Any], fresh: bool = False) -> None:
    """Make sure that a folder holds predictions of this kind, or nothing.

    Args:
        store: the folder.
        meta: what is to be written to it.
        fresh: predictions of another kind may be replaced.

    Raises:
        InputError: it holds others, saying in what they differ; or something else.
        IntegrityError: its _meta.json is damaged.
    """
    found = store.read_version(META)
    if found is None:
        strangers = [entry.key for entry in store.list() if entry.key != LEASE]
        if strangers:
            advice = f"give a folder of its own, such as {store.uri}/predicted"
            raise InputError([f"out: {store.uri} holds other files ({some(strangers)}); {advice}"])
        return
    try:
        problems = differences(json.loads(found[0]), meta)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{store.uri}/{META} is damaged: {error}; remove the folder") from error
    if problems and not fresh:
        advice = "--fresh removes them and starts over; another --out keeps them"
        raise InputError([*problems, advice], f"{store.uri} holds other predictions")


def begin(store: Store, meta: Mapping[str, Any], fresh: bool) -> None:
    """Note what is being written, and remove what holds no longer: a summary, or all of it with `fresh`."""
    found = store.read_version(META)
    if fresh and found is not None:
        for entry in list(store.list(PARTS)):
            store.delete(entry.key)
    data = json.dumps(meta, indent=1, ensure_ascii=False).encode()
    if fresh or found is None or found[0] != data:
        store.delete(SUMMARY)
        store.delete(BAD)
        store.write(META, data)


@dataclass
class Done:
    """What the parts of a folder say."""

    total: Outcome
    """Of the parts that are done."""
    names: set[str]
    """Of those parts."""
    stale: list[str]
    """Names of parts of files that are gone or have changed."""


def look_up(store: Store, listing: Listing, packs: Sequence[Tensors]) -> Done:
    """Read what the parts of a folder say; one that cannot be read, or in which a file could not, is not done.

    Args:
        store: the folder.
        listing: what there is to predict.
        packs: what judged outliers.
    """
    wanted = {chunk.name for chunk in listing.chunks}
    names = list(part_names(store))
    done = Done(Outcome(nothing(packs)), set(), [name for name in names if name not in wanted])
    known = [name for name in names if name in wanted]
    with ThreadPoolExecutor(REQUESTS) as pool:
        outcomes = pool.map(lambda name: _read_outcome(store, name, packs), known)
        for name, outcome in zip(known, outcomes, strict=True):
            if outcome is not None and not outcome.unread:
                done.names.add(name)
                done.total.add(outcome)
    return done


def part_names(store: Store) -> Iterator[str]:
    """The names of all parts in a folder."""
    return (entry.key.rpartition("/")[2] for entry in store.list(PARTS))


def _read_outcome(store: Store, name: str, packs: Sequence[Tensors]) -> Outcome | None:
    """None for a part that cannot be read, which is made again."""
    try:
        with store.open(f"{PARTS}/{name}") as file:
            return Outcome.from_json(pq.read_metadata(file).metadata[OUTCOME], packs)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def finish(store: Store, summary: dict[str, Any], total: Outcome) -> dict[str, Any]:
    """Write bad_images.csv, and then summary.json, which says that all is there; what is there already stays.

    Returns:
        The summary that is there then: of a start that found nothing to do, that of the one before.
    """
    found = store.read_version(SUMMARY)
    if found is not None and not summary["images_per_second"]:
        return json.loads(found[0])
    text = io.StringIO()
    csv.writer(text).writerows([("path", "reason"), *sorted(total.without_prediction.items())])
    store.write(BAD, text.getvalue().encode(errors="surrogateescape"))
    store.write(SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode())
    return summary
