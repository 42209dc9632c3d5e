"""A production model's history: look at it, go back, forget, take it along, verify it.

python jobs/model.py log      --model lada                      a line per version
python jobs/model.py show     --model lada [--version 3] [--yaml again.yaml]
python jobs/model.py rollback 3 --model lada [--reason TEXT] [--force]
python jobs/model.py forget   pets --model lada [--class_name cat] [--relearn] [--reason TEXT] [--force]
python jobs/model.py export   FOLDER --model lada [--version 3]
python jobs/model.py verify   --model lada

Exit code 0: done; 1: the gate refused it, or the input cannot be used, or (verify) numbers differ; 2: (verify) it
cannot be verified; 75: try again later: another process is changing the model, or (forget) not everything is deleted
yet. COMMAND --help lists its options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pydantic import Field

from lada_ray.command_line import parse_flags
from lada_ray.console import Console
from lada_ray.domains.base import Location
from lada_ray.errors import ConfigError, LeaseHeld
from lada_ray.gate import Limits
from lada_ray.job import run_job
from lada_ray.production import Settings

SAME, DIFFERS, UNVERIFIED = 0, 1, 2


class Log(Settings):
    """A line per version."""


class Show(Settings):
    """The accuracies of all versions, as a table here and as a page in the model's folder; or one version in full."""

    version: int | None = Field(default=None, ge=1)
    """Number of the version to be shown in full."""
    yaml: Location | None = None
    """File to write a configuration to that learns all domains of the champion again, with another encoder say."""


class Change(Settings):
    """What every change can be told."""

    force: bool = False
    """Promote it even where the gate refuses."""
    reason: str | None = Field(default=None, max_length=1000)
    """Why; kept in the history."""
    gate: Limits = Limits()
    """What the other domains may lose."""


class Rollback(Change):
    """A new version with the packs of an earlier one."""

    version: int
    """Number of the version to go back to."""


class Forget(Change):
    """A new version without a domain or a class; then all that is left of it is deleted, old versions too."""

    domain: str
    """Name of the domain."""
    class_name: str | None = None
    """One class of it (null: the whole domain)."""
    relearn: bool = False
    """Learn what was learnt after it again without it, from the bank; else it keeps its numbers."""


class Export(Settings):
    """The model in a folder that needs neither MLflow nor Ray."""

    folder: Location
    """New folder: a path or URI."""
    version: int | None = Field(default=None, ge=1)
    """Number of the version (null: the champion)."""


class Verify(Settings):
    """Packs, history, records and accuracies, computed again."""


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    # What cannot be looked at is not different.
    return run_job(lambda: run(given), failed=UNVERIFIED if given[:1] == ["verify"] else 1)


def run(argv: list[str]) -> int:
    """Do what the command line asks for; returns the exit code."""
    flags, work = command(argv)
    return work(parse_flags(argv[1:], flags, f"{flags.__doc__}\n\n{__doc__}"), Console())


def command(argv: list[str]) -> tuple[type[Settings], Callable[[Any, Console], int]]:
    """The flags of a command, and what does it.

    Raises:
        ConfigError: there is none of this name.
        SystemExit: after --help.
    """
    if argv[:1] in (["--help"], ["-h"]):
        print(__doc__)
        raise SystemExit(0)
    name = argv[0] if argv else ""
    if name not in COMMANDS:
        said = f"{name!r} is no command" if name else "a command is missing"
        raise ConfigError(
            [f"{said}: one of {', '.join(COMMANDS)} comes first"], "The command line is not valid"
        )
    return COMMANDS[name]


def log(flags: Log, console: Console) -> int:
    """Print a line per version."""
    from lada_ray.history import log_lines, read_history

    for line in log_lines(read_history(flags)):
        console.say(line)
    return 0


def show(flags: Show, console: Console) -> int:
    """Print the table, or a version; write page and configuration."""
    from lada_ray.history import read_history, table_lines, version_lines, write_page

    if flags.yaml:
        return write_yaml(flags, flags.yaml, console)
    told = read_history(flags)
    for line in table_lines(told) if flags.version is None else version_lines(told, flags.version):
        console.say(line)
    if flags.version is None:
        console.say(f"page:\n  {write_page(told)}")
    return 0


def write_yaml(flags: Show, path: str, console: Console) -> int:
    """Write the configuration that learns everything again."""
    from lada_ray.restart import restart_config
    from lada_ray.store import open_store

    config, notes = restart_config(flags)
    folder, _, file = path.rpartition("/")
    open_store(folder or ".").write(file, config.without_password().to_yaml().encode())
    for note in notes:
        console.warn(note)
    console.say(f"written: {path}; state the encoder there, and learn it under another name:")
    console.say(f"  python jobs/run_stream.py --config {path} --name {flags.model}-2")
    return 0


def rollback(flags: Rollback, console: Console) -> int:
    """Go back."""
    from lada_ray.rollback import rollback

    done = rollback(flags, flags.version, flags.force, flags.reason, flags.gate, console)
    console.say(
        f"{'refused; ' if done.refused else ''}the champion is version {done.version} of {flags.model}"
    )
    return 1 if done.refused else 0


def forget(flags: Forget, console: Console) -> int:
    """Forget."""
    from lada_ray.forget import Subject, forget

    subject = Subject(flags.domain, flags.class_name)
    done = forget(flags, subject, flags.relearn, flags.force, flags.reason, flags.gate, console)
    if done.refused:
        console.say(
            f"refused, and nothing is forgotten; the champion is version {done.version} of {flags.model}"
        )
        return 1
    console.say(f"{subject.said} is forgotten; the champion is version {done.version} of {flags.model}")
    console.say(
        "the image files themselves, the inbox, exported copies, and other runs of the storage that learnt the same "
        "images are as they were"
    )
    if not done.finished:
        console.warn(
            "not everything is deleted yet; the same command, or the next job on this model, goes on"
        )
        return LeaseHeld.exit_code
    return 0


def export(flags: Export, console: Console) -> int:
    """Write the model to a folder."""
    from lada_ray.export import export

    where = export(flags, flags.folder, flags.version)
    console.say(f"written: {where}; python -c 'import lada_ray; print(lada_ray.load(\"{where}\").domains)'")
    return 0


def verify(flags: Verify, console: Console) -> int:
    """Verify; returns SAME, DIFFERS or UNVERIFIED."""
    from lada_ray.audit import audit
    from lada_ray.audit import show as show_audit

    found = audit(flags, console)
    show_audit(found, flags.store.uri, console)
    if found.problems:
        return UNVERIFIED
    return DIFFERS if found.differences else SAME


COMMANDS: dict[str, tuple[type[Settings], Callable[[Any, Console], int]]] = {
    "log": (Log, log),
    "show": (Show, show),
    "rollback": (Rollback, rollback),
    "forget": (Forget, forget),
    "export": (Export, export),
    "verify": (Verify, verify),
}


if __name__ == "__main__":
    sys.exit(main())
