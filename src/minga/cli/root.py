"""A ps or a worker as root: refused unless it is allowed."""

from __future__ import annotations

import os
import pwd

from minga.errors import Hint, UsageError

_FIRST_UID, _NOBODY = 1000, 65534
_NO_SHELL = ("nologin", "false")
WHY = "whatever gets past the sandbox around torch RPC has the whole PC"


def is_root() -> bool:
    """Whether this process may read everything on this PC."""
    return os.geteuid() == 0


def require_ordinary_user(command: str, *, allow_root: bool) -> None:
    """Raise UsageError ``running-as-root`` unless this is an ordinary user or root is allowed."""
    if allow_root or not is_root():
        return
    user = _ordinary_user()
    raise UsageError(
        f"minga {command} is started as root: {WHY} (docs/security.md)",
        code="running-as-root",
        hints=(
            Hint(
                "become an ordinary user and start again",
                f"su {user}" if user else "useradd --create-home minga && su minga",
            ),
            Hint("or allow root and start again", "export MINGA_ALLOW_ROOT=1"),
        ),
    )


def _ordinary_user() -> str | None:
    """Return who called sudo, else the first ordinary user of this PC."""
    called = os.environ.get("SUDO_USER", "root")
    if called != "root":
        return called
    people = [
        each
        for each in pwd.getpwall()
        if _FIRST_UID <= each.pw_uid < _NOBODY and not each.pw_shell.endswith(_NO_SHELL)
    ]
    return min(people, key=lambda each: each.pw_uid).pw_name if people else None
