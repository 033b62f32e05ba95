"""A copy of the project that checks a virtual LAN by `make`; it needs no image and no Docker."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from lan.virtual import VirtualLan

from minga.data.generated import generate
from support import copy_project

PORT = 30005
_MAKE_S = 300

Rows = dict[str, dict[str, Any]]
"""A PC's rows by check."""


class Project:
    """The project as its user has it before the first deploy."""

    def __init__(self, folder: Path, lan: VirtualLan) -> None:
        self.folder = copy_project(folder / "minga")
        self.data = generate(
            self.folder / "data" / "tiny-imagenet-200",
            classes=2,
            train_per_class=20,
            val_per_class=5,
            size=32,
            difficulty=0.2,
        )
        hosts = f'"-o UserKnownHostsFile={lan.known_hosts}"'
        self.inventory = lan.inventory(self.folder / "lan.ini", ansible_ssh_common_args=hosts)

    def make(self, *words: str, expected: int = 0) -> str:
        """Run ``make ... INVENTORY=lan.ini``; return what it printed."""
        ended = self._run(words, stderr=subprocess.STDOUT)
        assert ended.returncode == expected, ended.stdout[-6000:]
        return ended.stdout

    def checked(self, *words: str, expected: int = 0, typed: str = "") -> dict[str, Rows]:
        """Run ``make check JSON=1``; return its rows by PC."""
        ended = self._run(("check", "JSON=1", *words), stderr=subprocess.PIPE, typed=typed)
        assert (ended.returncode, ended.stdout != "") == (expected, True), ended.stderr[-6000:]
        found = json.loads(ended.stdout)
        assert found["ok"] == (expected == 0)
        return {pc: {row["check"]: row for row in rows} for pc, rows in found["pcs"].items()}

    def _run(
        self, words: tuple[str, ...], *, stderr: int, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *words, "INVENTORY=lan.ini"],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(self.folder / "src"),
                "ANSIBLE_NOCOLOR": "1",
                "COLUMNS": "200",
            },
            start_new_session=True,  # without a terminal, a password is read from stdin
            input=typed,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=_MAKE_S,
            check=False,
        )


def states(rows: Rows, wanted: str) -> set[str]:
    """Return the checks of a PC with this state."""
    return {check for check, row in rows.items() if row["state"] == wanted}
