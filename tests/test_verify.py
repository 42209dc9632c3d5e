"""Whether a run is what it says: an untouched one is, and whatever is changed is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import verify as job
from lada_ray.config import StreamConfig
from lada_ray.console import Console
from lada_ray.domains import DemoSpec, Domain
from lada_ray.errors import InputError, IntegrityError
from lada_ray.evaluate import TestSet, evaluate_row, load_tests, read_tests, write_tests
from lada_ray.features.bank import FeatureBank
from lada_ray.model import read_model_file
from lada_ray.results import accuracy_table, metrics_of
from lada_ray.store import join, open_store
from lada_ray.stream import run_stream
from lada_ray.verify import Difference, Verdict, show, verify
from lada_ray.verify.images import changed, list_domains
from lada_ray.verify.numbers import MATRIX, METRICS, compare
from tests.conftest import TINY_DOMAINS, write_tiny_clip

if TYPE_CHECKING:
    from tests.conftest import TinyWorld

CELLS, METRIC_NUMBERS = 9, 6 + 3


@pytest.fixture(scope="module")
def learnt(
    tiny_domains: tuple[Domain, ...], tmp_path_factory: pytest.TempPathFactory, ray_local: None
) -> tuple[Path, Path]:
    """A storage with a finished run of two shots per class, and the folder of its images; not to be changed."""
    folder = tmp_path_factory.mktemp("learnt")
    shutil.copytree(Path(tiny_domains[0].train[0].uri).parents[3], folder / "images")
    architecture, weights = write_tiny_clip(folder)
    values = {
        "name": "run",
        "storage": str(folder / "storage"),
        "encoder": {"model": "tiny", "pretrained": str(weights), "architecture": str(architecture)},
        "views": 1,
        "shots": 2,
        "method": {"epochs": 2, "batch_size": 8, "memory_per_class": 2, "mixture_components": 1},
        "domains": [
            {"name": name, "kind": "folder", "root": str(folder / "images" / name)} for name in TINY_DOMAINS
        ],
        "resources": {"train_workers": 0},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    run_stream(StreamConfig.model_validate(values), console=Console(quiet=True))
    return folder / "storage", folder / "images"


@pytest.fixture
def run(learnt: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run with its storage."""
    shutil.copytree(learnt[0], tmp_path / "storage")
    return tmp_path / "storage" / "run"


@pytest.fixture
def replaced(learnt: tuple[Path, Path]) -> Callable[..., Any]:
    """Replace an image of the run by another content (None: remove it), for a while."""

    @contextmanager
    def replace(path: str, data: bytes | None) -> Iterator[None]:
        file = learnt[1] / path
        before = file.read_bytes() if file.exists() else None
        try:
            file.unlink(missing_ok=True)
            if data is not None:
                file.write_bytes(data)
            yield
        finally:
            file.unlink(missing_ok=True)
            if before is not None:
                file.write_bytes(before)

    return replace


def verified(run: Path | str) -> Verdict:
    return verify(str(run), Console(quiet=True))


def samples(run: Path, position: int) -> list[str]:
    """Paths of the training images that a pack records."""
    packs = json.loads((run / "model" / "model.json").read_text())["packs"]
    meta = json.loads((run / "model" / "packs" / packs[position] / "pack.json").read_text())
    return [path for path, _ in meta["samples"]]


def test_an_untouched_run_is_the_same(learnt: tuple[Path, Path]) -> None:
    before = {file: file.stat().st_mtime_ns for file in learnt[0].rglob("*")}
    verdict = verified(learnt[0] / "run")
    assert verdict == Verdict(str(learnt[0] / "run"), CELLS + METRIC_NUMBERS, (), (), ())
    assert verdict.same
    assert {file: file.stat().st_mtime_ns for file in learnt[0].rglob("*")} == before


def test_a_copied_storage_is_the_same(run: Path) -> None:
    assert verified(run).same
    assert verified(run).notes == ()


def test_a_run_in_s3_is_the_same(run: Path, s3: str) -> None:
    store = open_store(join(s3, "verified"))
    here = open_store(run.parent)
    for entry in here.list():
        store.write(entry.key, here.read(entry.key))
    verdict = verified(join(store.uri, "run"))
    assert (verdict.same, verdict.notes, verdict.cells) == (True, (), CELLS + METRIC_NUMBERS)
    FeatureBank.open(store.child("features"), _feature_key(run)).prune(0)
    (problem,) = verified(join(store.uri, "run")).problems
    assert "36 of 36 test features are not in the bank s3://" in problem


def test_an_edited_cell_is_named(run: Path) -> None:
    lines = (run / MATRIX).read_text().splitlines()
    cells = lines[2].split(",")
    recorded = float(cells[3])
    cells[3] = str(recorded + 25)
    (run / MATRIX).write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]) + "\n")
    verdict = verified(run)
    _, flags, toys = TINY_DOMAINS
    assert verdict.differences == (Difference(MATRIX, flags, toys, recorded + 25, recorded, 12),)
    assert verdict.differences[0].images == "-3 of 12"
    assert not verdict.same
    (note,) = verdict.notes
    assert "rows/ are as recomputed: accuracy_matrix.csv or metrics.json was changed after it" in note


def test_an_edited_metric_and_a_missing_row_are_named(run: Path) -> None:
    metrics = json.loads((run / METRICS).read_text())
    domain = TINY_DOMAINS[1]
    (run / METRICS).write_text(
        json.dumps({**metrics, "last": 99.0, "zero_shot_per_domain": {}, "images_encoded": 0})
    )
    lines = (run / MATRIX).read_text().splitlines()
    (run / MATRIX).write_text("\n".join(lines[:-1]))
    found = {(d.row, d.domain): d for d in verified(run).differences}
    assert len(found) == 3 + 1 + 3
    assert (found["last", ""].recorded, found["last", ""].recomputed) == (99.0, metrics["last"])
    assert found[TINY_DOMAINS[2], domain].recorded is None
    assert found["zero_shot_per_domain", domain].recomputed == metrics["zero_shot_per_domain"][domain]
    assert found["zero_shot_per_domain", domain].images == ""


def test_records_that_cannot_be_read_are_told(run: Path) -> None:
    (run / MATRIX).unlink()
    (run / METRICS).write_text("{")
    missing, damaged = verified(run).problems
    assert missing.startswith("accuracy_matrix.csv is missing")
    assert damaged.startswith("metrics.json is damaged")


def test_flipped_bytes_of_packs_are_all_told(run: Path) -> None:
    packs = json.loads((run / "model" / "model.json").read_text())["packs"]
    for digest, name in ((packs[0], "tensors.safetensors"), (packs[2], "pack.json")):
        file = run / "model" / "packs" / digest / name
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
    verdict = verified(run)
    assert (verdict.cells, verdict.same) == (0, False)
    first, last = verdict.problems
    assert f"{packs[0]}/tensors.safetensors was changed or cut short" in first
    assert f"{packs[2]}/pack.json was changed" in last


def test_packs_in_another_order_are_told(run: Path) -> None:
    file = run / "model" / "model.json"
    model = json.loads(file.read_text())
    model["packs"] = [model["packs"][i] for i in (1, 0, 2)]
    file.write_text(json.dumps(model))
    problems = verified(run).problems
    assert [p.endswith("does not follow the pack before it") for p in problems] == [True] * 3


def test_a_changed_training_image_is_named(
    run: Path, replaced: Callable[..., Any], tiny_domains: tuple[Domain, ...]
) -> None:
    path = samples(run, 0)[0]
    other = Path(tiny_domains[1].train[0].uri).read_bytes()
    with replaced(f"fruit/{path}", other):
        verdict = verified(run)
    assert verdict.same
    assert verdict.notes == (f"fruit: training images: 1 changed ({path})",)


def test_a_removed_shot_and_its_substitute_are_named(run: Path, replaced: Callable[..., Any]) -> None:
    path = samples(run, 1)[0]
    with replaced(f"flags/{path}", None):
        (note,) = verified(run).notes
    assert note.startswith(f"flags: training images: 1 gone ({path}), 1 new (train/class_0/")


def test_touching_a_file_changes_nothing(run: Path, learnt: tuple[Path, Path]) -> None:
    (learnt[1] / "fruit" / samples(run, 0)[0]).touch()
    assert verified(run).notes == ()


def test_a_replaced_and_a_new_test_image_are_named(
    run: Path, replaced: Callable[..., Any], tiny_domains: tuple[Domain, ...]
) -> None:
    other = Path(tiny_domains[1].train[0].uri).read_bytes()
    with replaced("toys/test/class_1/2.png", other), replaced("toys/test/class_1/9.png", other):
        verdict = verified(run)
    # What was tested on is kept: the numbers can still be recomputed.
    assert verdict.same
    assert verdict.notes == ("toys: test images: 1 changed (test/class_1/2.png), 1 new (test/class_1/9.png)",)


def test_sources_out_of_reach_are_said(run: Path, learnt: tuple[Path, Path]) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(learnt[1]), "/nowhere"))
    verdict = verified(run)
    assert verdict.same
    assert [note.partition(":")[0] for note in verdict.notes] == list(TINY_DOMAINS)
    assert "its images cannot be compared" in verdict.notes[0]
    assert "/nowhere/fruit" in verdict.notes[0]


def test_a_verification_draws_no_demo(tmp_path: Path) -> None:
    spec = DemoSpec(name="demo", drawing="shapes", train_per_class=1, test_per_class=1)
    domains, (note,) = list_domains([spec], str(tmp_path))
    assert (domains, list(tmp_path.iterdir())) == ([], [])
    assert (
        note == f"demo: its images cannot be compared: its pictures are not in {tmp_path}/demo-images/shapes"
    )
    spec.load(str(tmp_path))
    (domain,), notes = list_domains([spec], str(tmp_path))
    assert (domain.name, notes) == ("demo", [])


def test_a_run_that_kept_no_test_sets_is_verified_from_its_sources(
    run: Path, replaced: Callable[..., Any], learnt: tuple[Path, Path]
) -> None:
    (run / "test_images.parquet").unlink()
    verdict = verified(run)
    assert (verdict.same, verdict.notes) == (True, ())
    with replaced("toys/test/class_1/2.png", None):
        verdict = verified(run)
    assert any("kept no counts of these test images" in note for note in verdict.notes)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(learnt[1]), "/nowhere"))
    (problem,) = verified(run).problems
    assert problem.startswith(
        "test_images.parquet is missing, and the domains cannot be listed (fruit, flags"
    )
    assert f"--config {run}/config.yaml" in problem


def test_another_version_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lada_ray.pack import code_versions

    now = {**code_versions(), "torch": "9.9"}
    monkeypatch.setattr("lada_ray.verify.changes.code_versions", lambda: now)
    verdict = verified(run)
    assert verdict.same
    assert verdict.notes == (f"version of torch: {code_versions()['torch']} in the run, 9.9 now",)


def test_an_edited_configuration_is_told(run: Path) -> None:
    file = run / "config.yaml"
    values = file.read_text().replace("seed: 0", "seed: 3").replace("beta: 1.0", "beta: 2.0")
    file.write_text(values)
    notes = verified(run).notes
    assert notes[:2] == (
        "config.yaml: method.beta: 1.0 in the run, 2.0 now",
        "config.yaml: seed: 0 in the run, 3 now",
    )
    assert all("training images" in note for note in notes[2:])  # another seed chooses other shots
    file.write_text("seed: [")
    verdict = verified(run)
    assert verdict.same
    assert verdict.notes[0].startswith("config.yaml is no YAML")


def test_edited_prediction_parameters_are_told(run: Path) -> None:
    file = run / "model" / "model.json"
    model = json.loads(file.read_text())
    model["prediction"]["alpha"] = 1e6
    model["prediction"]["tau"] = 1.0
    file.write_text(json.dumps(model))
    verdict = verified(run)
    assert verdict.differences != ()
    assert "model.json: prediction.alpha: 1.0 in the run, 1000000.0 now" in verdict.notes
    assert any(note.startswith("model.json: prediction.tau: 1.0 in the run, ") for note in verdict.notes)
    assert any("kept in rows/ differ too" in note for note in verdict.notes)


def test_other_weights_are_told(run: Path, learnt: tuple[Path, Path]) -> None:
    weights = learnt[0].parent / "tiny.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + bytes(4))
        (note,) = verified(run).notes
    finally:
        weights.write_bytes(before)
    assert note.startswith(f"encoder: {weights} holds other weights than those kept in ")
    kept = next((learnt[0] / "encoders").rglob("*.safetensors"))
    try:
        kept.write_bytes(before[:-4] + bytes(4))
        (note,) = verified(run).notes
        assert "is another encoder than the packs were learnt with" in note
        kept.unlink()
        (note,) = verified(run).notes
        assert f"encoder: its weights {kept} cannot be looked at" in note
    finally:
        kept.write_bytes(before)
    assert verified(run).notes == ()  # described by no run with this time: loaded, and found to be the same


def test_a_pruned_bank_is_told(run: Path) -> None:
    FeatureBank.open(open_store(run.parent / "features"), _feature_key(run)).prune(0)
    verdict = verified(run)
    assert verdict.cells == 0
    (problem,) = verdict.problems
    assert problem.startswith("36 of 36 test features are not in the bank")
    assert problem.endswith("it encodes them again")


def test_missing_text_features_are_told(run: Path) -> None:
    for file in (run.parent / "features" / _feature_key(run) / "text").iterdir():
        file.unlink()
    (problem,) = verified(run).problems
    assert problem.startswith("the text features of fruit, flags, toys are not in the bank")


def test_damage_of_the_bank_is_found(run: Path) -> None:
    parts = list((run.parent / "features" / _feature_key(run) / "parts").iterdir())
    for part in parts:
        _without_features(part)
    verdict = verified(run)
    assert verdict.differences != ()
    assert any("was changed or cut short" in note for note in verdict.notes)
    for part in parts:
        part.write_bytes(part.read_bytes()[:100])
    first, *more = verified(run).problems
    assert "cannot be read" in first
    assert len(more) == len(parts)


def _without_features(part: Path) -> None:
    """Replace every feature by the same one."""
    table = pq.read_table(part)
    position = table.schema.get_field_index("feature")
    feature = table["feature"].combine_chunks()
    ones = type(feature).from_arrays(np.ones(len(feature.flatten()), np.float32), feature.type.list_size)
    pq.write_table(table.set_column(position, "feature", ones), part)


def _feature_key(run: Path) -> str:
    return json.loads((run / "model" / "model.json").read_text())["identity"]["encoder"]


def test_an_unfinished_run_is_not_judged(run: Path) -> None:
    file = run / "model" / "model.json"
    model = json.loads(file.read_text())
    file.write_text(json.dumps({**model, "packs": model["packs"][:2]}))
    assert verified(run).problems == ("not learnt yet: toys; the run's command goes on",)
    file.write_text(json.dumps({**model, "packs": []}))
    assert verified(run).problems[0].startswith("nothing is learnt yet")


def test_a_production_model_is_verified_by_its_own_command(run: Path) -> None:
    file = run / "model" / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "history": [{"version": 1}]}))
    with pytest.raises(
        InputError, match=rf"by now: python jobs/model.py verify --model run --storage {run.parent}"
    ):
        verified(run)


def test_other_folders_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match="give the folder of one run"):
        verified(run.parent)
    (run / "model" / "model.json").write_text("{")
    with pytest.raises(IntegrityError, match="is damaged"):
        verified(run)


@pytest.mark.parametrize("kind", ["joint", "zero_shot", "ncm", "rail_primal", "rail_dual"])
def test_every_learner_is_verified(tiny_world: TinyWorld, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lada_ray.fit import closed_form
    from lada_ray.fit.learners import learn_remaining
    from lada_ray.prepare import plan_evaluation

    monkeypatch.setattr(closed_form, "RailPrimal", partial(closed_form.RailPrimal, dimensions=200))
    config = tiny_world.config(f"verify-{kind}", method={"kind": kind})
    stream = tiny_world.stream(config)
    with tiny_world.run(config) as (owned, ledger):
        list(learn_remaining(tiny_world.plan(config), ledger, "cpu"))
        store, digests, names = owned.store, owned.packs, [name for name, _ in stream.tasks]
        evaluation = plan_evaluation(stream, tiny_world.images(stream), owned.model_store.uri)
    write_tests(store, evaluation.tests)
    features = load_tests(evaluation)
    rows = [evaluate_row(evaluation, digests[:k], name, features) for k, name in enumerate(["zero", *names])]
    store.write(MATRIX, accuracy_table(rows[1:]).to_csv().encode())
    store.write(METRICS, json.dumps(metrics_of(accuracy_table(rows[1:]), rows[0], 7)).encode())
    verdict = verified(store.uri)
    assert verdict.same
    assert verdict.cells == 2 * len(digests) + 6 + 2
    assert len(digests) == (1 if kind == "joint" else 2)
    assert [note for note in verdict.notes if "in the run" in note] == []


def test_a_run_without_counts_of_its_own_can_be_read(learnt_run: tuple[TinyWorld, str]) -> None:
    verdict = verified(learnt_run[1])
    assert verdict.problems[0].startswith("test_images.parquet is missing, and the domains cannot be listed")
    found = read_model_file(open_store(learnt_run[1]).child("model"))
    assert found is not None
    assert len(found[0].packs) == 2


def test_test_sets_come_back_as_they_were(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    tests = (
        TestSet(
            "pets", ("cat", "größe 1"), ("a cat", "a größe"), ("a" * 64, "b" * 64), (1, 0), ("x/1", "y/1")
        ),
        TestSet("empty", ("none",), ("a none",), (), (), ()),
        TestSet("wild", ("cat",), ("wild cat",), ("c" * 64,), (0,)),
    )
    write_tests(store, tests)
    assert read_tests(store) == tests
    table = pq.read_table(tmp_path / "test_images.parquet")
    assert table.column_names == ["domain", "class", "path", "sha256"]
    assert table["class"].to_pylist() == ["größe 1", "cat", "cat"]
    (tmp_path / "test_images.parquet").write_bytes(b"PAR1")
    with pytest.raises(IntegrityError, match=r"test_images\.parquet is damaged"):
        read_tests(store)


def test_changes_are_counted_by_hand() -> None:
    then = [("a", "1", "x"), ("b", "2", "x"), ("c", "3", "y"), ("d", "4", "y")]
    now = [("a", "1", "y"), ("b", "9", "x"), ("d", "4", "y"), ("e", "5", "x")]
    others = "1 changed (b), 1 in another class (a), 1 {} (c), 1 new (e)"
    assert changed(then, now, "abde") == [others.format("gone")]
    assert changed(then, now, "abcde") == [others.format("no longer used")]
    assert changed(then, then, "abcd") == []
    assert changed(then, then[::-1], "abcd") == ["the same ones in another order"]
    # Joint training: the same path in two domains.
    twice = [("a", "1", ""), ("a", "2", "")], [("a", "1", ""), ("a", "3", "")]
    assert changed(*twice, "a") == ["1 changed (a)"]


def test_undefined_metrics_are_no_difference() -> None:
    from lada_ray.evaluate import Row

    tested = Row("zero-shot", {"a": [1]}, {"a": [2]})
    key = (METRICS, "transfer", "")
    assert compare({key: None}, {key: None}, tested) == []
    assert compare({}, {key: None}, tested) == []
    assert compare({key: 1.0}, {key: None}, tested) == [Difference(*key, 1.0, None)]
    assert compare({key: 50.0 + 1e-12}, {key: 50.0}, tested) == []


def test_the_last_line_is_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*parts: Any) -> list[str]:
        show(Verdict("runs/a", *parts), Console())
        return capsys.readouterr().out.splitlines()

    assert printed(18, (), (), ()) == ["runs/a is the same: all 18 numbers are the recorded ones"]
    assert printed(18, (), ("torch",), ()) == [
        "warning: torch",
        "runs/a is the same: all 18 numbers are the recorded ones; but 1 thing has changed since",
    ]
    assert printed(0, (), (), ("gone",)) == ["  - gone", "runs/a cannot be verified"]
    lines = printed(
        18, (Difference(MATRIX, "a", "b", 50.0, 25.0, 4), Difference(METRICS, "last", "", None, 1.0)), (), ()
    )
    assert lines[1].split() == [MATRIX, "a", "b", "50", "25", "-1", "of", "4"]
    assert lines[2].split() == [METRICS, "last", "none", "1"]
    assert "another processor may round differently" in lines[3]
    assert lines[4] == "runs/a differs: 2 of 18 numbers are not the recorded ones"


def test_the_job_exits_with_the_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run} is the same: all 18 numbers are the recorded ones\n"
    (run / METRICS).write_text("{}")
    assert job.main([str(run)]) == 1
    assert "9 of 18 numbers are not the recorded ones" in capsys.readouterr().out
    # What cannot be verified is not what differs.
    (run / METRICS).unlink()
    assert job.main([str(run)]) == 2
    assert capsys.readouterr().out.endswith(f"{run} cannot be verified\n")
    (run / "model" / "model.json").write_text("{")
    assert job.main([str(run)]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert job.main([str(run.parent)]) == 2
    assert "has no model/model.json" in capsys.readouterr().err
    assert job.main(["--nonsense"]) == 2
