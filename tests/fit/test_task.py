"""Learning tasks in order: killed anywhere it goes on bit by bit; in Ray Train it gives the same packs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from lada_ray.errors import IntegrityError
from lada_ray.features.bank import FeatureBank
from lada_ray.fit import task as module
from lada_ray.fit.classes import ClassImages, Mixtures, fit_classes, read_memory, read_mixtures
from lada_ray.fit.plan import FitPlan, Fitted, TaskPlan, Tensors, TrainImages
from lada_ray.fit.task import (
    Team,
    TrainResources,
    _read_init,
    _read_mixtures,
    _train_loop,
    _views,
    checkpoint_key,
    extend,
    fit_tasks,
    learn_tasks,
    pack_tensors,
    trainer,
)
from lada_ray.head import Prediction, make_head
from lada_ray.method.learner import Learnt, Seen
from lada_ray.method.objective import Classifier, class_logits
from lada_ray.model import cached_pack
from lada_ray.pack import TaskPack
from lada_ray.prepare import plan_tasks
from lada_ray.store import join, open_store

if TYPE_CHECKING:
    from conftest import TinyWorld

STEPS = 3 * 4 + 2 * 4  # 18 and 12 images in batches of 8, 4 epochs


class KilledError(Exception):
    """Stands for SIGKILL."""


class MemoryLedger:
    """A ledger in memory that may kill the learner after its n-th checkpoint or commit."""

    def __init__(self, width: int) -> None:
        self.fitted: list[Fitted] = []
        self.checkpoint: bytes | None = None
        self.width, self.checkpoints = width, 0
        self.state: tuple[str, dict[str, npt.NDArray[Any]]] | None = None
        self.kill_at_checkpoint = self.kill_at_commit = -1

    def packs(self) -> tuple[str, ...]:
        return tuple(f"pack {i}" for i in range(len(self.fitted)))

    def tensors(self, digest: str) -> Tensors:
        return self.fitted[int(digest.split()[1])].tensors

    def commit(self, task: TaskPlan, fitted: Fitted, parent: str | None) -> str:
        assert task.position == len(self.fitted)
        assert parent == (self.packs()[-1] if self.fitted else None)
        self.fitted.append(fitted)
        if len(self.fitted) == self.kill_at_commit:
            raise KilledError
        return self.packs()[-1]

    def save_checkpoint(self, data: bytes) -> None:
        self.checkpoint, self.checkpoints = data, self.checkpoints + 1
        if self.checkpoints == self.kill_at_checkpoint:
            raise KilledError

    def load_checkpoint(self) -> bytes | None:
        return self.checkpoint

    def save_state(self, pack: str, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.state = (pack, dict(state))

    def load_state(self, pack: str) -> Mapping[str, npt.NDArray[Any]] | None:
        return self.state[1] if self.state and self.state[0] == pack else None

    def progress(self, task: TaskPlan, step: int, steps: int) -> None:
        assert 0 <= step <= steps


def learn_remaining(plan: FitPlan, ledger: MemoryLedger, device: str, team: Team | None = None) -> None:
    for _ in learn_tasks(plan, ledger, device, team):
        pass


def same(a: Fitted, b: Fitted) -> bool:
    assert a.tensors.keys() == b.tensors.keys()
    return a.losses == b.losses and all(np.array_equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


@pytest.fixture(scope="module")
def undisturbed(tiny_world: TinyWorld) -> list[Fitted]:
    ledger = MemoryLedger(32)
    learn_remaining(tiny_world.plan(), ledger, "cpu")
    return ledger.fitted


@pytest.fixture(autouse=True)
def _save_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVERY_S", -1.0)


def test_tasks_are_learnt_in_order(tiny_world: TinyWorld, undisturbed: list[Fitted]) -> None:
    pets, wild = undisturbed
    assert (pets.tensors["text"].shape, wild.tensors["text"].shape) == ((3, 32), (2, 32))
    assert (pets.tensors["memory"].shape, len(pets.losses), len(wild.losses)) == ((3, 2, 32), 4, 4)
    assert pets.losses[-1] < pets.losses[0]
    init = read_memory(tiny_world.bank, tiny_world.plan().tasks[0].parts[0].images, 2)
    assert np.abs(pets.tensors["memory"] - init.memory).max() > 1e-4


@pytest.mark.parametrize("checkpoint", [1, 5, 12, 13, STEPS])
def test_killed_after_a_checkpoint_it_goes_on_bit_by_bit(
    tiny_world: TinyWorld, undisturbed: list[Fitted], checkpoint: int
) -> None:
    ledger = MemoryLedger(32)
    ledger.kill_at_checkpoint = checkpoint
    with pytest.raises(KilledError):
        learn_remaining(tiny_world.plan(), ledger, "cpu")
    assert len(ledger.packs()) == (1 if checkpoint > 12 else 0)
    learn_remaining(tiny_world.plan(), ledger, "cpu")
    assert [same(a, b) for a, b in zip(ledger.fitted, undisturbed, strict=True)] == [True, True]
    assert ledger.checkpoints == STEPS  # no step was made twice


def test_killed_after_a_commit_the_next_task_ignores_the_old_checkpoint(
    tiny_world: TinyWorld, undisturbed: list[Fitted]
) -> None:
    ledger = MemoryLedger(32)
    ledger.kill_at_commit = 1
    with pytest.raises(KilledError):
        learn_remaining(tiny_world.plan(), ledger, "cpu")
    assert ledger.checkpoint is not None
    learn_remaining(tiny_world.plan(), ledger, "cpu")
    assert [same(a, b) for a, b in zip(ledger.fitted, undisturbed, strict=True)] == [True, True]


def test_a_checkpoint_of_another_run_is_left_alone(tiny_world: TinyWorld, undisturbed: list[Fitted]) -> None:
    other = MemoryLedger(32)
    other.kill_at_checkpoint = 5
    with pytest.raises(KilledError):
        learn_remaining(tiny_world.plan(tiny_world.config(seed=1)), other, "cpu")
    ledger = MemoryLedger(32)
    ledger.checkpoint = other.checkpoint
    learn_remaining(tiny_world.plan(), ledger, "cpu")
    assert same(ledger.fitted[0], undisturbed[0])


def test_a_checkpoint_belongs_to_everything_that_decides_the_numbers(tiny_world: TinyWorld) -> None:
    plan = tiny_world.plan()
    pets, wild = plan.tasks
    plans = [
        (plan, pets),
        (plan, wild),
        (replace(plan, seed=1), pets),
        (replace(plan, settings=replace(plan.settings, lr=1.0)), pets),
        (replace(plan, tasks=(replace(pets, parts=(shorter(pets.parts[0]),)), wild)), wild),
    ]
    assert len({checkpoint_key(p, t) for p, t in plans}) == len(plans)
    # What comes later, and how many threads there are, changes nothing.
    assert checkpoint_key(replace(plan, tasks=(pets,), threads=9), pets) == checkpoint_key(plan, pets)


def shorter(part: TrainImages) -> TrainImages:
    return replace(part, shas=part.shas[:-1], labels=part.labels[:-1])


def test_nothing_is_trained_without_tuner_and_memory(tiny_world: TinyWorld) -> None:
    config = tiny_world.config(method={"text_tuner": "none", "alpha": 0.0})
    ledger = MemoryLedger(32)
    learn_remaining(tiny_world.plan(config), ledger, "cpu")
    pets = ledger.fitted[0]
    assert (pets.losses, ledger.checkpoints) == ([], 0)
    init = read_memory(tiny_world.bank, tiny_world.plan(config).tasks[0].parts[0].images, 2)
    assert np.array_equal(pets.tensors["memory"], init.memory)


def test_another_encoder_than_the_features_is_refused(tiny_world: TinyWorld, tmp_path: Path) -> None:
    bank = FeatureBank(open_store(tmp_path), "0" * 16, 32)
    with pytest.raises(IntegrityError):
        learn_remaining(replace(tiny_world.plan(), bank=bank), MemoryLedger(32), "cpu")


def test_workers_agree_on_what_the_first_one_read(tiny_world: TinyWorld, undisturbed: list[Fitted]) -> None:
    ledger = MemoryLedger(32)
    ledger.fitted = undisturbed[:1]
    asked: list[object] = []

    def agree(value: object) -> object:
        asked.append(value)
        return () if isinstance(value, tuple) else None  # the first worker read before the commit

    late = MemoryLedger(32)
    late.fitted = list(ledger.fitted)
    with pytest.raises(AssertionError):  # it learns the first task again, and its commit is the second
        learn_remaining(tiny_world.plan(), late, "cpu", Team(agree=agree))
    assert asked == [("pack 0",), None]


# ---------------------------------------------------------------- several domains at once


def joint_plan(world: TinyWorld, **changes: Any) -> FitPlan:
    return world.plan(world.config(method={"kind": "joint"}, **changes))


def test_a_joint_task_counts_classes_through(tiny_world: TinyWorld) -> None:
    (task,) = joint_plan(tiny_world).tasks
    pets, wild = tiny_world.plan().tasks
    assert (task.name, pets.name, wild.name) == ("all domains", "pets", "wild")
    assert (task.classes, pets.classes, wild.classes) == (5, 3, 2)
    assert task.shas == pets.shas + wild.shas
    assert pets.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert task.labels.tolist() == [*pets.labels, *(wild.labels + 3)]
    assert task.labels.dtype == np.int64


def test_epochs_of_a_joint_task_see_each_image_as_often_on_average(tiny_world: TinyWorld) -> None:
    pets, wild = tiny_world.domains
    for epochs, expected in ((9, 6), (1, 3), (None, 4)):  # 18 images for 4 epochs, 12 for these
        stream = tiny_world.stream(
            tiny_world.config(method={"kind": "joint"}), (pets, replace(wild, epochs=epochs))
        )
        (task,) = plan_tasks(stream, tiny_world.images(stream))
        assert task.epochs == expected


def test_a_part_with_fewer_views_has_each_more_often(tiny_world: TinyWorld) -> None:
    plan = joint_plan(tiny_world)
    (task,) = plan.tasks
    pets, wild = task.parts
    names = ("test", "crop_flip/0", "crop_flip/1")
    parts = (replace(pets, views=names), replace(wild, views=names[:2]))
    views = _views(plan, replace(task, parts=parts))
    assert views.shape == (30, 3, 32)
    assert np.array_equal(views[:18], plan.bank.fetch(pets.shas, names))
    assert np.array_equal(views[18:], plan.bank.fetch(wild.shas, names[:2])[:, [0, 1, 0]])
    one = replace(task, parts=(replace(pets, views=("test",)), parts[0]))
    views = _views(plan, one)
    assert all(np.array_equal(views[:18, i], plan.bank.fetch(pets.shas, ["test"])[:, 0]) for i in range(3))


def test_mixtures_and_memory_of_parts_follow_each_other(tiny_world: TinyWorld) -> None:
    plan = joint_plan(tiny_world)
    (task,) = plan.tasks
    pets, wild = (read_mixtures(plan.bank, part.images, 2) for part in task.parts)
    both = _read_mixtures(plan, task)
    assert both.labels.tolist() == [*pets.labels, *(wild.labels + 3)]
    assert set(both.labels.tolist()) == {0, 1, 2, 3, 4}
    for name in ("means", "variances", "weights"):
        assert np.array_equal(getattr(both, name), np.concatenate([getattr(m, name) for m in (pets, wild)]))
    init = _read_init(plan, task)
    memory = [read_memory(plan.bank, part.images, 2) for part in task.parts]
    assert np.array_equal(init.memory, np.concatenate([m.memory for m in memory]))
    assert np.array_equal(init.mask, np.concatenate([m.mask for m in memory]))


def test_memory_of_parts_is_padded_to_the_longest(tiny_world: TinyWorld) -> None:
    plan = joint_plan(tiny_world)
    (task,) = plan.tasks
    pets, wild = task.parts
    few = replace(wild, shas=(wild.shas[0], wild.shas[6]), labels=(0, 1))  # one image per class, one vector
    fit_classes(tiny_world.bank, [few.images], 2, 2, lambda done, total: None)
    assert few.images == ClassImages(((wild.shas[0],), (wild.shas[6],)))
    init = _read_init(plan, replace(task, parts=(pets, few)))
    assert init.memory.shape == (5, 2, 32)
    assert init.mask.tolist() == [[True, True]] * 3 + [[True, False]] * 2
    assert not init.memory[3:, 1].any()


def test_joint_training_learns_all_classes_at_once_and_goes_on_bit_by_bit(tiny_world: TinyWorld) -> None:
    whole, killed = MemoryLedger(32), MemoryLedger(32)
    learn_remaining(joint_plan(tiny_world), whole, "cpu")
    (fitted,) = whole.fitted
    assert {name: fitted.tensors[name].shape for name in ("text", "memory", "mask")} == {
        "text": (5, 32),
        "memory": (5, 2, 32),
        "mask": (5, 2),
    }
    assert (len(fitted.losses), whole.checkpoints) == (4, 4 * 4)  # 30 images in batches of 8, 4 epochs
    assert fitted.losses[-1] < fitted.losses[0]
    killed.kill_at_checkpoint = 7
    with pytest.raises(KilledError):
        learn_remaining(joint_plan(tiny_world), killed, "cpu")
    learn_remaining(joint_plan(tiny_world), killed, "cpu")
    assert same(killed.fitted[0], fitted)
    assert killed.checkpoints == 4 * 4


def test_joint_training_on_one_domain_is_lada(tiny_world: TinyWorld, undisturbed: list[Fitted]) -> None:
    plan = joint_plan(tiny_world)
    (task,) = plan.tasks
    alone = replace(plan, tasks=(replace(task, parts=task.parts[:1]),))
    ledger = MemoryLedger(32)
    learn_remaining(alone, ledger, "cpu")
    assert same(ledger.fitted[0], undisturbed[0])


def small_pack(classes: int, length: int, value: float) -> Tensors:
    memory = np.full((classes, length, 2), value, np.float32)
    ones = np.ones(classes, np.float32)
    mixtures = Mixtures(memory[:, 0], ones * value, ones, np.arange(classes))
    return pack_tensors(Learnt(memory[:, 0], memory), np.ones((classes, length), np.bool_), mixtures)


def test_extend_appends_classes_and_pads_memory() -> None:
    seen = extend(Seen.nothing(2), (small_pack(2, 1, 1.0), None), (small_pack(1, 3, 2.0), None))
    assert seen.text[:, 0].tolist() == [1, 1, 2]
    assert seen.memory[..., 0].tolist() == [[1, 0, 0], [1, 0, 0], [2, 2, 2]]
    assert seen.mask.tolist() == [[True, False, False]] * 2 + [[True] * 3]
    assert seen.labels.tolist() == [0, 1, 2]
    assert seen.variances.tolist() == [1, 1, 2]
    assert seen.owner is None


def test_extend_keeps_the_place_of_classes_that_are_learnt_again() -> None:
    packs = [(small_pack(2, 1, 1.0), None), (small_pack(2, 1, 2.0), (1, 2)), (small_pack(1, 1, 3.0), None)]
    seen = extend(Seen.nothing(2), *packs)
    one_by_one = Seen.nothing(2)
    for pack in packs:
        one_by_one = extend(one_by_one, pack)
    for name, array in vars(seen).items():
        np.testing.assert_array_equal(array, getattr(one_by_one, name))
    assert seen.text[:, 0].tolist() == [1, 2, 2, 3]
    assert seen.memory[:, 0, 0].tolist() == [1, 1, 2, 2, 3]
    assert seen.owner is not None
    assert seen.owner.tolist() == [0, 1, 1, 2, 3]
    assert seen.labels.tolist() == [0, 1, 1, 2, 3]


def test_what_is_trained_on_is_what_predicts_when_a_class_is_learnt_again() -> None:
    rng = np.random.default_rng(0)
    names = ("a", "b"), ("b", "c"), ("d",)

    def pack(classes: tuple[str, ...]) -> TaskPack:
        c, f32 = len(classes), np.float32
        memory, ones = rng.normal(size=(c, 2, 4)).astype(f32), np.ones(c, f32)
        mixtures = Mixtures(memory[:, 0], ones, ones, np.arange(c))
        learnt = Learnt(rng.normal(size=(c, 4)).astype(f32), memory)
        identity = {"labels": [("pets", name) for name in classes], "config": {}, "samples": []}
        return TaskPack.build(identity, None, pack_tensors(learnt, np.ones((c, 2), np.bool_), mixtures))

    packs = [pack(classes) for classes in names]
    seen = Seen.nothing(4)
    for one, columns in zip(packs, (None, (1, 2), None), strict=True):
        seen = extend(seen, (one.tensors, columns))
    assert seen.owner is not None
    unit = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = F.normalize(torch.tensor(seen.text), dim=-1)
    old = Classifier(text, *(torch.tensor(array) for array in (seen.memory, seen.mask, seen.owner)))
    head = make_head(packs, Prediction(20.0, 1.5, 2.0, "gated"), 4)
    assert [name for _, name in head.labels] == ["a", "b", "c", "d"]
    np.testing.assert_allclose(
        class_logits(unit, old, 20.0, 1.5, 2.0).numpy(), head.logits(unit.numpy()), rtol=1e-5
    )


def test_packs_in_half_precision_are_half_as_large() -> None:
    random = np.random.default_rng(0).standard_normal((3, 4, 8), np.float32)
    mixtures = Mixtures(
        random[0], np.full(4, 1e-6, np.float32), np.ones(4, np.float32), np.array([0, 1, 2, 2])
    )
    learnt, mask = Learnt(random[:, 0], random), np.ones((3, 4), np.bool_)
    whole, half = pack_tensors(learnt, mask, mixtures), pack_tensors(learnt, mask, mixtures, "float16")
    for name in ("text", "memory", "means"):
        assert half[name].dtype == np.float16
        assert 2 * half[name].nbytes == whole[name].nbytes
        np.testing.assert_allclose(half[name], whole[name], rtol=5e-4, atol=1e-6)
    for name in ("variances", "weights", "labels", "mask"):  # variances may be as small as 1e-6
        np.testing.assert_array_equal(half[name], whole[name])
    seen = extend(Seen.nothing(8), (half, None), (half, None))
    assert {a.dtype for a in (seen.text, seen.memory, seen.means, seen.variances)} == {np.dtype(np.float32)}


def test_a_stream_of_packs_in_half_precision(tiny_world: TinyWorld, undisturbed: list[Fitted]) -> None:
    """The second task builds on what the first one's pack says, as after a restart; predictions stay."""
    plan = tiny_world.plan()
    plan = replace(plan, settings=replace(plan.settings, pack_precision="float16"))
    ledger = MemoryLedger(32)
    learn_remaining(plan, ledger, "cpu")
    for one, other in zip(ledger.fitted, undisturbed, strict=True):
        assert one.tensors["memory"].dtype == np.float16
        np.testing.assert_allclose(one.tensors["memory"], other.tensors["memory"], atol=2e-3)


def learn_with(world: TinyWorld, workers: int, storage: str) -> tuple[str, tuple[str, ...]]:
    """Learn both domains in Ray Train; returns the model's folder and its digests."""
    config = world.config(f"workers-{workers}")
    with world.run(config) as (run, ledger):
        resources = TrainResources(workers, cpus=0.5, gpus=0)
        fit_tasks(world.plan(config), ledger, resources, storage or join(run.store.uri, "train"), "epoch-1")
        return run.model_store.uri, run.packs


def test_the_controller_gets_nothing_that_imports_torch(tiny_world: TinyWorld, ray_local: None) -> None:
    from ray import cloudpickle

    one, two = (
        trainer(partial(_train_loop, tiny_world.plan(), None), TrainResources(n, 0.5, 0), "/none", "r")
        for n in (1, 2)
    )
    sent = [cloudpickle.dumps((t.train_run_context, t._create_default_callbacks())) for t in (one, two)]
    assert [b"torch" in data for data in sent] == [False, True]
    assert not any(b"lada_ray" in data for data in sent)


def test_ray_train_gives_the_same_packs_with_any_number_of_workers(tiny_world: TinyWorld, s3: str) -> None:
    uri, inside = learn_with(tiny_world, 0, "")
    one_uri, one = learn_with(tiny_world, 1, join(s3, "train"))
    assert len(inside) == 2
    assert one == inside
    two_uri, two = learn_with(tiny_world, 2, "")
    for digest, other in zip(one, two, strict=True):
        a, b = cached_pack(one_uri, digest).tensors, cached_pack(two_uri, other).tensors
        for name in ("text", "memory"):
            assert np.abs(a[name] - b[name]).max() < 1e-4 * np.abs(a[name]).max(), name
    assert read_mixtures(tiny_world.bank, tiny_world.plan().tasks[0].parts[0].images, 2).means.shape[1] == 32
    assert uri != one_uri
