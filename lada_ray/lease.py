"""One writer per run: a lease renewed by its owner, and taken over once that owner is gone.

The lease is the object `lease.json` in the run's folder. Clocks of different hosts are never compared: a
start that waits sees a renewal as a change of the object, and lets the lease expire by its own clock, counted
from when it first saw it. A stopped owner that comes back may still believe in its lease for a moment:
`check` notices by the owner's own clock, and what slips through between a check and a commit is stopped by
the epoch in `model.json`.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from lada_ray.errors import Conflict, LadaError, LeaseHeld, LostLease
from lada_ray.store import Store

KEY = "lease.json"
RENEW_EVERY = 5.0
EXPIRES_AFTER = 30.0


@dataclass(frozen=True)
class Owner:
    """Who holds a lease: the content of `lease.json`.

    Attributes:
        owner: unique for each lease that was ever acquired.
        host: its host's name.
        boot: which start of which machine, and which process namespace on it, `pid` belongs to.
        pid: process id.
        started: start of the process in clock ticks since boot, which tells a recycled `pid` apart; 0 = not
            known.
        user: login name.
        command: command line.
        since: when it was acquired, unix seconds; for people to read.
        renewed: when it was last renewed, unix seconds by the owner's clock; for people to read.
        renewals: counts up, so that no two contents are the same.
        expires_after: seconds without a renewal after which it may be taken over.
        released: the owner gave it back: anybody may take it.
    """

    owner: str = ""
    host: str = "an unknown host"
    boot: str = ""
    pid: int = 0
    started: int = 0
    user: str = "somebody"
    command: str = "not known"
    since: float = 0.0
    renewed: float = 0.0
    renewals: int = 0
    expires_after: float = EXPIRES_AFTER
    released: bool = False

    @classmethod
    def this_process(cls, expires_after: float) -> Owner:
        """Return an owner with a new id for the process we are in."""
        now, pid = time.time(), os.getpid()
        return cls(
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot=_boot(),
            pid=pid,
            started=_start_ticks(pid) or 0,
            user=_user(),
            command=shlex.join(sys.argv)[:500],
            since=now,
            renewed=now,
            expires_after=expires_after,
        )

    @classmethod
    def from_json(cls, data: bytes) -> Owner:
        """Read `lease.json`; a damaged one gives an unknown owner, who has to be waited for."""
        try:
            found = json.loads(data)
            known = {name: type(default)(found[name]) for name, default in asdict(cls()).items()}
        except (ValueError, TypeError, KeyError):
            return cls(owner="unreadable")
        return cls(**known)

    def to_json(self) -> bytes:
        """Write `lease.json`."""
        return json.dumps(asdict(self), indent=1).encode()

    def is_gone(self) -> bool:
        """Tell whether the owner is surely a process of this host that no longer exists."""
        if not self.boot or (self.host, self.boot) != (socket.gethostname(), _boot()):
            return False
        return _start_ticks(self.pid) != self.started

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"{self.user} on {self.host} (process {self.pid}, since {since}, command: {self.command})"


class Lease:
    """The right to write to a run, kept by a thread that renews it until `release` (also a context manager).

    Use `Lease.acquire`. `took_over` tells whether the previous owner did not release it.
    """

    def __init__(
        self,
        store: Store,
        say: Callable[[str], None],
        owner: Owner,
        version: str,
        asked: float,
        renew_every: float,
        took_over: bool,
    ) -> None:
        self.took_over = took_over
        self._store, self._say, self._owner, self._version = store, say, owner, version
        self._renewed_at, self._renew_every = asked, renew_every
        self._taker: Owner | None = None
        self._lost = False
        self._trouble = ""
        self._storage = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        store: Store,
        say: Callable[[str], None],
        renew_every: float = RENEW_EVERY,
        expires_after: float = EXPIRES_AFTER,
    ) -> Lease:
        """Become the one writer of the run in `store`.

        Takes over at once what was released or whose owner is a process of this host that no longer exists;
        otherwise says who holds it and waits for it to expire.

        Args:
            store: the run's folder.
            say: is told who is waited for, and of trouble with renewals (from another thread).
            renew_every: seconds between renewals.
            expires_after: seconds without a renewal after which others may take over.

        Raises:
            LeaseHeld: another process holds it, and renewed it while we waited.
            LadaError: the storage cannot be used.
        """
        owner = Owner.this_process(expires_after)
        poll = min(1.0, renew_every / 5)
        while True:
            found = store.read_version(KEY)
            took_over = found is not None and not _wait_until_free(store, found, say, poll)
            asked = _now()
            version = _take(store, owner, found[1] if found else None)
            if version is not None:
                return cls(store, say, owner, version, asked, renew_every, took_over)
            # Somebody else was faster: wait for that one.

    @property
    def lost(self) -> bool:
        """Whether another process is known to have taken the run over."""
        return self._lost

    def check(self) -> None:
        """Make sure that the run is still ours; call it before every commit. Free while renewals succeed.

        Raises:
            LostLease: another process took the run over; or renewals have failed for longer than the lease
                lasts, and the storage still cannot be asked; or it was released.
        """
        if self._stop.is_set():
            raise LostLease(f"The lease of the run {self._store.uri} was released: nothing more is written.")
        if self._is_old():
            self._renew()
        if self._lost:
            taker = self._taker or "another process"
            raise LostLease(
                f"The run {self._store.uri} is no longer ours: {taker} took it over while this process did "
                "not renew its lease. We stop here; what was committed is safe."
            )
        if self._is_old():
            raise LostLease(
                f"The lease of the run {self._store.uri} has run out, and the storage cannot be "
                f"asked whose it is: {self._trouble} Start again when the storage answers."
            )

    def _is_old(self) -> bool:
        return not self._lost and _now() - self._renewed_at >= self._owner.expires_after

    def release(self) -> None:
        """Give the run back, so that the next start need not wait. Somebody else's lease is left alone."""
        self._stop.set()
        self._thread.join(timeout=self._renew_every)
        if self._lost:
            return
        if not self._storage.acquire(timeout=self._renew_every):
            self._say("The lease could not be released, as the storage does not answer; it will expire.")
            return
        try:
            # Marked rather than deleted: object stores cannot delete only what is still ours.
            with suppress(Conflict):
                self._store.replace(KEY, self._next(released=True), self._version)
        except (LadaError, OSError) as error:
            self._say(f"The lease could not be released; the next start waits until it expires. {error}")
        finally:
            self._storage.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _keep_renewing(self) -> None:
        pause = self._renew_every
        while not self._stop.wait(pause) and not self._lost:
            self._renew()
            # Trouble with the storage may pass: try often while the lease lasts.
            pause = self._renew_every / 5 if self._trouble else self._renew_every

    def _renew(self) -> None:
        with self._storage:
            if self._lost or self._stop.is_set():
                return
            # The time of asking: others count from when they see the renewal, which is later.
            asked = _now()
            try:
                self._replace()
            except (LadaError, OSError) as error:
                if not self._trouble:
                    self._say(f"The lease could not be renewed; trying again. {error}")
                self._trouble = str(error)
                return
            if not self._lost:
                self._renewed_at, self._trouble = asked, ""

    def _replace(self) -> None:
        try:
            self._version = self._store.replace(KEY, self._next(), self._version)
        except Conflict:
            found = self._store.read_version(KEY)
            holder = Owner.from_json(found[0]) if found else None
            if found and holder and holder.owner == self._owner.owner:
                self._version = found[1]  # an earlier attempt of ours went through though its answer was lost
            else:
                self._taker, self._lost = holder, True

    def _next(self, released: bool = False) -> bytes:
        self._owner = replace(
            self._owner, renewals=self._owner.renewals + 1, renewed=time.time(), released=released
        )
        return self._owner.to_json()


def _wait_until_free(store: Store, found: tuple[bytes, str], say: Callable[[str], None], poll: float) -> bool:
    """Wait until the lease may be taken: True if it was released, False if its owner is gone."""
    owner = Owner.from_json(found[0])
    expires = _now() + owner.expires_after
    told = False
    while not owner.released and not owner.is_gone() and _now() < expires:
        if not told:
            say(f"This run is held by {owner}. Waiting {owner.expires_after:g} s for a sign of life ...")
            told = True
        time.sleep(poll)
        seen = store.read_version(KEY)
        if seen != found:
            return _judge_change(store.uri, Owner.from_json(seen[0]) if seen else None)
    if not owner.released:
        say(f"Taking over the run from {owner}, which is gone.")
    return owner.released


def _judge_change(uri: str, owner: Owner | None) -> bool:
    if owner is None or owner.released:
        return True
    raise LeaseHeld(
        f"The run {uri} is being written by {owner}, which is alive: it renewed its lease while we waited. "
        "Let it finish or stop it, then start again; or give this run another name."
    )


def _take(store: Store, owner: Owner, expected: str | None) -> str | None:
    """Write our lease over the one that was read; None if somebody else was faster."""
    try:
        return store.replace(KEY, owner.to_json(), expected)
    except Conflict:
        found = store.read_version(KEY)
        # Our own attempt may have gone through though its answer was lost.
        return found[1] if found and Owner.from_json(found[0]).owner == owner.owner else None


def _now() -> float:
    """Return seconds on a clock that nobody sets and that, on Linux, goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _boot() -> str:
    """Identify this start of this machine and our process namespace (pids mean nothing outside theirs)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""  # not Linux: no owner is ever surely gone, they are waited for


def _start_ticks(pid: int) -> int | None:
    """Return a process's start in clock ticks since boot (proc(5), stat, field 22); None if it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # Field 2, the name in parentheses, may itself hold anything; field 3 is the state.
    state, *rest = stat.rpartition(b")")[2].split()
    return None if state in (b"Z", b"X") else int(rest[18])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # containers often run under ids without a name
