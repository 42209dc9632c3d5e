"""The trials of a sweep as they are kept: one small file each, named by its values, so that none is made twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lada_ray.store import Store

FOLDER = "trials"
Status = Literal["finished", "stopped", "failed"]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """What a trial came to."""

    values: Values
    """The parameters that it tried, by dotted key."""
    status: Status
    """finished: learnt all tasks; stopped: given up early as not promising; failed: see error."""
    scores: tuple[Mapping[str, float], ...]
    """After each task: `score`, what trials are judged by, and transfer, average, last in %; means over the folds."""
    seconds: float = 0.0
    error: str | None = None
    number: int = 0
    """In which place it was asked for, from 1 on."""

    @property
    def key(self) -> str:
        """Names the values."""
        return trial_key(self.values)

    @property
    def score(self) -> float:
        """After the last task that it learnt; NaN if there is none."""
        return self.scores[-1]["score"] if self.scores else math.nan


def trial_key(values: Values) -> str:
    """Names values, in whatever order they come."""
    said = json.dumps(dict(sorted(values.items())))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def keep(store: Store, trial: Trial) -> None:
    """Write a trial into a sweep's folder."""
    # JSON knows no NaN, and so not every reader of it.
    scores = [{k: v if math.isfinite(v) else None for k, v in one.items()} for one in trial.scores]
    said = json.dumps({**asdict(trial), "scores": scores}, indent=1, allow_nan=False)
    store.write(f"{FOLDER}/{trial.key}.json", said.encode())


def kept(store: Store, key: str) -> Trial | None:
    """A trial that was kept; None if there is none of this key."""
    found = store.read_version(f"{FOLDER}/{key}.json")
    return _parsed(found[0]) if found else None


def all_kept(store: Store) -> dict[str, Trial]:
    """All trials of a sweep's folder, by key."""
    trials = [_parsed(store.read(entry.key)) for entry in store.list(FOLDER)]
    return {trial.key: trial for trial in trials}


def _parsed(data: bytes) -> Trial:
    values = json.loads(data)
    scores = [{k: math.nan if v is None else v for k, v in one.items()} for one in values["scores"]]
    return Trial(**{**values, "scores": tuple(scores)})


def best(trials: Iterable[Trial]) -> Trial | None:
    """The finished trial with the highest score; of equal ones the first."""
    finished = [trial for trial in trials if trial.status == "finished" and math.isfinite(trial.score)]
    return max(finished, key=lambda trial: trial.score, default=None)
