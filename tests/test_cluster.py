"""Resources, from a laptop to many machines; never all cores for encoders: they would wait for ever."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from lada_ray import cluster
from lada_ray.cluster import (
    Resources,
    grouped,
    join_cluster,
    join_while_importing,
    result,
    settle_resources,
    shortages,
)
from lada_ray.config import ResourceConfig
from lada_ray.console import Console
from lada_ray.errors import InputError, LadaError
from lada_ray.features.extract import READ_CPUS


def settle(monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[float, float]], **stated: Any) -> Resources:
    """Settle resources in a cluster of nodes (cores, GPUs)."""
    listed = [
        {"Alive": True, "Resources": {name: n for name, n in (("CPU", cpus), ("GPU", gpus)) if n}}
        for cpus, gpus in nodes
    ]
    monkeypatch.setattr(ray, "nodes", lambda: [*listed, {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}])
    return settle_resources(ResourceConfig(**stated))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # encoders, cores and GPUs of each; workers, cores and GPUs of each
        ([(2, 0)], Resources(2, 0.5, 0, 1, 1, 0)),
        ([(8, 0)], Resources(2, 2, 0, 1, 4, 0)),
        ([(1, 0)], Resources(1, 0.5, 0, 1, 0.5, 0)),
        ([(0, 0), (8, 0), (4, 0)], Resources(4, 1, 0, 1, 2, 0)),
        ([(16, 0), (4, 0)], Resources(4, 1, 0, 1, 2, 0)),
        ([(16, 1)], Resources(1, 1, 1, 1, 1, 1)),
        ([(2, 0), (32, 8), (32, 8)], Resources(16, 1, 1, 1, 1, 1)),
        ([(8, 8)], Resources(8, 0.5, 1, 1, 1, 1)),
        ([], Resources(1, 0.5, 0, 1, 0.5, 0)),
    ],
)
def test_what_is_left_open_follows_the_cluster(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[float, float]], expected: Resources
) -> None:
    found = settle(monkeypatch, nodes)
    assert found == expected
    cores = sum(cpus for cpus, _ in nodes)
    assert not nodes or found.encoders * found.cpus_per_encoder + READ_CPUS <= cores


def test_what_is_stated_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {
        "encoders": 3,
        "gpus_per_encoder": 0.0,
        "cpus_per_encoder": 2.0,
        "train_workers": 0,
        "gpus_per_train_worker": 0.5,
        "cpus_per_train_worker": 3.0,
    }
    assert settle(monkeypatch, [(8, 2)], **stated) == Resources(3, 2, 0, 0, 3, 0.5)


def test_encoders_may_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settle(monkeypatch, [(16, 1)], gpus_per_encoder=0.5)
    assert (found.encoders, found.gpus_per_encoder) == (2, 0.5)


def test_more_encoders_share_the_same_half_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(monkeypatch, [(6, 0)], encoders=2).cpus_per_encoder == 1  # Ray takes no 1.5
    assert settle(monkeypatch, [(2, 0)], encoders=4).cpus_per_encoder == 0.25


def test_precision_follows_the_encoders_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(monkeypatch, [(8, 1)]).precision == "bf16"
    assert settle(monkeypatch, [(8, 1)], gpus_per_encoder=0).precision == "fp32"
    assert settle(monkeypatch, [(8, 0)]).precision == "fp32"


def test_joining_twice_stays_where_it_is(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ray.get_runtime_context().get_job_id()
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("joined again"))
    join_cluster()
    assert ray.get_runtime_context().get_job_id() == before


def test_stderr_is_back_after_joining_failed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> None:
        print("the reason", file=sys.stderr, flush=True)
        raise ConnectionError

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(LadaError, match="cannot join the Ray cluster"):
        join_cluster()
    print("later", file=sys.stderr, flush=True)
    assert "later" in capfd.readouterr().err


def test_modules_are_imported_while_the_cluster_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_to_import.py").write_text("1 / 0")
    (tmp_path / "slow_to_import.py").write_text("import time; time.sleep(0.2); done = True")
    monkeypatch.syspath_prepend(tmp_path)

    def join() -> None:
        deadline = time.monotonic() + 20
        while "slow_to_import" not in sys.modules:  # where a module is from the start of its import
            assert time.monotonic() < deadline
            time.sleep(0.01)

    monkeypatch.setattr(cluster, "join_cluster", join)
    console = Console(quiet=True)
    # What is broken tells where it is needed.
    join_while_importing(console, "broken_to_import", "slow_to_import")
    assert sys.modules["slow_to_import"].done
    assert set(console.seconds) == {"start Ray", "imports"}


def test_imports_are_over_when_joining_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> None:
        raise LadaError("cannot join")

    (tmp_path / "imported_meanwhile.py").write_text("import time; time.sleep(0.2); done = True")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cluster, "join_cluster", fail)
    with pytest.raises(LadaError, match="cannot join"):
        join_while_importing(Console(quiet=True), "imported_meanwhile")
    assert sys.modules["imported_meanwhile"].done


def test_what_the_cluster_lacks_is_told(ray_local: None) -> None:
    short = shortages(Resources(4, 1, 0, 1, 1, 1))
    assert [line.split(" are more")[0] for line in short] == [
        "4 encoders with 1 CPUs each",
        "1 train_workers with 1 GPUs each",
    ]
    assert shortages(Resources(1, 1, 0, 1, 1, 0)) == []


def test_an_error_of_ours_comes_out_of_a_task_as_itself(ray_local: None) -> None:
    def fail() -> None:
        raise InputError(["the third image is upside down"], "Look")

    with pytest.raises(InputError) as error:
        result(ray.remote(fail).remote())
    assert str(error.value) == "Look:\n  - the third image is upside down"


def test_other_errors_become_a_line(ray_local: None) -> None:
    def fail() -> None:
        raise KeyError("nose")

    with pytest.raises(LadaError, match="a Ray task failed: KeyError: 'nose'"):
        result(ray.remote(fail).remote())


def test_groups_are_of_neighbours() -> None:
    assert grouped([4, 4, 4, 30, 1, 9, 1], 10) == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert grouped([0, 30, 0], 10) == [(0, 1), (1, 2), (2, 3)]
    assert grouped([5], 10) == [(0, 1)]
    assert grouped([], 10) == []


def test_no_encoder_reserves_what_a_reader_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray Data would fuse the two.
    shares = {
        settle(monkeypatch, [(cores, 0)], encoders=encoders).cpus_per_encoder
        for cores in (1, 2, 3, 4, 8, 12, 16, 64)
        for encoders in range(1, 33)
    }
    assert len(shares) > 30
    assert READ_CPUS not in shares
