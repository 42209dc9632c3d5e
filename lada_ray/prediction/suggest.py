"""An inbox entry of images that the model does not know, for somebody to label.

    <inbox>/suggested-<id>/domain.yaml    a card to be corrected (inbox.py)
    <inbox>/suggested-<id>/labels.csv     path, label (to be filled in), split, and what the model took the image for
    <inbox>/suggested-<id>/images/...     copies, farthest outside first

Without `_READY` nobody learns it. A folder that is there already is left as it is: its labels may be somebody's work.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from lada_ray.console import Console
from lada_ray.domains.folder import in_test
from lada_ray.errors import InputError
from lada_ray.features.reading import read_image
from lada_ray.inbox import CARD, READY
from lada_ray.prediction.drift import Drift
from lada_ray.prediction.folder import PARTS, part_names
from lada_ray.prediction.listing import digest_of
from lada_ray.store import Store, is_remote, join, open_store

LABELS = "labels.csv"
MOST = 500
"""Images that are suggested at most: what a person labels in an hour or two."""
TEST_SHARE = 0.3
REQUESTS = 8
COLUMNS = ("path", "label", "split", "source", "predicted_domain", "predicted_class", "distance")


@dataclass(frozen=True)
class Suggestion:
    """An entry that was written, or was there before."""

    uri: str
    images: int
    new: bool
    lost: int = 0
    """Images that could not be read any more, and were left out."""


def suggest(out: str, summary: dict[str, Any], inbox: str) -> Suggestion | None:
    """Write an inbox entry of the images that lie farthest outside of what the model knows.

    Args:
        out: folder of finished predictions.
        summary: content of its summary.json.
        inbox: local folder, or s3:// or gs:// prefix.

    Returns:
        What was written: outliers, at most `MOST`; where the whole batch looks like a new domain, other images too.
        None if there is nothing to suggest.

    Raises:
        InputError: the model is not calibrated, so that nothing tells outliers; or none of the images is there any
            more.
    """
    if summary["drift"] is None:
        raise InputError(
            ["suggest: nothing tells outliers, as the model is not calibrated"], "Nothing suggested"
        )
    rows = strangest(open_store(out), whole=Drift.from_json(summary["drift"]).new)
    if not len(rows):
        return None
    name, root = _name(summary["of"], rows), summary["of"]["images"]
    store = open_store(join(inbox, name))
    if store.exists(CARD):
        return Suggestion(store.uri, len(rows), new=False)
    targets = [f"images/{i:03d}{posixpath.splitext(path)[1].lower()}" for i, path in enumerate(rows["path"])]
    uris = [f"{root.rstrip('/')}/{path}" for path in rows["path"]]
    with ThreadPoolExecutor(REQUESTS) as pool:
        there = list(pool.map(lambda uri, target: _copy(uri, store, target), uris, targets))
    if not any(there):
        raise InputError(
            [f"suggest: none of the {len(rows)} images can be read any more in {root}"], "Nothing suggested"
        )
    store.create(LABELS, _labels(rows[there], list(compress(targets, there))))
    store.write(CARD, _card(name, root, summary))
    return Suggestion(store.uri, sum(there), new=True, lost=len(rows) - sum(there))


def _name(of: dict[str, Any], rows: pd.DataFrame) -> str:
    """Names these images, and not those of the same names in another folder, or in this one at another time."""
    return f"suggested-{digest_of([of['images'], of['listing'], rows['path'].tolist()])[:8]}"


def _copy(uri: str, store: Store, target: str) -> bool:
    """Copy an image; False where it cannot be read any more."""
    try:
        data = read_image(uri)
    except OSError:
        return False
    store.write(target, data)
    return True


def strangest(store: Store, whole: bool) -> pd.DataFrame:
    """The predictions of at most `MOST` images, farthest outside first.

    Args:
        store: folder of predictions.
        whole: not of outliers alone.
    """
    best: pd.DataFrame | None = None
    for table in _tables(store):
        some = table if whole else table[table["outlier"]]
        some = some if best is None else pd.concat([best, some])
        best = some.sort_values(["distance", "path"], ascending=[False, True]).head(MOST)
    return pd.DataFrame() if best is None else best.reset_index(drop=True)


def _tables(store: Store) -> Iterator[pd.DataFrame]:
    columns = ["path", "domain", "class", "outlier", "distance"]
    for name in part_names(store):
        with store.open(f"{PARTS}/{name}") as file:
            yield pq.read_table(file, columns=columns).to_pandas()


def _labels(rows: pd.DataFrame, targets: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for target, row in zip(targets, rows.to_dict("records"), strict=True):
        split = "test" if in_test(row["path"], TEST_SHARE, 0) else "train"
        domain = row["domain"] if isinstance(row["domain"], str) else ""  # a class of no domain: NaN
        told = (row["path"], domain, row["class"], f"{row['distance']:.4f}")
        writer.writerow((target, "", split, *told))
    return text.getvalue().encode()


def _card(name: str, root: str, summary: dict[str, Any]) -> bytes:
    words = "\n".join(f"# {line}" for line in Drift.from_json(summary["drift"]).words)
    return f"""# Suggested by jobs/predict.py: images of {json.dumps(root)}
{words}
#
# 1. Fill in the column label of {LABELS}: a class name per image. Write skip into the column split of images that do
#    not belong to this domain. Every class needs two images, one to learn from (train) and one to test on (test).
# 2. Give the domain its name and its prompt here.
# 3. Write an empty file {READY} beside this one: the next retraining takes it.
name: {name}
kind: manifest
file: {LABELS}
prompt: "a photo of a {{}}."
""".encode()


def say_suggestion(found: Suggestion | None, console: Console) -> None:
    """Print what was suggested, and what to do next."""
    if found is None:
        console.say("nothing to suggest: no image lies outside what the model knows")
        return
    if not found.new:
        console.say(f"suggested before, and left as it is:\n  {found.uri}")
        return
    ready = (
        f"write an empty object {found.uri}/{READY}" if is_remote(found.uri) else f"touch {found.uri}/{READY}"
    )
    console.say(f"suggested: {found.images} images to be labelled, as a new domain:\n  {found.uri}")
    if found.lost:
        console.say(f"left out: {found.lost} images that cannot be read any more")
    console.say(f"fill in {LABELS} and {CARD}, then:\n  {ready}")
