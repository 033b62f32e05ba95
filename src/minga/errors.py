"""Errors that a user can cause, each with a stable code and exit status.

MingaError
├── RunFailed          1  the run itself failed
├── UsageError         2  wrong flag, key, value, range
├── Unreachable        3  no parameter server there, or the link stayed down
├── DataError          4  data missing, empty, corrupt
└── Refused            5  version, checkpoint, rank, token: both sides work but do not match

The command line shows ``error[code]: what``, one line per hint, and where to read more;
``docs/troubleshooting.md`` has an anchor per code (a test holds that).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

SIGNALLED = 128
"""Plus a signal's number: the exit status of a process that the signal ends, as in a shell."""
INTERRUPTED = SIGNALLED + 2
"""Exit status after Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Hint:
    """One thing to check: a short question, and the command that answers or fixes it."""

    question: str
    command: str


class MingaError(Exception):
    """Base of every error that a user can cause.

    Args:
        what: one sentence that names the host, file or value at fault.
        code: stable, lower-case, hyphenated; an anchor of ``docs/troubleshooting.md``.
        hints: things to check, each with its command.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, code: str, hints: tuple[Hint, ...] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.code = code
        self.hints = hints


class RunFailed(MingaError):
    """The run itself failed."""

    exit_status = 1


class UsageError(MingaError):
    """A flag, key, value or range is wrong."""

    exit_status = 2


class Unreachable(MingaError):
    """Nothing answers, or the link stayed down."""

    exit_status = 3


class DataError(MingaError):
    """Data are missing, empty or corrupt."""

    exit_status = 4


class Refused(MingaError):
    """Both sides work but do not match: version, checkpoint, rank, token, data."""

    exit_status = 5
