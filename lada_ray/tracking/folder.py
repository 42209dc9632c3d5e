"""What there is to log: a run's folder, read again and again while it grows."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lada_ray.errors import InputError
from lada_ray.evaluate import Row
from lada_ray.run import START
from lada_ray.store import Store

IDENTITY = "tracking.json"


@dataclass(frozen=True)
class LoggedRow:
    """An accuracy row, when it was written (unix s), and a digest of its content."""

    row: Row
    written: float
    digest: str

    @classmethod
    def parse(cls, content: Mapping[str, Any], written: float) -> LoggedRow:
        """Read the JSON of a row."""
        return cls(Row(**content), written, digest([content["correct"], content["total"]]))

    @property
    def accuracy(self) -> dict[str, float]:
        """In %, by domain."""
        return self.row.accuracy()


@dataclass(frozen=True)
class TaskResult:
    """One committed task as the run folder tells it; `record` is its `tasks/<digest>.json`."""

    digest: str
    domain: str
    position: int
    record: dict[str, Any]
    row: LoggedRow | None

    @property
    def mark(self) -> str:
        """A digest of what changes when the task is evaluated or measured again; "" before evaluation."""
        figures = [self.record.get(key) for key in ("timings", "counts", "loss")]
        return digest([self.row.digest, figures]) if self.row else ""


@dataclass
class RunFolder:
    """Reads what there is to log from a run folder, each object once per version.

    Attributes:
        store: the run folder.
    """

    store: Store
    _parsed: dict[tuple[str, str], Any] = field(default_factory=dict)

    def run_id(self) -> str:
        """Return the run's id, which starting over renews.

        Raises:
            InputError: the folder is no run folder.
        """
        found = self.optional_json(START).get("run") or self.optional_json("model/model.json").get("run")
        if not found:
            raise InputError([f"{self.store.uri} has no {START}: it is not the folder of a run"])
        return str(found)

    def packs(self) -> list[str]:
        """List the digests of the model's packs, in order; [] before the first commit."""
        return list(self.optional_json("model/model.json").get("packs", ()))

    def tasks(self) -> list[TaskResult]:
        """List the committed tasks in order, without those whose task record is not written yet."""
        records = {record["digest"]: record for record, _ in self._read("tasks/").values()}
        rows = self._rows()
        return [
            TaskResult(name, records[name]["domain"], position, records[name], rows.get(name))
            for position, name in enumerate(self.packs())
            if name in records
        ]

    def zero_shot(self) -> LoggedRow | None:
        """Return the zero-shot row, if there is one."""
        return self._rows().get("zero_shot")

    def model_files(self) -> list[str]:
        """List the keys of the model: its packs and model.json, without packs that no longer belong to it."""
        packs = {f"model/packs/{name}" for name in self.packs()}
        keys = [entry.key for entry in self.store.list("model/")]
        return [key for key in keys if posixpath.dirname(key) in packs or not key.startswith("model/packs/")]

    def optional_json(self, key: str) -> dict[str, Any]:
        """Parse a JSON object; {} when it is absent."""
        found = self.store.read_version(key)
        return dict(json.loads(found[0])) if found else {}

    def written(self, key: str) -> float | None:
        """Return when an object of the folder's top level was written (unix s); None when it is absent."""
        return next((entry.modified for entry in self.store.list() if entry.key == key), None)

    def _rows(self) -> dict[str, LoggedRow]:
        """Find the row per pack digest. After domains were appended there are several: the widest counts."""
        rows: dict[str, LoggedRow] = {}
        for key, (content, written) in self._read("rows/").items():
            row = LoggedRow.parse(content, written)
            name = posixpath.basename(key).rpartition("-")[0]
            current = rows.get(name)
            if current is None or (len(row.row.total), written) >= (len(current.row.total), current.written):
                rows[name] = row
        return rows

    def _read(self, prefix: str) -> dict[str, tuple[Any, float]]:
        entries = [entry for entry in self.store.list(prefix) if entry.key.endswith(".json")]
        for entry in entries:
            if (entry.key, entry.version) not in self._parsed:
                self._parsed[entry.key, entry.version] = json.loads(self.store.read(entry.key))
        return {entry.key: (self._parsed[entry.key, entry.version], entry.modified) for entry in entries}


def digest(content: Any) -> str:
    """Sixteen hex digits that tell JSON contents apart."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
