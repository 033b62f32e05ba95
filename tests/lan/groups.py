"""Long-lived processes of the virtual LAN, each in a control group of its own.

A group says who belongs to a PC, however deep in containers, and the kernel kills it whole. The
processes are nobody's children: the tests' own clean-up of child processes leaves them alone.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from lan.shell import CommandError, wait_for

_MOUNT = Path("/sys/fs/cgroup")
TOP = "minga-lan"
"""The group above all others, in every hierarchy."""
_START = """
exec </dev/null >>"$1" 2>&1
shift
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done
shift
exec "$@"
"""


def start(name: str, words: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
    """Start a process that outlives its starter, in the group ``name``, with little environment."""
    folders = [root / TOP / name for root in _roots()]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    _delegate(folders[0])
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "HOME")}
    starter = ["setsid", "--fork", "sh", "-euc", _START, "start", str(log)]
    subprocess.run(
        [*starter, *map(str, folders), "--", *words],
        env={**kept, **(env or {})},
        cwd="/",
        check=True,
        timeout=20,
    )
    wait_for(f"{words[0]} to start ({log})", lambda: is_running(name), 10, pause_s=0.05)


def is_running(name: str) -> bool:
    """Tell whether the group has any process."""
    with contextlib.suppress(FileNotFoundError):
        return "populated 1" in (_first_root() / TOP / name / "cgroup.events").read_text()
    return False


def kill(name: str) -> None:
    """Kill every process of the group at once and remove the group: the plug is pulled."""
    with contextlib.suppress(FileNotFoundError):
        (_first_root() / TOP / name / "cgroup.kill").write_text("1")
        wait_for(f"the processes of {name} to go", lambda: not is_running(name), 30, pause_s=0.05)
    for root in _roots():
        _remove(root / TOP / name)


def kill_all(kept: Collection[str] = ()) -> None:
    """Kill all groups of a virtual LAN but the kept ones, and remove them."""
    top = _first_root() / TOP
    if kept:
        for name in {path.name for root in _roots() for path in (root / TOP).glob("*/")}:
            if name not in kept:
                kill(name)
        return
    if top.exists():
        (top / "cgroup.kill").write_text("1")
        wait_for("all processes of the LAN to go", lambda: not is_running(""), 30, pause_s=0.05)
    for root in (*_roots(), *(path for path in _MOUNT.iterdir() if path.is_dir())):
        _remove(root / TOP)


def _roots() -> list[Path]:
    """Return the version 2 hierarchy, and systemd's own where the host mixes both versions."""
    first = _first_root()
    named = _MOUNT / "systemd"
    return [first, named] if first != _MOUNT and named.exists() else [first]


def _first_root() -> Path:
    for root in (_MOUNT, _MOUNT / "unified"):
        if (root / "cgroup.procs").exists():
            return root
    raise CommandError(f"no version 2 control groups below {_MOUNT}: a PC's systemd needs them")


def _delegate(folder: Path) -> None:
    """Hand down the controllers that version 2 has here; on a mixed host that is none of use."""
    for parent in (folder.parent.parent, folder.parent):
        for controller in (parent / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def _remove(folder: Path) -> None:
    """Remove a group and those below it; one that has just lost its last process may be busy."""

    def gone() -> bool:
        for place, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(place)
        return not folder.exists()

    wait_for(f"the control group {folder} to go", gone, 10, pause_s=0.05)
