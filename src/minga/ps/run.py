"""``minga ps``: resume or begin a run, say how to join it, serve it, sum it up."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from minga.config import Settings
from minga.config_sources import Resolved
from minga.console import Console, Progress
from minga.errors import Hint, Refused
from minga.observe.curves import draw
from minga.observe.folder import RunFolder, utc_now, write_json
from minga.observe.tensorboard import TensorBoard
from minga.options import PsOptions
from minga.protocol import DONE
from minga.ps import checkpoint
from minga.ps.coordinator import Coordinator
from minga.ps.state import RunState, find_resumable
from minga.transport.address import lan_addresses
from minga.transport.identity import Identity

_ENDED_BY = 128
"""Added to a signal's number it is the exit status, as in a shell."""
_EXPECTED = 2


def run_ps(resolved: Resolved, options: PsOptions) -> int:
    """Serve one run until it is done (0) or stopped (130 by Ctrl-C, 143 by SIGTERM).

    A stopped run is not done: Compose's ``restart: on-failure`` brings it back after a reboot.

    Raises:
        MingaError: what the user can do something about (see docs/troubleshooting.md).
    """
    console = Console("ps")
    if options.run_id and RunFolder(options.runs / options.run_id).finished:
        console.say(f"Run {options.run_id} is finished: {options.runs / options.run_id}")
        return 0
    identity = Identity.load_or_create(options.state, options.token_file)
    last = find_resumable(options.runs, options.resume, options.run_id)
    resumed = checkpoint.read(last) if last else None
    if resumed and last:
        _require_same(resolved.settings, Settings.from_dict(resumed["settings"]), last)
    run_id = resumed["run_id"] if resumed else options.run_id or _new_id(resolved.settings)
    folder = RunFolder.create(options.runs, run_id)
    write_json(
        folder.path / "config.json",
        {
            "schema": "minga.config/1",
            "settings": resolved.settings.to_dict(),
            "sources": resolved.sources,
        },
    )
    state = RunState(resolved.settings, folder, resumed)
    return asyncio.run(_serve(state, identity, options, console))


async def _serve(state: RunState, identity: Identity, options: PsOptions, console: Console) -> int:
    world_size = options.world_size or _EXPECTED
    coordinator = Coordinator(state, identity, world_size)
    port = coordinator.open(options.host, options.port)
    received: list[int] = []

    def stop(number: int) -> None:
        if received:
            raise SystemExit(_ENDED_BY + number)  # the second time: now
        received.append(number)
        console.say("Stopping: writing a checkpoint; once more to leave at once.")
        coordinator.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    board = TensorBoard(
        state.folder.path / "tb", _counted(state.resumed) if state.resumed else None
    )
    state.events.subscribe(board)
    state.events.subscribe(lambda event: _tell(event, console))
    state.events.write("run_start", port=port, world_size=world_size, resumed=bool(state.resumed))
    _invite(console, state, identity, options, port)
    with Progress(console) as progress:
        coordinator.show = progress.update
        phase = await coordinator.run()
    _write_statistics(coordinator, state, phase)
    state.events.write("run_end", outcome=phase)
    board.close()
    _close(console, coordinator, state, phase)
    return 0 if phase == DONE else _ENDED_BY + received[0]


def _invite(
    console: Console, state: RunState, identity: Identity, options: PsOptions, port: int
) -> None:
    """Print what the guide promises: address, port, the command that starts a worker."""
    addresses = [options.host] if options.host else lan_addresses()
    console.say(f"Run {state.run_id}" + (" (resumed)" if state.resumed else ""))
    console.say(f"  address  {', '.join(addresses)}")
    console.say(f"  port     {port}")
    console.say("Start a worker on any PC of the LAN, in its copy of this project:")
    custom = "" if port == 30005 else f"MASTER_PORT={port} "
    # a token that was given as a file stays there: logs are read by more people than files
    token = f"MINGA_TOKEN={identity.secret}"
    if options.token_file:
        token = f"MINGA_TOKEN_FILE=copy-of-{options.token_file.name}"
    console.say(f"  MASTER_ADDR={addresses[0]} {custom}{token} ./start_worker.sh")
    console.say("Parameter Server is running...")


def _tell(event: dict[str, Any], console: Console) -> None:
    """Show the events that a person wants to see as they happen."""
    kind = event["kind"]
    if kind in ("push", "checkpoint", "calibrate", "validate", "evaluation_start"):
        return
    hidden = ("schema", "time", "run_id", "kind")
    console.line(event=kind, **{k: v for k, v in event.items() if k not in hidden})


def _write_statistics(coordinator: Coordinator, state: RunState, phase: str) -> None:
    status = state.status(coordinator.accounts)
    write_json(
        state.folder.stats_file("ps"),
        {**status, "schema": "minga.ps/1", "role": "ps", "time": utc_now(), "outcome": phase},
    )
    state.publish(coordinator.accounts, coordinator.refused_visitors)


def _close(console: Console, coordinator: Coordinator, state: RunState, phase: str) -> None:
    """Say how it ended, where things are, and what to do next."""
    folder = state.folder
    picture = draw(folder.path / "events.jsonl", folder.path / "curves.png")
    if phase == DONE and coordinator.accounts is not None:
        summary = state.summary(coordinator.accounts)
        write_json(folder.summary, summary)
        console.say(
            f"Done: {100 * summary['val_accuracy']:.2f} % validation accuracy "
            f"(best {100 * summary['best_val_accuracy']:.2f} %), "
            f"{summary['samples_per_s']:.0f} samples/s, {summary['wall_s']:.1f} s"
        )
        console.say(f"  curves   {picture}")
        console.say(f"  next     minga export {folder.best}")
        return
    console.say("Stopped.")
    if folder.last.exists():
        console.say(f"  saved    {folder.last}")
        console.say("  resume   ./start_ps.sh")


def _require_same(wanted: Settings, saved: Settings, last: Path) -> None:
    """Raise Refused ``config-changed`` with the differences, if there are any."""
    differences = []
    for section in fields(Settings):
        ours, theirs = getattr(wanted, section.name), getattr(saved, section.name)
        for field in fields(ours):
            now, then = getattr(ours, field.name), getattr(theirs, field.name)
            if now != then:
                differences.append(f"{section.name}.{field.name} is {now!r}, was {then!r}")
    if differences:
        raise Refused(
            f"the settings are not those of {last}: {'; '.join(differences)}",
            code="config-changed",
            hints=(
                Hint("begin a new run", "minga ps --resume none"),
                Hint("or restore the settings of the run", f"cat {last.parents[1]}/config.json"),
            ),
        )


def _new_id(settings: Settings) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{settings.model.name}"


def _counted(resumed: dict[str, Any]) -> int:
    ledger = resumed["ledger"]
    complete = min((int(epoch) for epoch in ledger["counted"]), default=0)
    return complete * int(ledger["samples"]) + sum(map(int, ledger["counted"].values()))
