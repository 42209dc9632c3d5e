"""A run's folder: what identifies it, who may write to it, and what starting over leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lada_ray.errors import InputError, IntegrityError, LostLease
from lada_ray.fit.classes import read_memory, read_mixtures
from lada_ray.fit.learners import learn_remaining
from lada_ray.fit.plan import Fitted
from lada_ray.fit.task import pack_tensors, read_seen
from lada_ray.method.learner import Learnt
from lada_ray.model import read_model_file
from lada_ray.pack import TaskPack
from lada_ray.prepare import pack_identities
from lada_ray.run import START, Run, RunLedger, differences
from lada_ray.store import join, open_store

if TYPE_CHECKING:
    from conftest import TinyWorld

    from lada_ray.config import StreamConfig


def silent(message: str) -> None:
    """Say nothing."""


def acquire(config: StreamConfig, fresh: bool = False) -> Run:
    return Run.acquire(config, fresh, silent)


def fitted(world: TinyWorld, position: int, value: float = 0.5) -> Fitted:
    """What learning would leave, without the learning."""
    task = world.plan().tasks[position]
    (part,) = task.parts
    init = read_memory(world.bank, part.images, 2)
    text = np.full((task.classes, 32), value, np.float32)
    mixtures = read_mixtures(world.bank, part.images, 2)
    tensors = pack_tensors(Learnt(text, init.memory + np.float32(value)), init.mask, mixtures)
    return Fitted(tensors, 1_700_000_000.0, 1.5, [2.0, 1.0], {"mixture_components": len(mixtures.weights)})


def commit(world: TinyWorld, ledger: RunLedger, position: int, value: float = 0.5) -> None:
    ledger.commit(
        world.plan().tasks[position],
        fitted(world, position, value),
        ledger.packs()[position - 1] if position else None,
    )


def learnt(world: TinyWorld, config: StreamConfig) -> None:
    """A run that committed both tasks."""
    with world.run(config) as (_, ledger):
        commit(world, ledger, 0)
        commit(world, ledger, 1)


def refused(world: TinyWorld, config: StreamConfig, **stream: Any) -> list[str]:
    """The problems that `begin` finds under this configuration."""
    changed = world.stream(config, **stream)
    identities = pack_identities(changed, world.images(changed))
    with acquire(config) as run, pytest.raises(InputError) as error:
        run.begin(config, world.spec, world.info, identities)
    assert "use another --name, or --fresh to start over" in str(error.value)
    return error.value.problems


# ---------------------------------------------------------------- ownership


def test_every_start_raises_the_epoch_and_keeps_the_id(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("epochs")
    seen = []
    for begun in (False, False, True, True):
        with acquire(config) as run:
            seen.append((run.id, run.epoch))
            if begun:
                run.begin(config, tiny_world.spec, tiny_world.info, ())
                found = read_model_file(run.model_store)
                assert found is not None
                assert (found[0].run, found[0].epoch) == (run.id, run.epoch)
    assert [epoch for _, epoch in seen] == [1, 2, 3, 4]
    # Also before there is a model.json: what a killed first start encoded was encoded by this run.
    assert len({run for run, _ in seen}) == 1


def test_an_older_owner_can_neither_begin_nor_commit(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("owners")
    with acquire(config) as slow:
        pass  # it sleeps, loses its lease, and does not know it
    with tiny_world.run(config) as (run, _):
        with pytest.raises(LostLease, match="taken over"):
            slow.begin(config, tiny_world.spec, tiny_world.info, ())
        identities = pack_identities(tiny_world.stream(config), tiny_world.images(tiny_world.stream(config)))
        old = RunLedger(run.store.uri, slow.epoch, identities)
        with pytest.raises(LostLease):
            commit(tiny_world, old, 0)
        assert run.packs == ()


def test_starting_over_shuts_out_the_owner_before(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("over")
    with tiny_world.run(config) as (first, old):
        pass
    with tiny_world.run(config, fresh=True) as (run, _):
        assert run.epoch == 2
        assert run.id != first.id
        with pytest.raises(LostLease):
            commit(tiny_world, old, 0)
        assert run.packs == ()


def test_starting_over_deletes_when_it_begins_and_not_before(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("fresh")
    learnt(tiny_world, config)
    store = open_store(tiny_world.storage / "fresh")
    store.write("train/epoch-1/snapshot.json", b"{}")
    store.write("report.html", b"")
    with acquire(config, fresh=True) as run:
        pass  # its input is refused
    assert len(run.packs) == 2
    assert store.exists("report.html")
    with tiny_world.run(config, fresh=True) as (run, _):
        left = sorted(entry.key for entry in store.list())
        assert left == sorted(["config.yaml", "lease.json", "model/model.json", START])
        assert run.packs == ()


def test_starting_over_heals_a_damaged_model(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("damaged")
    learnt(tiny_world, config)
    (tiny_world.storage / "damaged" / "model" / "model.json").write_text("{")
    with pytest.raises(IntegrityError):
        acquire(config)
    # The lease was given back: no waiting for the process that failed, which is this one.
    with acquire(config, fresh=True) as run:
        assert run.epoch == 2


# ---------------------------------------------------------------- identity


def test_the_same_run_begins_again(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("again")
    learnt(tiny_world, config)
    with tiny_world.run(config) as (run, ledger):
        assert (len(ledger.packs()), len(run.packs)) == (2, 2)


def test_resources_and_tracking_may_change(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("resources")
    learnt(tiny_world, config)
    changed = tiny_world.config(
        "resources",
        resources={"train_workers": 2, "encoders": 3},
        tracking={"experiment": "elsewhere"},
        max_bad_share=0.5,
    )
    with tiny_world.run(changed) as (run, _):
        assert len(run.packs) == 2
        assert b"elsewhere" in run.store.read("config.yaml")


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"method": {"beta": 2.0}}, ["method.beta: 1.0 in the run, 2.0 now"]),
        ({"seed": 4, "views": 1}, ["seed: 0 in the run, 4 now", "views: 2 in the run, 1 now"]),
        (
            {"shots": 3, "method": {"lr": 0.1}},
            ["method.lr: 0.01 in the run, 0.1 now", "shots: None in the run, 3 now"],
        ),
    ],
)
def test_what_identifies_a_run_may_not_change(
    tiny_world: TinyWorld, changes: dict[str, Any], lines: list[str]
) -> None:
    name = "identity-" + "-".join(changes)
    with tiny_world.run(tiny_world.config(name)):
        pass
    assert sorted(refused(tiny_world, tiny_world.config(name, **changes))) == lines


def test_another_encoder_is_refused(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("encoder")
    with tiny_world.run(config):
        pass
    other = replace(tiny_world.info, fingerprint="0" * 64)
    with (
        acquire(config) as run,
        pytest.raises(InputError, match=r"encoder: other weights \(.* in the run, .* now\)"),
    ):
        run.begin(config, tiny_world.spec, other, ())


def test_domains_are_appended_at_the_end(tiny_world: TinyWorld) -> None:
    pets, wild = tiny_world.domains
    config = tiny_world.config("order")
    short = tiny_world.stream(config, domains=(pets,))
    with acquire(config) as run:
        run.begin(config, tiny_world.spec, tiny_world.info, pack_identities(short, tiny_world.images(short)))
    with tiny_world.run(config) as (_, ledger):
        commit(tiny_world, ledger, 0)
    with tiny_world.run(config) as (run, ledger):
        commit(tiny_world, ledger, 1)
        assert len(run.packs) == 2
    line = "domains: task {} learnt {}, now it is {}; new domains go to the end".format
    expected = [line(1, "pets", "wild"), line(2, "wild", "pets")]
    assert refused(tiny_world, config, domains=(wild, pets)) == expected
    assert refused(tiny_world, config, domains=(pets,)) == [line(2, "wild", "no domain")]


def test_learnt_domains_keep_their_images_and_names(tiny_world: TinyWorld) -> None:
    pets, wild = tiny_world.domains
    config = tiny_world.config("images")
    learnt(tiny_world, config)
    fewer = replace(pets, train=pets.train[1:])
    (line,) = refused(tiny_world, config, domains=(fewer, wild))
    assert line.startswith("domain pets: training images: 1 are gone (")
    assert line.endswith("0 are new (none)")
    turned = replace(pets, train=(pets.train[1], pets.train[0], *pets.train[2:]))
    moved = tuple(replace(s, path=f"x{5 - i}" if i < 2 else s.path) for i, s in enumerate(pets.train))
    assert refused(tiny_world, config, domains=(replace(pets, train=moved), wild))[0].startswith(
        "domain pets: training"
    )
    with tiny_world.run(config):
        pass
    renamed = replace(pets, class_names=("cat", "hound", "red fox"), prompt="a drawing of a {}.", epochs=9)
    assert refused(tiny_world, config, domains=(renamed, wild)) == [
        "domain pets: epochs: 4 in the run, 9 now",
        "domain pets: prompt: a photo of a {}. in the run, a drawing of a {}. now",
        "domain pets: classes: 1 are gone (dog), 1 are new (hound)",
    ]
    # Neither the order of the listing nor the test images are part of what was learnt.
    stream = tiny_world.stream(config, domains=(replace(turned, test=pets.test[:2]), wild))
    with acquire(config) as run:
        run.begin(
            config, tiny_world.spec, tiny_world.info, pack_identities(stream, tiny_world.images(stream))
        )


def test_differences_names_nested_keys() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": None}
    assert differences(old, new) == ["a.c: 2 in the run, 5 now", "d: 3 in the run, None now"]


def test_a_setting_that_is_not_said_is_what_it_was_before() -> None:
    old = {"method": {"kind": "lada", "beta": 1.0}}
    later = {"method": {**old["method"], "replay_rows": 512}}
    assert differences(old, later) == ["method.replay_rows: None in the run, 512 now"]
    assert differences(later, old) == ["method.replay_rows: 512 in the run, None now"]
    assert differences(old, {"method": {**old["method"], "replay_rows": None}}) == []


def test_of_another_kind_the_kind_alone_differs() -> None:
    old = {"method": {"kind": "lada", "beta": 1.0, "lr": 0.1}, "seed": 0}
    new = {"method": {"kind": "ncm"}, "seed": 1}
    assert differences(old, new) == ["method.kind: lada in the run, ncm now", "seed: 0 in the run, 1 now"]
    same = {"method": {"kind": "lada", "beta": 2.0, "lr": 0.1}, "seed": 0}
    assert differences(old, same) == ["method.beta: 1.0 in the run, 2.0 now"]


def test_another_learner_is_refused(tiny_world: TinyWorld) -> None:
    with tiny_world.run(tiny_world.config("kind")):
        pass
    other = tiny_world.config("kind", method={"kind": "rail_dual", "beta": 2.0})
    # Its settings have no meaning for the other, but for the views that it does not look at.
    assert refused(tiny_world, other) == [
        "method.kind: lada in the run, rail_dual now",
        "views: 2 in the run, 0 now",
    ]


def test_settings_of_lada_do_not_identify_a_run_in_closed_form(tiny_world: TinyWorld) -> None:
    with tiny_world.run(tiny_world.config("closed", method={"kind": "ncm"})) as (run, ledger):
        tensors = {"text": np.zeros((3, 32), np.float32), "prototypes": np.ones((3, 32), np.float32)}
        ledger.commit(tiny_world.plan().tasks[0], Fitted(tensors, 0.0, 1.0), None)
        meta = TaskPack.read(run.model_store, run.packs[0]).meta["config"]
        assert (meta["method"], meta["views"]) == ({"kind": "ncm"}, 0)
        assert not {"augment", "epochs"} & meta.keys()
    changed = tiny_world.config("closed", method={"kind": "ncm", "beta": 7.0, "epochs": 9}, views=1)
    with tiny_world.run(changed) as (run, _):
        assert len(run.packs) == 1


def test_a_pack_of_all_domains_names_what_each_was_learnt_with(tiny_world: TinyWorld) -> None:
    config = tiny_world.config("jointly", method={"kind": "joint"})
    pets, wild = tiny_world.domains
    (identity,) = pack_identities(tiny_world.stream(config, (pets, replace(wild, prompt="a {}.", epochs=9))))
    assert identity["labels"] == [
        *(["pets", "cat"], ["pets", "dog"], ["pets", "red fox"]),
        *(["wild", "dog"], ["wild", "wolf"]),
    ]
    assert identity["config"]["domains"] == {
        "pets": {"prompt": "a photo of a {}.", "augment": "crop_flip", "epochs": 4},
        "wild": {"prompt": "a {}.", "augment": "crop_flip", "epochs": 9},
    }
    with tiny_world.run(config) as (run, ledger):
        (task,) = tiny_world.plan(config).tasks
        ledger.commit(task, Fitted({"text": np.zeros((5, 32), np.float32)}, 0.0, 1.0), None)
        found = read_model_file(run.model_store)
        assert found is not None
        assert found[0].prompts == {"pets": "a photo of a {}.", "wild": "a photo of a {}."}
        record = run.record(run.packs[0])
        counts = record["counts"]
        assert (record["domain"], counts["classes"], counts["train_images"]) == ("all domains", 5, 30)


# ---------------------------------------------------------------- ledger


def test_the_ledger_gives_back_what_was_committed(tiny_world: TinyWorld) -> None:
    with tiny_world.run(tiny_world.config("ledger")) as (run, ledger):
        assert (len(ledger.packs()), read_seen(tiny_world.plan(), ledger, ledger.packs()).text.shape) == (
            0,
            (0, 32),
        )
        commit(tiny_world, ledger, 0, 0.25)
        commit(tiny_world, ledger, 1, 0.75)
        seen = read_seen(tiny_world.plan(), ledger, ledger.packs())
        assert seen.text[:, 0].tolist() == [0.25] * 3 + [0.75] * 2
        pets, wild = fitted(tiny_world, 0, 0.25), fitted(tiny_world, 1, 0.75)
        assert np.array_equal(seen.memory, np.concatenate([t.tensors["memory"] for t in (pets, wild)]))
        assert np.array_equal(
            seen.labels, np.concatenate([pets.tensors["labels"], wild.tensors["labels"] + 3])
        )
        assert seen.mask.dtype == np.bool_
        first, second = (TaskPack.read(run.model_store, digest) for digest in run.packs)
        assert (first.parent, second.parent, second.domain) == (None, first.digest, "wild")
        assert sorted(first.meta["config"]) == sorted(
            ["encoder", "method", "seed", "shots", "views", "prompt", "augment", "epochs"]
        )


def test_a_worker_thought_dead_commits_the_same_task_once(tiny_world: TinyWorld) -> None:
    with tiny_world.run(tiny_world.config("zombie")) as (run, ledger):
        commit(tiny_world, ledger, 0)
        commit(tiny_world, ledger, 0)
        commit(tiny_world, ledger, 1)
        commit(tiny_world, ledger, 0)
        assert len(run.packs) == 2


def test_the_side_file_tells_what_the_digest_leaves_out(tiny_world: TinyWorld) -> None:
    with tiny_world.run(tiny_world.config("records")) as (run, ledger):
        commit(tiny_world, ledger, 0)
        (digest,) = run.packs
        record = json.loads(run.store.read(f"tasks/{digest}.json"))
    assert (record["digest"], record["parent"], record["domain"], record["position"]) == (
        digest,
        None,
        "pets",
        0,
    )
    assert (record["started"], record["finished"]) == (
        "2023-11-14T22:13:20+00:00",
        "2023-11-14T22:13:21+00:00",
    )
    assert (record["timings"], record["loss"]) == ({"fit": 1.5}, [2.0, 1.0])
    counts = record["counts"]
    assert (counts["classes"], counts["train_images"], counts["mixture_components"]) == (3, 18, 6)
    assert counts["pack_bytes"] == 4 * 32 * (3 + 6 + 6) + 6 + 2 * 4 * 6 + 8 * 6
    assert record["params"]["method.beta"] == 1.0
    pack = (tiny_world.storage / "records" / "model" / "packs" / digest / "pack.json").read_text()
    assert not any(word in pack for word in ("records", str(tiny_world.storage), "2023-", "train_workers"))


def test_the_newest_checkpoint_is_kept(tiny_world: TinyWorld) -> None:
    with tiny_world.run(tiny_world.config("checkpoints")) as (_, ledger):
        assert ledger.load_checkpoint() is None
        ledger.save_checkpoint(b"one")
        ledger.save_checkpoint(b"two")
        assert ledger.load_checkpoint() == b"two"


def test_the_newest_state_of_a_solver_is_kept_beside_the_packs(tiny_world: TinyWorld) -> None:
    with tiny_world.run(tiny_world.config("solver")) as (run, ledger):
        assert ledger.load_state("a") is None
        ledger.save_state("a", {"factor": np.eye(2), "features": np.ones((1, 2), np.float32)})
        kept = ledger.load_state("a")
        assert kept is not None
        assert (kept["factor"].dtype, kept["features"].dtype) == (np.float64, np.float32)
        assert np.array_equal(kept["factor"], np.eye(2))
        ledger.save_state("b", {"factor": np.zeros((3, 3))})
        assert ledger.load_state("a") is None
        kept = ledger.load_state("b")
        assert kept is not None
        assert kept["factor"].shape == (3, 3)
        run.tidy()  # it serves the domains that are appended, not a start after a kill
        assert [entry.key for entry in run.store.list("solver")] == ["solver/b.safetensors"]
    with tiny_world.run(tiny_world.config("solver"), fresh=True) as (run, ledger):
        assert ledger.load_state("b") is None


def test_progress_is_passed_on(tiny_world: TinyWorld) -> None:
    told: list[tuple[str, int, int]] = []
    ledger = RunLedger("/nowhere", 1, (), lambda *state: told.append(state))
    ledger.progress(tiny_world.plan().tasks[1], 3, 8)
    replace(ledger, watch=None).progress(tiny_world.plan().tasks[1], 4, 8)
    assert told == [("wild", 3, 8)]


def test_neither_name_nor_storage_of_a_run_is_in_its_packs(tiny_world: TinyWorld, s3: str) -> None:
    digests = []
    for config in (tiny_world.config("name-1"), tiny_world.config("name-2", storage=join(s3, "runs"))):
        with tiny_world.run(config) as (run, ledger):
            list(learn_remaining(tiny_world.plan(config), ledger, "cpu"))
            digests.append(run.packs)
        # The next start finds them learnt.
        with tiny_world.run(config) as (run, ledger):
            assert (
                run.epoch,
                len(ledger.packs()),
                read_seen(tiny_world.plan(), ledger, ledger.packs()).text.shape,
            ) == (
                2,
                2,
                (5, 32),
            )
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2
