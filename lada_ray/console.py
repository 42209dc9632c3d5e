"""What a person sees while a job runs: stages with their wall time, progress of the long ones, quiet libraries."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Without a terminal (a submitted job's log) progress is a line now and then.
LINE_EVERY_S = 10.0
# A bar for something that is over at once would only flicker.
BAR_AFTER_S = 0.7
# Stages that processes which load what they need count as.
START_RAY, START_WORKERS, START_ENCODERS = "start Ray", "start workers", "start encoders"
# What has passed of the process before its console counts as this, too.
IMPORTS = "imports"
# Nobody should wonder for longer what a job is doing.
NAMED_AFTER_S = 2.0


@dataclass
class Console:
    """Prints stages and progress, and keeps how long each stage took.

    Attributes:
        seconds: wall seconds by stage, summed over its occurrences.
        notes: the warnings so far.
    """

    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    rich: RichConsole = field(default_factory=lambda: RichConsole(highlight=False))
    _bar: Progress | None = None
    _bars: dict[str, int] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    _printed: float = 0.0
    _named: set[str] = field(default_factory=set)

    def say(self, message: str) -> None:
        """Print a line; above the progress bars, if there are any."""
        if not self.quiet:
            target = self._bar.console if self._bar else self.rich
            target.print(message, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a warning, and keep it for the report."""
        self.notes.append(message)
        self.say(f"warning: {message}")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside, under this name, and name it if it takes long; its progress bars end with it."""
        started = time.monotonic()
        note = threading.Timer(NAMED_AFTER_S, self._name_stage, [name])
        note.daemon = True
        note.start()
        try:
            yield
        finally:
            note.cancel()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            self._stop_bars()

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count part of a stage's time as another stage: what it turned out to be afterwards."""
        moved = min(max(0.0, seconds), self.seconds.get(source, 0.0))
        if moved:
            self.seconds[source] -= moved
            self.seconds[target] = self.seconds.get(target, 0.0) + moved

    @classmethod
    def of_process(cls) -> Console:
        """A console whose clock starts with this process; what has passed since counts as "imports"."""
        import psutil

        passed = max(0.0, time.time() - psutil.Process().create_time())
        return cls(started=time.monotonic() - passed, seconds={IMPORTS: passed})

    def _name_stage(self, name: str) -> None:
        if self._bar is None and name not in self._named:
            self._named.add(name)
            self.say(f"  {name} ...")

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far something is; call it as often as you like."""
        now = time.monotonic()
        since = self._since.setdefault(what, now)
        if self.quiet or now - since < BAR_AFTER_S:
            return
        if self.rich.is_terminal:
            self._show_bar(what, done, total)
        elif now - self._printed > LINE_EVERY_S:
            self._printed = now
            left = f", about {(now - since) * (total - done) / done:.0f} s left" if done else ""
            self.say(f"  {what}: {done} of {total}{left}")

    def _show_bar(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.rich, transient=True)
            self._bar.start()
        if what not in self._bars:
            self._bars[what] = self._bar.add_task(what)
        self._bar.update(self._bars[what], completed=done, total=total)  # type: ignore[arg-type]

    def _stop_bars(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._bars, self._since = None, {}, {}

    @property
    def wall_seconds(self) -> float:
        """Seconds since the console was made."""
        return time.monotonic() - self.started


def quiet_libraries() -> None:
    """Show errors of the libraries, but not their chatter; for jobs, at their start."""
    # Ray's C++ core and its worker processes read these when they start.
    for name, value in {
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_DEDUP_LOGS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TQDM_DISABLE": "1",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "mlflow", "alembic", "open_clip"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
