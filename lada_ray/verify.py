"""Whether a run's numbers are what its packs and the feature bank give, and what has changed since it was learnt.

Nothing is written, nothing is learnt or encoded, and no cluster is needed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import yaml

from lada_ray.config import StreamConfig, find_problems
from lada_ray.console import Console
from lada_ray.domains.base import Domain, DomainSpec, Sample
from lada_ray.domains.demo import FOLDER, MARK, DemoSpec
from lada_ray.domains.parts import split_part
from lada_ray.encoder import EncoderInfo, EncoderSpec, load_encoder, resolve_encoder
from lada_ray.encoder.resolve import DEMO
from lada_ray.errors import InputError, IntegrityError, LadaError
from lada_ray.evaluate import TEST_IMAGES, Evaluation, Row, TestSet, evaluate_row, load_tests, read_tests
from lada_ray.features.bank import KEYS, FeatureBank
from lada_ray.features.fill import Images
from lada_ray.features.index import FileIndex, hash_files
from lada_ray.features.selection import Selection, select
from lada_ray.features.text import known_info, text_key
from lada_ray.model import MODEL, ModelFile, cached_pack, read_model_file
from lada_ray.pack import TaskPack, code_versions
from lada_ray.prepare import plan_tests
from lada_ray.results import accuracy_table, metrics_of
from lada_ray.run import differences, pack_identity
from lada_ray.store import Store, is_remote, join, open_store
from lada_ray.views import TEST_VIEW

MATRIX, METRICS, CONFIG = "accuracy_matrix.csv", "metrics.json", "config.yaml"
# Files are hashed by so many threads: each waits for a disk or a network.
READERS = 8
# Accuracies are ratios of counts: those that are really different differ by far more than rounding does.
SAME = 1e-9
SHOWN = 40
# What reading damaged Parquet or JSON raises.
UNREADABLE = (LadaError, OSError, ValueError, KeyError, TypeError)

Number = float | None
Numbers = dict[tuple[str, str, str], Number]
"""A number, or None where there is none, by (file, row or metric, domain)."""
Items = Sequence[tuple[str, str, str]]
"""Images as (path, SHA-256, class name); without the name where it is not recorded."""


@dataclass(frozen=True)
class Difference:
    """A number that is not the recorded one."""

    file: str
    row: str
    """What was learnt last, or the metric."""
    domain: str
    recorded: Number
    """None: it is not there, or no number."""
    recomputed: Number
    tested: int = 0
    """Test images of which it is a share; 0 for a mean over domains."""

    @property
    def images(self) -> str:
        """How many more images are right than recorded, of how many."""
        if not self.tested or self.recorded is None or self.recomputed is None:
            return ""
        return f"{round((self.recomputed - self.recorded) * self.tested / 100):+d} of {self.tested}"


@dataclass(frozen=True)
class Verdict:
    """What a verification found."""

    folder: str
    cells: int
    """Numbers that were compared: the cells of the accuracy matrix, and those of metrics.json."""
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    """What is not as it was when the run was learnt: it would explain differences, or lead to them."""
    problems: tuple[str, ...]
    """Why it cannot be verified."""

    @property
    def same(self) -> bool:
        """Whether every recorded number was recomputed."""
        return self.cells > 0 and not self.differences and not self.problems


def verify(folder: str, console: Console | None = None) -> Verdict:
    """Recompute a run's accuracy matrix and metrics from its packs and the bank, and compare everything it records.

    Args:
        folder: the run's folder, a path or URI.
        console: shows progress.

    Raises:
        InputError: it is no run's folder.
        IntegrityError: model.json is damaged.
    """
    console = console or Console()
    with console.stage("read packs"):
        run = read_run(folder)
    images, notes = images_now(run, console)
    tests, problems = tests_of(run, images)
    notes = [*run.notes, *changes(run, tests), *notes, *image_changes(run, tests, images)]
    problems = [*run.problems, *problems] or lacking(run, tests)
    if problems:
        return Verdict(run.store.uri, 0, (), tuple(notes), tuple(problems))
    evaluation = Evaluation(tests, run.bank, run.model_store.uri, run.model.prediction)
    try:
        rows = recompute(evaluation, run.packs, console)
    except UNREADABLE as error:
        problems = [f"the bank {run.bank.store.uri} cannot be read: {error}", *damaged_parts(run.bank, tests)]
        return Verdict(run.store.uri, 0, (), tuple(notes), tuple(problems))
    recorded, problems = recorded_numbers(run.store)
    numbers = recomputed_numbers(rows)
    found = [] if problems else compare(recorded, numbers, rows[0])
    notes += own_counts(run, evaluation, rows, bool(found))
    notes += damaged_parts(run.bank, tests) if found else []
    return Verdict(run.store.uri, len(numbers), tuple(found), tuple(notes), tuple(problems))


def show(verdict: Verdict, console: Console) -> None:
    """Print what a verification found; the last line is the verdict."""
    if verdict.differences:
        console.say(_table(verdict.differences[:SHOWN]))
    if len(verdict.differences) > SHOWN:
        console.say(f"and {len(verdict.differences) - SHOWN} more")
    for note in verdict.notes:
        console.warn(note)
    if verdict.differences and not verdict.notes:
        console.say("nothing else that the run records has changed; another processor may round differently")
    for problem in verdict.problems:
        console.say(f"  - {problem}")
    console.say(_conclusion(verdict))


def _table(rows: Sequence[Difference]) -> str:
    def number(value: Number) -> str:
        return "none" if value is None else f"{value:.10g}"

    said = [(d.file, d.row, d.domain, number(d.recorded), number(d.recomputed), d.images) for d in rows]
    columns = ["file", "row", "domain", "recorded", "recomputed", "images"]
    return pd.DataFrame(said, columns=columns).to_string(index=False)


def _conclusion(verdict: Verdict) -> str:
    where, changed = verdict.folder, len(verdict.notes)
    if verdict.problems:
        return f"{where} cannot be verified"
    if verdict.differences:
        return f"{where} differs: {len(verdict.differences)} of {verdict.cells} numbers are not the recorded ones"
    but = f"; but {changed} {'thing has' if changed == 1 else 'things have'} changed since" if changed else ""
    return f"{where} is the same: all {verdict.cells} numbers are the recorded ones{but}"


# ---------------------------------------------------------------- what the run recorded


@dataclass(frozen=True)
class RunRecord:
    """A run's folder as it is."""

    store: Store
    model: ModelFile
    packs: tuple[TaskPack, ...]
    """Those that are whole."""
    config: StreamConfig | None
    """None where config.yaml cannot be used."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def model_store(self) -> Store:
        """The model's folder."""
        return self.store.child("model")

    @property
    def info(self) -> EncoderInfo:
        """What the model says of its encoder."""
        width = self.model.encoder["spec"]["architecture"]["embed_dim"]
        return EncoderInfo(self.model.encoder["fingerprint"], width, self.model.prediction.tau, 0)

    @cached_property
    def storage(self) -> str:
        """The storage that has the run's bank: where the folder is now, or where it was written."""
        here = self.store.uri.rpartition("/")[0]
        roots = [here] + ([self.config.storage] if self.config else [])
        key = f"features/{self.info.feature_key}/manifest.json"
        return next((root for root in roots if open_store(root).exists(key)), here)

    @property
    def features(self) -> Store:
        """The features folder of the storage."""
        return open_store(join(self.storage, "features"))

    @property
    def bank(self) -> FeatureBank:
        """The features that the packs were learnt and tested with."""
        return FeatureBank(self.features, self.info.feature_key, self.info.width)

    @property
    def again(self) -> str:
        """How the run is started again."""
        if is_remote(self.store.uri):
            return "start the run again with its configuration"
        return f"start the run again (python jobs/run_stream.py --config {join(self.store.uri, CONFIG)})"


def read_run(folder: str) -> RunRecord:
    """Read model.json, every pack, checked against its digest and its parent, and the configuration.

    Raises:
        InputError: it is no run's folder.
        IntegrityError: model.json is damaged.
    """
    store = open_store(folder)
    found = read_model_file(store.child("model"))
    if found is None:
        hint = "give the folder of one run, <storage>/<name>"
        raise InputError([f"{store.uri} has no model/{MODEL}: {hint}"], "Nothing to verify")
    packs, problems = _read_packs(store.child("model"), found[0].packs)
    config, notes = _read_config(store)
    if config and not problems:
        learnt = {label.domain for pack in packs for label in pack.labels}
        lacking = [spec.name for spec in config.domains if spec.name not in learnt]
        problems += [f"not learnt yet: {_few(lacking)}; the run's command goes on"] if lacking else []
    return RunRecord(store, found[0], tuple(packs), config, tuple(problems), tuple(notes))


def _read_packs(store: Store, digests: Sequence[str]) -> tuple[list[TaskPack], list[str]]:
    """The whole packs, and a line for each that is not."""
    # What the storage holds now counts, not what this process once read.
    cached_pack.cache_clear()
    packs, problems = [], [] if digests else ["nothing is learnt yet; the run's command goes on"]
    for digest, parent in zip(digests, [None, *digests], strict=False):
        try:
            packs.append(cached_pack(store.uri, digest))
        except LadaError as error:
            problems.append(str(error))
        else:
            if packs[-1].parent != parent:
                problems.append(f"{store.uri}: pack {digest[:12]} does not follow the pack before it")
    return packs, problems


def _read_config(store: Store) -> tuple[StreamConfig | None, list[str]]:
    found = store.read_version(CONFIG)
    if found is None:
        return None, [f"{CONFIG} is missing"]
    try:
        raw = yaml.safe_load(found[0])
    except yaml.YAMLError as error:
        return None, [f"{CONFIG} is no YAML: {error}"]
    problems = find_problems(raw) if isinstance(raw, dict) else ["must be keys with values"]
    return None if problems else StreamConfig(**raw), [f"{CONFIG}: {problem}" for problem in problems]


def recorded_numbers(store: Store) -> tuple[Numbers, list[str]]:
    """What accuracy_matrix.csv and metrics.json of a run's folder say, and why they cannot be read."""
    numbers: Numbers = {}
    problems = []
    for name, parse in ((MATRIX, _matrix_numbers), (METRICS, _metric_numbers)):
        try:
            numbers |= parse(store.read(name))
        except FileNotFoundError:
            problems.append(f"{name} is missing: the run was stopped before its end; start it again")
        except (ValueError, AttributeError, IndexError) as error:
            problems.append(f"{name} is damaged: {error}")
    return numbers, problems


def _matrix_numbers(data: bytes) -> Numbers:
    header, *rows = csv.reader(io.StringIO(data.decode()))
    return {
        (MATRIX, row[0], domain): _number(cell)
        for row in rows
        if row
        for domain, cell in zip(header[1:], row[1:], strict=False)
    }


def _metric_numbers(data: bytes) -> Numbers:
    return _flat(json.loads(data))


def _flat(metrics: Mapping[str, Any]) -> Numbers:
    numbers: Numbers = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            numbers |= {(METRICS, name, domain): _number(each) for domain, each in value.items()}
        elif name != "images_encoded":  # what was encoded when; no matter of packs
            numbers[METRICS, name, ""] = _number(value)
    return numbers


def _number(value: Any) -> Number:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


# ---------------------------------------------------------------- recomputing


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
        what = f", and the domains cannot be listed ({_few(unlisted)})" if unlisted else ""
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
        what = f"the text features of {_few(untold)} are not in the bank {where}"
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


def recomputed_numbers(rows: Sequence[Row]) -> Numbers:
    """What accuracy_matrix.csv and metrics.json should say, given the zero-shot row and those after each pack."""
    cells = {
        (MATRIX, row.learnt, domain): value for row in rows[1:] for domain, value in row.accuracy().items()
    }
    return {**cells, **_flat(metrics_of(accuracy_table(rows[1:]), rows[0], 0))}


def compare(recorded: Numbers, recomputed: Numbers, tested: Row) -> list[Difference]:
    """The numbers that are not the same, or stand on one side alone; any row tells how many images were tested on."""
    count = {domain: sum(total) for domain, total in tested.total.items()}
    return [
        Difference(*key, recorded.get(key), recomputed.get(key), count.get(key[2], 0))
        for key in dict.fromkeys([*recomputed, *recorded])
        if not _same(recorded.get(key), recomputed.get(key))
    ]


def _same(a: Number, b: Number) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=SAME, abs_tol=SAME)


# ---------------------------------------------------------------- what has changed


def changes(run: RunRecord, tests: Sequence[TestSet]) -> list[str]:
    """Where configuration, model.json, classes, code or encoder are not what the packs were learnt with."""
    packs = [(pack.domain, pack.meta) for pack in run.packs]
    now = code_versions()
    return [
        *_gathered([(name, _config_lines(run, meta)) for name, meta in packs]),
        *_gathered([(name, _model_lines(run.model, meta)) for name, meta in packs]),
        *_gathered([(name, _class_lines(meta, tests)) for name, meta in packs]),
        *_gathered([(name, differences(meta["versions"], now, "version of ")) for name, meta in packs]),
        *_order_lines(run),
        *encoder_changes(run),
    ]


def _gathered(said: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Each line once, with the packs it is said of unless those are all."""
    owners: dict[str, list[str]] = {}
    for name, lines in said:
        for line in lines:
            owners.setdefault(line, []).append(name)
    return [
        line if len(names) == len(said) else f"{', '.join(names)}: {line}" for line, names in owners.items()
    ]


def _config_lines(run: RunRecord, meta: Mapping[str, Any]) -> list[str]:
    """Where config.yaml would identify a pack otherwise than the pack itself."""
    specs = {spec.name: spec for spec in run.config.domains} if run.config else {}
    names = _domains_of(meta)
    if run.config is None or not specs.keys() >= set(names):
        return [f"{CONFIG}: has no domain {name}" for name in names if run.config and name not in specs]
    domains = [_unlisted(specs[name]) for name in names]
    now = pack_identity(run.config, run.info, domains)["config"]
    return differences(meta["config"], now, f"{CONFIG}: ")


def _unlisted(spec: DomainSpec) -> Domain:
    return Domain(spec.name, (), (), (), spec.prompt, spec.augment, spec.epochs)


def _domains_of(meta: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(domain for domain, _ in meta["labels"]))


def _model_lines(model: ModelFile, meta: Mapping[str, Any]) -> list[str]:
    """Where model.json, which has no digest, contradicts a pack, which has one."""
    learnt = meta["config"]
    method, prediction = learnt.get("method", {}), asdict(model.prediction)
    acting = {key: value for key, value in method.items() if key in prediction}
    return [
        *differences({key: learnt.get(key) for key in model.identity}, model.identity, f"{MODEL}: "),
        *differences(acting, {key: prediction[key] for key in acting}, f"{MODEL}: prediction."),
    ]


def _class_lines(meta: Mapping[str, Any], tests: Sequence[TestSet]) -> list[str]:
    names = _domains_of(meta)
    tested = [list(label) for test in tests if test.domain in names for label in test.all_labels()]
    if not tests or tested == meta["labels"]:
        return []
    return [f"its classes are not those that were tested on ({len(meta['labels'])} and {len(tested)})"]


def _order_lines(run: RunRecord) -> list[str]:
    learnt = [name for pack in run.packs for name in _domains_of(pack.meta)]
    now = [spec.name for spec in run.config.domains] if run.config else learnt
    if run.problems or learnt == now:
        return []
    return [f"{CONFIG}: domains: learnt were {', '.join(learnt)}; listed now are {', '.join(now)}"]


def encoder_changes(run: RunRecord) -> list[str]:
    """Where the encoder's weights, or what the configuration means by it, are not what the packs were learnt with.

    The weights are loaded only where no run has described the file as it is now.
    """
    spec, then = EncoderSpec.from_json(run.model.encoder["spec"]), run.info
    lines = _configured_encoder(run.config, spec) if run.config else []
    try:
        now = known_info(run.features, spec) or load_encoder(spec).info()
    except UNREADABLE as error:
        return [*lines, f"encoder: its weights {spec.pretrained} cannot be looked at: {error}"]
    if now.fingerprint != then.fingerprint:
        what = f"{then.fingerprint[:16]} in the run, {now.fingerprint[:16]} now"
        return [
            *lines,
            f"encoder: {spec.pretrained} is another encoder than the packs were learnt with ({what})",
        ]
    return lines + differences({"tau": then.tau}, {"tau": now.tau}, f"{MODEL}: prediction.")


def _configured_encoder(config: StreamConfig, then: EncoderSpec) -> list[str]:
    try:
        now = resolve_encoder(config.encoder, then.precision)
    except InputError as error:
        return [f"{CONFIG}: {problem}" for problem in error.problems]
    lines = differences(
        {**then.to_json(), "pretrained": ""}, {**now.to_json(), "pretrained": ""}, f"{CONFIG}: encoder."
    )
    if not _same_weights(then.pretrained, now):
        lines.append(f"encoder: {now.pretrained} holds other weights than those kept in {then.pretrained}")
    return lines


def _same_weights(kept: str, now: EncoderSpec) -> bool:
    """Whether the configured weights are those that the run kept, as <storage>/encoders/<SHA-256>/<name>."""
    if now.pretrained == DEMO or now.local_weights is None:
        return kept == now.pretrained
    parts = kept.split("/")
    if len(parts) < 3 or parts[-3] != "encoders":
        return True  # used where they lie: their fingerprint tells
    with now.local_weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(parts[-2])


def own_counts(run: RunRecord, evaluation: Evaluation, rows: Sequence[Row], differ: bool) -> list[str]:
    """What the counts that the run itself kept, by pack and test set, say of a difference."""
    keys = ["zero_shot", *(pack.digest for pack in run.packs)]
    found = [run.store.read_version(f"rows/{key}-{evaluation.digest}.json") for key in keys]
    if not any(found):
        return [
            f"the run kept no counts of these test images in rows/: {TEST_IMAGES} or the images are others"
        ]
    try:
        kept = [Row(**json.loads(data[0])) if data else None for data in found]
    except (ValueError, TypeError) as error:
        return [f"rows/ is damaged: {error}"]
    other = [row.learnt for row, old in zip(rows, kept, strict=True) if old and not _same_counts(row, old)]
    if other:
        return [f"the counts that the run kept in rows/ differ too: {_few(other)}"]
    edited = (
        f"the counts that the run kept in rows/ are as recomputed: {MATRIX} or {METRICS} was changed after it"
    )
    return [edited] if differ else []


def _same_counts(a: Row, b: Row) -> bool:
    return (a.correct, a.total) == (b.correct, b.total)


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


# ---------------------------------------------------------------- images as they are now


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
        names = _domains_of(pack.meta)
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
    said = [f"{len(paths)} {kind} ({_few(sorted(paths))})" for kind, paths in kinds.items() if paths]
    if said:
        return [", ".join(said)]
    return ["the same ones in another order"] if list(then) != list(now) else []


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
