"""One row of the accuracy matrix: every domain's test images, classified among all classes of all domains."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lada_ray.cluster import TASK_CPUS, result
from lada_ray.console import START_WORKERS, Console
from lada_ray.errors import IntegrityError
from lada_ray.features.bank import FeatureBank
from lada_ray.features.text import read_text
from lada_ray.head import Head, Prediction, make_head
from lada_ray.model import cached_pack
from lada_ray.pack import Label, TaskPack
from lada_ray.store import Store
from lada_ray.views import TEST_VIEW

EXAMPLES_PER_DOMAIN = 4
# In a run's folder: what was tested on, so that it can be told later without images or their listing.
TEST_IMAGES = "test_images.parquet"
TEST_COLUMNS = pa.schema(
    [
        ("domain", pa.dictionary(pa.int32(), pa.string())),
        ("class", pa.dictionary(pa.int32(), pa.string())),
        ("path", pa.string()),
        ("sha256", pa.string()),
    ]
)
TEST_DOMAINS = b"domains"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TestSet:
    """A domain's test images, by content."""

    __test__ = False  # not a pytest class

    domain: str
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    shas: tuple[str, ...]
    labels: tuple[int, ...]
    paths: tuple[str, ...] = ()
    """Relative to the domain's root; () where they are not known."""

    def all_labels(self) -> list[Label]:
        """The domain's labels, in order."""
        return [Label(self.domain, name) for name in self.class_names]


@dataclass(frozen=True)
class Evaluation:
    """Everything rows depend on but the packs."""

    tests: tuple[TestSet, ...]
    """All domains of the stream, in order."""
    bank: FeatureBank
    model_uri: str
    """The folder of the packs."""
    prediction: Prediction

    @property
    def digest(self) -> str:
        """Names the test sets: rows of another stream, or of other test images, are other rows."""
        said = [[t.domain, t.class_names, t.prompts, t.shas, t.labels] for t in self.tests]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """Correct and all test images per class, by domain. `learnt` names the domain learnt last."""

    learnt: str
    correct: dict[str, list[int]]
    total: dict[str, list[int]]

    def accuracy(self) -> dict[str, float]:
        """In %, by domain."""
        return {d: 100.0 * sum(hits) / sum(self.total[d]) for d, hits in self.correct.items()}


def write_tests(store: Store, tests: Sequence[TestSet]) -> None:
    """Keep the test sets in a run's folder: a row per image; names and prompts of all classes in the metadata."""
    rows = [
        {"domain": t.domain, "class": t.class_names[label], "path": path, "sha256": sha}
        for t in tests
        for sha, label, path in zip(t.shas, t.labels, t.paths or [None] * len(t.shas), strict=True)
    ]
    domains = [{"name": t.domain, "class_names": t.class_names, "prompts": t.prompts} for t in tests]
    said = {TEST_DOMAINS: json.dumps(domains, ensure_ascii=False)}
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows, TEST_COLUMNS).replace_schema_metadata(said), sink, compression="zstd"
    )
    store.write(TEST_IMAGES, sink.getvalue())


def read_tests(store: Store) -> tuple[TestSet, ...]:
    """The test sets that `write_tests` kept in a run's folder, in order.

    Raises:
        FileNotFoundError: there are none; an earlier version did not keep them.
        IntegrityError: the file is damaged.
    """
    data = store.read(TEST_IMAGES)
    try:
        table = pq.read_table(io.BytesIO(data))
        said = {domain["name"]: domain for domain in json.loads(table.schema.metadata[TEST_DOMAINS])}
        rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in said}
        for row in table.to_pylist():
            rows[row["domain"]].append(row)
        return tuple(_test_set(domain, rows[name]) for name, domain in said.items())
    # Whatever Arrow, JSON or the content stumbles over means the same.
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{store.uri}/{TEST_IMAGES} is damaged: {error}") from error


def _test_set(domain: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> TestSet:
    position = {name: i for i, name in enumerate(domain["class_names"])}
    paths = tuple(row["path"] for row in rows)
    return TestSet(
        domain["name"],
        tuple(domain["class_names"]),
        tuple(domain["prompts"]),
        tuple(row["sha256"] for row in rows),
        tuple(position[row["class"]] for row in rows),
        () if None in paths else paths,
    )


def load_tests(evaluation: Evaluation) -> list[Floats]:
    """Raw test features of every domain, each [n, d]; runs in a Ray task, once."""
    return [evaluation.bank.fetch(test.shas, [TEST_VIEW])[:, 0] for test in evaluation.tests]


def evaluate_row(evaluation: Evaluation, digests: Sequence[str], learnt: str, features: list[Floats]) -> Row:
    """Test the model of the first packs on every domain; runs in a Ray task.

    Args:
        evaluation: the test sets.
        digests: of the packs learnt so far.
        learnt: name of the row.
        features: from `load_tests`.
    """
    packs = [cached_pack(evaluation.model_uri, digest) for digest in digests]
    return score_packs(evaluation, packs, learnt, features)


def score_packs(
    evaluation: Evaluation, packs: Sequence[TaskPack], learnt: str, features: list[Floats]
) -> Row:
    """The same for packs in memory; other arguments as of `evaluate_row`."""
    correct, total = {}, {}
    for test, predicted, truth in _predictions(evaluation, packs, features):
        labels = np.array(test.labels, np.int64)
        hits = labels[predicted == truth]
        correct[test.domain] = np.bincount(hits, minlength=len(test.class_names)).tolist()
        total[test.domain] = np.bincount(labels, minlength=len(test.class_names)).tolist()
    return Row(learnt, correct, total)


def correct_images(
    evaluation: Evaluation, digests: Sequence[str], features: list[Floats]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Which of a domain's test images the model of these packs gets right, by domain; in a Ray task.

    A domain that was extended has several test sets, one after the other. Arguments as of `evaluate_row`.
    """
    packs = [cached_pack(evaluation.model_uri, digest) for digest in digests]
    found: dict[str, list[npt.NDArray[np.bool_]]] = {}
    for test, predicted, truth in _predictions(evaluation, packs, features):
        found.setdefault(test.domain, []).append(predicted == truth)
    return {domain: np.concatenate(parts) for domain, parts in found.items()}


def accuracies(evaluation: Evaluation, digests: Sequence[str], features: list[Floats]) -> dict[str, float]:
    """In %, by domain that has test images; arguments as of `correct_images`."""
    right = correct_images(evaluation, digests, features)
    return {domain: 100 * float(correct.mean()) for domain, correct in right.items() if len(correct)}


def _predictions(evaluation: Evaluation, packs: Sequence[TaskPack], features: list[Floats]) -> Any:
    """For each domain (test set, predicted index, true index) among all labels, seen ones first."""
    head = make_head(packs, evaluation.prediction, evaluation.bank.width)
    labels, unseen = candidates(evaluation, head)
    index = {label: i for i, label in enumerate(labels)}
    for test, raw in zip(evaluation.tests, features, strict=True):
        own = np.array([index[label] for label in test.all_labels()])
        # An empty list would make an array of floats: in a fold of few images a domain may have none.
        yield test, head.predict(raw, unseen), own[np.array(test.labels, np.int64)]


def candidates(evaluation: Evaluation, head: Head) -> tuple[list[Label], Floats]:
    """All labels, seen ones first, then unseen ones in stream order; and the unseen ones' own text features."""
    labels, seen = list(head.labels), set(head.labels)
    texts = [np.zeros((0, evaluation.bank.width), np.float32)]
    for test in evaluation.tests:
        new = [i for i, label in enumerate(test.all_labels()) if label not in seen]
        if new:
            labels += [test.all_labels()[i] for i in new]
            seen |= set(labels)  # a domain may have several test sets
            texts.append(read_text(evaluation.bank, test.prompts)[new])
    return labels, np.concatenate(texts)


def predict_examples(
    evaluation: Evaluation,
    digests: Sequence[str],
    features: list[Floats],
    per_domain: int = EXAMPLES_PER_DOMAIN,
) -> list[dict[str, Any]]:
    """A few test images of each domain with what the model and zero-shot CLIP take them for; in a Ray task.

    The images are picked by content hash, so they are the same in every run, and not chosen to please.

    Returns:
        Dictionaries with domain, row (index into the test set), truth, predicted and zero_shot (labels as (domain,
        class)).
    """
    picks = [np.argsort(test.shas)[:per_domain].tolist() for test in evaluation.tests]
    chosen = [raw[pick] for raw, pick in zip(features, picks, strict=True)]
    few = [
        TestSet(
            t.domain, t.class_names, t.prompts, tuple(t.shas[i] for i in p), tuple(t.labels[i] for i in p)
        )
        for t, p in zip(evaluation.tests, picks, strict=True)
    ]
    some = Evaluation(tuple(few), evaluation.bank, evaluation.model_uri, evaluation.prediction)
    now, before = _labelled(some, digests, chosen), _labelled(some, [], chosen)
    examples = []
    for test, pick, a, b in zip(few, picks, now, before, strict=True):
        for i, (row, label) in enumerate(zip(pick, test.labels, strict=True)):
            truth = Label(test.domain, test.class_names[label])
            examples.append(
                {"domain": test.domain, "row": row, "truth": truth, "predicted": a[i], "zero_shot": b[i]}
            )
    return examples


def _labelled(evaluation: Evaluation, digests: Sequence[str], features: list[Floats]) -> list[list[Label]]:
    packs = [cached_pack(evaluation.model_uri, digest) for digest in digests]
    labels, _ = candidates(evaluation, make_head(packs, evaluation.prediction, evaluation.bank.width))
    return [[labels[i] for i in predicted] for _, predicted, _ in _predictions(evaluation, packs, features)]


_used = False
"""Whether this process, a Ray worker, has tested before."""


@dataclass(frozen=True)
class _Loaded:
    """Test features, and the seconds that reading them took."""

    features: list[Floats]
    seconds: float


def _load(evaluation: Evaluation) -> _Loaded:
    started = time.perf_counter()
    return _Loaded(load_tests(evaluation), time.perf_counter() - started)


def _clocked(loaded: _Loaded, function: Callable[..., Any], *arguments: Any) -> tuple[float | None, Any]:
    """When the worker was there, reading not counted, if it had to start or to import first; and the function's result.

    Args:
        loaded: goes to the function as `features`.
        function: of this module.
        arguments: the others.
    """
    global _used
    began, _used = (None if _used else time.time() - loaded.seconds), True
    return began, function(*arguments, features=loaded.features)


class Evaluator:
    """Rows of the accuracy matrix, computed by Ray tasks and kept in the run's folder.

    Args:
        store: the run's folder.
        evaluation: the test sets of all domains.
        console: times the evaluation.
        here: compute in this process, which is a Ray task itself.
    """

    def __init__(self, store: Store, evaluation: Evaluation, console: Console, here: bool = False) -> None:
        self.store, self.evaluation, self.console, self.here = store, evaluation, console, here

    @cached_property
    def _features(self) -> Any:
        """Test features in the object store of the cluster: loaded by a task, once; the driver holds a reference."""
        return self._start(_load, self.evaluation)

    def _start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result, or a reference to what a Ray task makes of it."""
        import ray

        return (
            function(*arguments) if self.here else ray.remote(num_cpus=TASK_CPUS)(function).remote(*arguments)
        )

    def _compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        asked = time.time()
        with self.console.stage("evaluate"):
            done = self._start(_clocked, self._features, function, *arguments)
            began, found = done if self.here else result(done)
        if began is not None:
            self.console.move(began - asked, "evaluate", START_WORKERS)
        return found

    def row(self, packs: Sequence[str], learnt: str) -> Row:
        """The row after these packs; computed once."""
        key = f"rows/{packs[-1] if packs else 'zero_shot'}-{self.evaluation.digest}.json"
        found = self.store.read_version(key)
        if found is not None:
            return Row(**json.loads(found[0]))
        row = self._compute(evaluate_row, self.evaluation, packs, learnt)
        self.store.write(key, json.dumps(asdict(row), indent=1, ensure_ascii=False).encode())
        return row

    def examples(self, packs: Sequence[str]) -> list[dict[str, Any]]:
        """A few test images of each domain and what they are taken for."""
        return self._compute(predict_examples, self.evaluation, packs)
