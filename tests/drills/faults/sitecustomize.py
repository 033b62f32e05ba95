"""Read by every Python of a drilled process: ends it at a named point, as kill -9 does.

``FAULTS`` names the points, in the order in which they strike; each strikes once, and leaves a
file of its name in ``FAULTS_FOLDER``. A name with ``at-`` before it is only told by its file.
``MISCHIEF`` names what is done to pushes (mischief.py). No code of minga knows of this.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = [name for name in os.environ.get("FAULTS", "").split(",") if name]
MISCHIEF = os.environ.get("MISCHIEF", "")
FOLDER = Path(os.environ.get("FAULTS_FOLDER", "."))


def strike(name: str) -> None:
    """End this process if it is this point's turn."""
    before = NAMES[: NAMES.index(name)] if name in NAMES else [name]
    if name not in NAMES or not all((FOLDER / each).exists() for each in before):
        return
    try:
        os.close(os.open(FOLDER / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if not name.startswith("at-"):
        os.kill(os.getpid(), signal.SIGKILL)


def reach(name: str) -> None:
    """Tell of this point, or end there, whichever is asked for."""
    strike(f"at-{name}")
    strike(name)


def around(owner: Any, name: str, *, before: Callable[..., Any] = lambda *a: None) -> None:
    """Have ``before`` called, with the same arguments, ahead of a method."""
    wrapped = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        before(*arguments)
        return wrapped(*arguments, **named)

    setattr(owner, name, call)


def install_worker_points() -> None:
    """Points of a worker: in join, compute, push (it is on its way), reply (not taken yet)."""
    from minga.messages import Push
    from minga.transport.dial import Join, Link
    from minga.worker.exchange import Exchange
    from minga.worker.replica import Replica

    start = Link.start

    def start_and_reach(self: Link, message: Any, *arguments: Any, **named: Any) -> Any:
        call = start(self, message, *arguments, **named)
        if isinstance(message, Push):
            reach("worker-in-push")
        return call

    Link.start = start_and_reach
    around(Join, "report_data", before=lambda *_: reach("worker-in-join"))
    around(Replica, "step", before=lambda *_: reach("worker-in-compute"))
    around(Exchange, "rebase", before=lambda *_: reach("worker-in-reply"))
    around(Replica, "evaluate", before=lambda *_: reach("worker-in-validation"))


def install_ps_points() -> None:
    """Points of the ps: of a session's process, and of the coordinator."""
    from minga.algorithm.codec import CHUNK
    from minga.ps import checkpoint
    from minga.ps.bookkeeper import Bookkeeper
    from minga.ps.coordinator import Coordinator
    from minga.ps.evaluation import Evaluation
    from minga.ps.parameters import SharedParameters
    from minga.transport import sandbox

    if any("session-" in name for name in NAMES):  # it leaves a file, which a session must not
        sandbox.restrict = lambda readable=(): sandbox.Sandbox(0, writes=False)

    def far(parameters: SharedParameters, start: int, *_: Any) -> bool:
        return start >= 5 * CHUNK and parameters.version > 3

    def on_renew(parameters: SharedParameters, start: int, *_: Any) -> None:
        if far(parameters, start):
            reach("session-in-apply")

    def on_reply(parameters: SharedParameters, start: int, *_: Any) -> None:
        if far(parameters, start):
            reach("session-in-reply")

    def on_settle(bookkeeper: Bookkeeper, handle: Any, *_: Any) -> None:
        if handle.pending is not None and bookkeeper.ledger.counted:
            reach("ps-in-epoch")  # applied, and not counted yet

    def on_sync(*_: Any) -> None:
        if any(FOLDER.parent.glob("runs/*/checkpoints/last.pth")):
            reach("ps-in-checkpoint")

    around(SharedParameters, "_renew_weights", before=on_renew)
    around(SharedParameters, "ahead", before=on_reply)
    around(Bookkeeper, "settle", before=on_settle)
    around(checkpoint.os, "fsync", before=on_sync)
    around(Evaluation, "take", before=lambda *_: reach("ps-in-validation"))
    around(Coordinator, "_known_sequence", before=lambda *_: reach("ps-in-join"))


if "resource_tracker" not in " ".join(sys.orig_argv):
    if NAMES:
        install_worker_points()
        install_ps_points()
    if MISCHIEF:
        import mischief

        mischief.install(MISCHIEF)
