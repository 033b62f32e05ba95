"""``minga ps``: resume or start a run, print how to join it, serve it, write its reports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minga.console import Console, Progress
from minga.errors import SIGNALLED
from minga.observe.curves import draw
from minga.observe.folder import RunFolder, utc_now, write_json
from minga.observe.tensorboard import TensorBoard
from minga.protocol import DEFAULT_PORT, DONE, FAILED
from minga.ps import resume
from minga.ps.coordinator import Coordinator
from minga.ps.health import diverged
from minga.ps.run_state import RunState
from minga.settings.options import PsOptions
from minga.settings.sources import Resolved
from minga.tasks import zoo
from minga.transport import sandbox
from minga.transport.address import lan_addresses
from minga.transport.door import listen
from minga.transport.identity import Identity

_EXPECTED = 2
_PATIENCE_S = 600.0
_LOOK_S = 2.0
_QUIET = ("push", "checkpoint", "calibrate", "validate", "evaluation_start")


def run_ps(resolved: Resolved, options: PsOptions) -> int:
    """Serve one run until it is done (0) or stopped (130 by Ctrl-C, 143 by SIGTERM).

    A stopped run is not done: Compose's ``restart: on-failure`` restarts it after a reboot.

    Raises:
        MingaError: a failure that the user can fix (see docs/troubleshooting.md).
    """
    console, settings = Console("ps"), resolved.settings
    zoo.require_known(settings.model.name, settings.model.stem)
    choice = resume.choose(options, settings)
    if choice.folder is not None and choice.finished:
        console.say(f"Run {choice.folder.path.name} is finished: {choice.folder.path}")
        return 0
    with contextlib.closing(listen(options.host, options.port)) as listener:
        identity = Identity.load_or_create(options.state, options.token_file)
        folder = choice.folder or RunFolder.fresh(options.runs, resume.new_name(settings))
        claim = folder.claim()
        try:
            RunFolder.create(options.runs, folder.path.name)
            sources = {"settings": settings.to_dict(), "sources": resolved.sources}
            write_json(folder.path / "config.json", {"schema": "minga.config/1", **sources})
            state = RunState(settings, folder, choice.resumed)
            if choice.damage is not None:
                console.warn(f"{choice.damage}. Resuming from the one before: {folder.previous}")
                state.events.write("checkpoint_damaged", reason=choice.damage)
            return asyncio.run(_serve(state, identity, options, console, listener))
        finally:
            os.close(claim)


async def _serve(
    state: RunState,
    identity: Identity,
    options: PsOptions,
    console: Console,
    listener: socket.socket,
) -> int:
    world_size = options.world_size or _EXPECTED
    coordinator = Coordinator(state, identity, world_size)
    port = coordinator.open(listener)
    received: list[int] = []

    def stop(number: int) -> None:
        if received:
            raise SystemExit(SIGNALLED + number)  # the second time: now
        received.append(number)
        console.say("Stopping: writing a checkpoint; press Ctrl-C again to quit now.")
        coordinator.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    board = TensorBoard(
        state.folder.path / "tb", _counted(state.resumed) if state.resumed else None
    )
    state.events.subscribe(board)
    state.events.subscribe(lambda event: _show_event(event, console))
    state.events.write("run_start", port=port, world_size=world_size, resumed=bool(state.resumed))
    _invite(console, state, identity, options, port)
    if not (found := sandbox.available()).complete:
        console.warn(f"{sandbox.OPEN} ({found})")
    with Progress(console) as progress:
        coordinator.show = progress.update
        coordinator.chores.warn = console.warn
        phase = await coordinator.run()
    state.events.write("run_end", outcome=phase)
    board.close()
    await _leave_files(coordinator, state, phase, lambda: bool(received))
    if phase == FAILED:
        raise diverged(state.folder, state.settings, state.measured)
    _close(console, coordinator, state, phase)
    return 0 if phase == DONE else SIGNALLED + received[0]


def _invite(
    console: Console, state: RunState, identity: Identity, options: PsOptions, port: int
) -> None:
    """Print address, port, and the command that starts a worker."""
    addresses = [options.host] if options.host else lan_addresses()
    console.say(f"Run {state.run_id}" + (" (resumed)" if state.resumed else ""))
    console.say(f"  address  {', '.join(addresses)}")
    console.say(f"  port     {port}")
    console.say("Start a worker on any PC of the LAN, in its copy of this project:")
    custom = "" if port == DEFAULT_PORT else f"MASTER_PORT={port} "
    # a token from a file is not printed: logs have more readers than files
    token = f"MINGA_TOKEN={identity.secret}"
    if options.token_file:
        token = f"MINGA_TOKEN_FILE=copy-of-{options.token_file.name}"
    console.say(f"  MASTER_ADDR={addresses[0]} {custom}{token} ./start_worker.sh")
    console.say("Parameter Server is running...")


def _show_event(event: dict[str, Any], console: Console) -> None:
    """Print the events that matter to a person."""
    kind = event["kind"]
    if kind in _QUIET:
        return
    if kind == "disk_trouble":
        console.warn(
            f"cannot write to the run's folder ({event['reason']}): training continues, and "
            "the lines are kept in memory. Free space: df -h"
        )
        return
    if kind == "worker_not_finite":
        console.warn(
            f"worker {event['rank']} ({event['worker']} on {event['host']}): its last "
            f"{event['in_a_row']} pushes were not finite (nan), and did not count; {event['why']}"
        )
        return
    hidden = ("schema", "time", "run_id", "kind")
    console.line(event=kind, **{k: v for k, v in event.items() if k not in hidden})


async def _leave_files(
    coordinator: Coordinator, state: RunState, phase: str, hurried: Callable[[], bool]
) -> None:
    """Write a run's final files; if it is done and the disk is full, wait for space.

    Raises:
        OSError: the disk is still full after the wait, or after Ctrl-C.
    """
    deadline = time.monotonic() + (_PATIENCE_S if phase == DONE else 0)
    stats = state.folder.stats_file("ps")
    while True:
        coordinator.report.publish(coordinator.bookkeeper, coordinator.refused.total)
        try:
            _write_files(coordinator, state, phase, stats)
            return
        except OSError:
            if hurried() or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(_LOOK_S)


def _write_files(coordinator: Coordinator, state: RunState, phase: str, stats: Path) -> None:
    """Write statistics, the summary, which marks the run as done, and the curves."""
    folder, bookkeeper = state.folder, coordinator.bookkeeper
    status = coordinator.report.status(bookkeeper)
    write_json(
        stats, {**status, "schema": "minga.ps/1", "role": "ps", "time": utc_now(), "outcome": phase}
    )
    if (trouble := state.unwritten()) is not None:
        raise trouble
    if phase == DONE and bookkeeper is not None:
        write_json(folder.summary, coordinator.report.summary(bookkeeper))
    draw(folder.path / "events.jsonl", folder.path / "curves.png")


def _close(console: Console, coordinator: Coordinator, state: RunState, phase: str) -> None:
    """Print the outcome, the files, and the next command."""
    folder = state.folder
    if phase == DONE and coordinator.bookkeeper is not None:
        summary = coordinator.report.summary(coordinator.bookkeeper)
        console.say(
            f"Done: {100 * summary['val_accuracy']:.2f} % validation accuracy "
            f"(best {100 * summary['best_val_accuracy']:.2f} %), "
            f"{summary['samples_per_s']:.0f} samples/s, {summary['wall_s']:.1f} s"
        )
        console.say(f"  curves   {folder.path / 'curves.png'}")
        console.say(f"  next     minga export {folder.best}")
        return
    console.say("Stopped.")
    if folder.last.exists():
        console.say(f"  saved    {folder.last}")
        console.say("  resume   ./start_ps.sh")


def _counted(resumed: dict[str, Any]) -> int:
    ledger = resumed["ledger"]
    complete = min((int(epoch) for epoch in ledger["counted"]), default=0)
    return complete * int(ledger["samples"]) + sum(map(int, ledger["counted"].values()))
