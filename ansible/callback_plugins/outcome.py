"""Writes a playbook's outcome on each PC as JSON, to the file in MINGA_OUTCOME."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: outcome
type: notification
short_description: writes a playbook's outcome on each PC
description: For minga.deploy.play, which shows it as a table.
requirements: [none]
"""

_GROUPS = ("ps", "workers")
_REFUSING = ("inventory", "lock", "uncollected")
"""Roles that fail before any PC is changed; not a failure of the PC."""


class CallbackModule(CallbackBase):
    """One reason per PC: its first failure that no rescue fixed."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "outcome"

    def __init__(self) -> None:
        super().__init__()
        self._path = os.environ.get("MINGA_OUTCOME")
        self.disabled = not self._path
        self._pcs: list[str] = []
        self._asked: set[str] = set()
        self._failed: dict[str, str] = {}
        self._unreachable: dict[str, str] = {}
        self._refused = {"by": "", "reason": ""}
        self._locked = False

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Store the inventory's PCs that LIMIT selects."""
        inventory = play.get_variable_manager()._inventory
        groups = [name for name in _GROUPS if name in inventory.groups]
        found = inventory.get_hosts(":".join(groups), ignore_restrictions=True) if groups else []
        self._pcs = [host.name for host in found]

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Store why a PC does not answer, even if the playbook ignores it."""
        if self._ask(result):
            self._unreachable.setdefault(result.host.name, reason(result.result))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Store why a task failed; only the end shows whether a rescue fixed it."""
        if ignore_errors:
            return
        if self._ask(result):
            self._failed[result.host.name] = reason(result.result)
        elif not self._refused["by"]:
            self._refused = {"by": _role(result), "reason": reason(result.result)}

    def v2_runner_on_ok(self, result: Any) -> None:
        """Store that the lock was requested: it must be released."""
        self._ask(result)
        if not self._locked and _role(result) == "lock" and "shell" in result.task.action:
            self._locked = True
            self._write({})  # now: after Ctrl-C there is no later callback

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Store that there was nothing to do."""
        self._ask(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the file."""
        self._write({pc: self._of(pc, stats) for pc in self._pcs})

    def _write(self, pcs: dict[str, dict[str, str]]) -> None:
        noted = {"refused": self._refused, "locked": self._locked, "pcs": pcs}
        Path(str(self._path)).write_text(json.dumps(noted))

    def _ask(self, result: Any) -> bool:
        """Return whether a result is of the PC's own tasks, and note that they have begun."""
        own = _role(result) not in _REFUSING
        if own:
            self._asked.add(result.host.name)
        return own

    def _of(self, pc: str, stats: Any) -> dict[str, str]:
        if pc in self._unreachable:
            return {"state": "unreachable", "reason": self._unreachable[pc]}
        if stats.failures.get(pc):
            return {"state": "failed", "reason": self._failed.get(pc, "")}
        if pc not in self._asked:
            return {"state": "not started", "reason": ""}
        return {"state": "done", "reason": ""}


def _role(result: Any) -> str:
    role = result.task._role
    return role.get_name() if role else ""


def reason(result: dict[str, Any]) -> str:
    """Return why a task failed; for a loop, the first item's reason."""
    for item in result.get("results", []):
        if isinstance(item, dict) and (item.get("failed") or item.get("unreachable")):
            return reason(item)
    said = [result.get(key) for key in ("msg", "stderr", "stdout")]
    if result.get("rc") and str(result.get("msg")).startswith("non-zero return code"):
        said = said[1:]
    words = next((str(each).strip() for each in said if each), "no reason given")
    for start in ("Failed to connect to the host via ssh: ", "Task failed: "):
        words = words.removeprefix(start)
    return words
