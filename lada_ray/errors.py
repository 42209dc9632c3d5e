"""Errors a user can act on. Each message says what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


class LadaError(Exception):
    """Base of every error raised on purpose. Jobs print its message, without a traceback, and exit with `exit_code`."""

    exit_code = 1


class InputError(LadaError):
    """What the user handed in cannot be used.

    Args:
        problems: every problem found, one line each; all are shown at once.
        heading: what was being checked.
    """

    def __init__(self, problems: Sequence[str], heading: str = "The input cannot be used") -> None:
        self.problems = list(problems)
        self.heading = heading
        super().__init__(f"{heading}:\n" + "\n".join(f"  - {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[str], str]]:
        # Raised in Ray workers too: the default would rebuild it from the formatted message alone.
        return type(self), (self.problems, self.heading)


class ConfigError(InputError):
    """The configuration (YAML or command line) is not a valid one."""


class Conflict(LadaError):
    """An object in storage is no longer the one that was read: somebody else replaced it."""


class IntegrityError(LadaError):
    """Stored bytes do not match the digest under which they were committed."""


class LeaseHeld(LadaError):
    """Another live process is writing this run (exit code 75, EX_TEMPFAIL: try again later)."""

    exit_code = 75


class LostLease(LadaError):
    """This process no longer owns the run: another one took it over, so nothing more may be committed."""

    exit_code = 75
