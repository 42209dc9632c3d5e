"""What has changed since a run was learnt: its configuration, model.json, classes, code, encoder and counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lada_ray.config import DEMO, StreamConfig
from lada_ray.domains.base import Domain, DomainSpec
from lada_ray.encoder import EncoderSpec, load_encoder, resolve_encoder
from lada_ray.errors import InputError
from lada_ray.evaluate import TEST_IMAGES, Evaluation, Row, TestSet
from lada_ray.features.text import known_info
from lada_ray.model import MODEL, ModelFile
from lada_ray.pack import code_versions
from lada_ray.run import differences, pack_identity
from lada_ray.verify.numbers import MATRIX, METRICS
from lada_ray.verify.record import CONFIG, UNREADABLE, RunRecord, domains_of, few


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
    names = domains_of(meta)
    if run.config is None or not specs.keys() >= set(names):
        return [f"{CONFIG}: has no domain {name}" for name in names if run.config and name not in specs]
    domains = [_unlisted(specs[name]) for name in names]
    now = pack_identity(run.config, run.info, domains)["config"]
    return differences(meta["config"], now, f"{CONFIG}: ")


def _unlisted(spec: DomainSpec) -> Domain:
    return Domain(spec.name, (), (), (), spec.prompt, spec.augment, spec.epochs)


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
    names = domains_of(meta)
    tested = [list(label) for test in tests if test.domain in names for label in test.all_labels()]
    if not tests or tested == meta["labels"]:
        return []
    return [f"its classes are not those that were tested on ({len(meta['labels'])} and {len(tested)})"]


def _order_lines(run: RunRecord) -> list[str]:
    learnt = [name for pack in run.packs for name in domains_of(pack.meta)]
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
        return [f"the counts that the run kept in rows/ differ too: {few(other)}"]
    edited = (
        f"the counts that the run kept in rows/ are as recomputed: {MATRIX} or {METRICS} was changed after it"
    )
    return [edited] if differ else []


def _same_counts(a: Row, b: Row) -> bool:
    return (a.correct, a.total) == (b.correct, b.total)
