"""The lease, with processes that are really killed and stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lada_ray.errors import Conflict, LadaError, LeaseHeld, LostLease
from lada_ray.lease import KEY, Lease, Owner, _start_ticks
from lada_ray.store import LocalStore, Store, join, open_store

RENEW, EXPIRE = 0.1, 1.0


class Flaky(LocalStore):
    """A local store whose network can be cut, or that loses the answers of replacements that it made."""

    cut = False
    loses_answers = False

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store.replace`."""
        if self.cut:
            raise LadaError("no connection")
        version = super().replace(key, data, expected)
        if self.loses_answers:
            raise Conflict("the retry found the first attempt's object")
        return version

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        """See `Store.read_version`."""
        if self.cut:
            raise LadaError("no connection")
        return super().read_version(key)


@pytest.fixture
def store(tmp_path: Path) -> Flaky:
    return Flaky(str(tmp_path / "run"))


def acquire(store: Store, said: list[str] | None = None) -> Lease:
    return Lease.acquire(store, (said if said is not None else []).append, RENEW, EXPIRE)


def owner(store: Store) -> Owner:
    return Owner.from_json(store.read(KEY))


def elsewhere(**changes: Any) -> Owner:
    """An owner on another host."""
    return replace(Owner.this_process(EXPIRE), host="node7", boot="other", user="ada", **changes)


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


OWNER = """
import sys, time
from lada_ray.errors import LostLease
from lada_ray.lease import Lease
from lada_ray.store import open_store
lease = Lease.acquire(open_store(sys.argv[1]), print, float(sys.argv[2]), float(sys.argv[3]))
print("acquired", flush=True)
sys.stdin.readline()
try:
    lease.check()
    print("ours")
except LostLease as error:
    print("lost:", error)
"""


@contextmanager
def owning_process(
    store: Store, renew: float = RENEW, expire: float = EXPIRE
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OWNER, store.uri, str(renew), str(expire)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "acquired\n"
            yield process
        finally:
            process.kill()


# ---------------------------------------------------------------- one process


def test_acquire_renew_release_acquire(store: Flaky) -> None:
    said: list[str] = []
    with acquire(store, said) as lease:
        assert not lease.took_over
        first = owner(store)
        wait_for(lambda: owner(store).renewals >= first.renewals + 3)
        assert owner(store).owner == first.owner
        lease.check()
        assert not lease.lost
    assert owner(store).released
    with acquire(store, said) as again:
        assert not again.took_over
        assert owner(store).owner != first.owner
    assert said == []


def test_the_lease_names_its_owner(store: Flaky) -> None:
    with acquire(store):
        text = str(owner(store))
    for part in (owner(store).host, str(owner(store).pid), "pytest", "UTC"):
        assert part in text


def test_a_live_owner_is_waited_for_named_and_respected(store: Flaky) -> None:
    said: list[str] = []
    with acquire(store) as lease:
        with pytest.raises(LeaseHeld, match=r"is being written by .* which is alive") as raised:
            acquire(store, said)
        assert raised.value.exit_code == 75
        assert len(said) == 1
        assert said[0].startswith(f"This run is held by {owner(store).user} on {owner(store).host}")
        lease.check()


def test_a_release_while_waiting_hands_over(store: Flaky) -> None:
    lease = Lease.acquire(store, print, renew_every=30, expires_after=30)
    threading.Timer(0.2, lease.release).start()
    begin = time.monotonic()
    with acquire(store) as mine:
        assert not mine.took_over
        assert time.monotonic() - begin < 20  # not the 30 s until it expires
    with pytest.raises(LostLease, match="was released"):
        lease.check()


@pytest.mark.parametrize("skew", [-1e6, 0, 1e6])
def test_an_owner_elsewhere_expires_by_our_own_clock(store: Flaky, skew: float) -> None:
    store.write(KEY, elsewhere(renewed=time.time() + skew).to_json())
    said: list[str] = []
    begin = time.monotonic()
    with acquire(store, said) as lease:
        # A skew of days, were it counted, would end the wait at once or never.
        assert time.monotonic() - begin >= EXPIRE
        assert lease.took_over
    assert "ada on node7" in said[0]
    assert "Taking over" in said[1]


def test_an_owner_elsewhere_is_not_judged_by_our_processes(store: Flaky) -> None:
    assert not elsewhere(pid=2**22 + 1).is_gone()
    assert not Owner().is_gone()


def test_a_recycled_process_id_is_not_mistaken_for_the_owner(store: Flaky) -> None:
    me = Owner.this_process(EXPIRE)
    assert not me.is_gone()
    assert replace(me, started=me.started - 1).is_gone()
    assert replace(me, pid=2**22 + 1).is_gone()


def test_a_killed_process_that_nobody_reaped_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert _start_ticks(process.pid) is not None
    process.kill()
    wait_for(lambda: _start_ticks(process.pid) is None)
    process.communicate()


def test_a_damaged_lease_is_waited_for_like_any_other(store: Flaky) -> None:
    for data in (b"", b"{", b"[1]", b'{"owner": "x"}', b"\xff"):
        damaged = Owner.from_json(data)
        assert (damaged.owner, damaged.expires_after, damaged.is_gone()) == ("unreadable", 30.0, False)


def test_release_leaves_a_successors_lease_alone(store: Flaky) -> None:
    lease = Lease.acquire(store, print, renew_every=30, expires_after=30)
    other = elsewhere().to_json()
    store.write(KEY, other)
    lease.release()
    assert store.read(KEY) == other


def test_a_renewal_that_finds_another_owner_loses(store: Flaky) -> None:
    with acquire(store) as lease:
        store.write(KEY, elsewhere().to_json())
        wait_for(lambda: lease.lost)
        with pytest.raises(LostLease, match="ada on node7"):
            lease.check()
    assert owner(store).host == "node7"


def test_a_lease_that_vanished_with_its_run_is_lost(store: Flaky) -> None:
    with acquire(store) as lease:
        store.delete(KEY)
        wait_for(lambda: lease.lost)
    assert not store.exists(KEY)


def test_trouble_with_the_storage_is_outlived(store: Flaky) -> None:
    said: list[str] = []
    with acquire(store, said) as lease:
        store.cut = True
        wait_for(lambda: said)
        lease.check()
        store.cut = False
        before = owner(store).renewals
        wait_for(lambda: owner(store).renewals > before + 2)
        lease.check()
        assert not lease.lost
    assert said == ["The lease could not be renewed; trying again. no connection"]


def test_storage_out_of_reach_for_longer_than_the_lease_stops_commits(store: Flaky) -> None:
    with acquire(store) as lease:
        store.cut = True
        time.sleep(EXPIRE + 0.2)
        with pytest.raises(LostLease, match="cannot be asked whose it is: no connection"):
            lease.check()
        store.cut = False
        lease.check()  # nobody took it meanwhile, so it is ours again
        assert not lease.lost


def test_answers_that_were_lost_cost_nothing(store: Flaky) -> None:
    store.loses_answers = True
    with acquire(store) as lease:
        before = owner(store).renewals
        wait_for(lambda: owner(store).renewals > before + 2)
        lease.check()
    assert owner(store).released


def test_only_one_of_many_gets_it(store: Flaky) -> None:
    got: list[Lease] = []
    held: list[LeaseHeld] = []

    def start() -> None:
        try:
            got.append(acquire(store))
        except LeaseHeld as error:
            held.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(held)) == (1, 7)
    got[0].check()
    got[0].release()


# ---------------------------------------------------------------- several processes


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_the_lease_of_a_killed_process_is_taken_over_at_once(
    store: Flaky, kind: str, request: pytest.FixtureRequest
) -> None:
    run: Store = store
    if kind == "s3":
        run = open_store(join(request.getfixturevalue("s3"), uuid.uuid4().hex))
    said: list[str] = []
    with owning_process(run, renew=5, expire=30) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        begin = time.monotonic()
        with acquire(run, said) as lease:
            assert time.monotonic() - begin < 20  # not the 30 s until it expires
            assert lease.took_over
            lease.check()
    assert len(said) == 1  # nothing about waiting
    assert f"process {process.pid}" in said[0]


def test_an_owner_killed_while_we_wait_is_noticed(store: Flaky) -> None:
    with owning_process(store, renew=30, expire=30) as process:
        threading.Timer(0.3, process.kill).start()
        begin = time.monotonic()
        with acquire(store) as lease:
            assert time.monotonic() - begin < 20  # not the 30 s until it expires
            assert lease.took_over


def test_a_stopped_owner_is_taken_over_and_notices_when_it_comes_back(store: Flaky) -> None:
    with owning_process(store) as process:
        process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        with acquire(store) as lease:
            assert time.monotonic() - begin >= EXPIRE
            assert lease.took_over
            process.send_signal(signal.SIGCONT)
            printed, _ = process.communicate("\n", timeout=10)
            assert printed.startswith("lost:")
            assert f"process {owner(store).pid}" in printed
            lease.check()


def test_check_notices_before_the_renewing_thread_does(store: Flaky) -> None:
    # The thread of this owner will not renew within the test: only the owner's own clock can tell it.
    with owning_process(store, renew=60, expire=EXPIRE) as process:
        process.send_signal(signal.SIGSTOP)
        with acquire(store):
            process.send_signal(signal.SIGCONT)
            printed, _ = process.communicate("\n", timeout=10)
            assert printed.startswith("lost:")
