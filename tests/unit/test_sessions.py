"""What a session leaves when it ends, beside a capture and beside a lock that others hold.

The sessions' processes are stand-ins; parameters, books and checkpoints are the real ones.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from standins import Run, StandIn

from minga import messages
from minga.ps import checkpoint, requests, sessions
from minga.ps.parameters import SharedParameters
from minga.ps.sessions import Handle


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(sessions, "Handle", StandIn)
    return Run(tmp_path)


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scene())


@pytest.mark.parametrize("half", [False, True], ids=["applied", "half applied"])
def test_a_session_that_ends_while_the_capture_holds_the_lock_stops_nobody(
    run: Run, *, half: bool
) -> None:
    parameters, repair_asked = run.parameters, threading.Event()
    snapshot, repair = parameters.snapshot, parameters.repair

    def ask_and_repair() -> None:
        repair_asked.set()
        repair()

    async def scene() -> None:
        await run.grant()
        await asyncio.to_thread(run.die_in_mid_apply if half else run.apply)
        loop = asyncio.get_running_loop()

        def snapshot_while_the_session_ends() -> Any:
            loop.call_soon_threadsafe(run.handle.over.set)
            assert repair_asked.wait(30)
            return snapshot()

        parameters.snapshot = snapshot_while_the_session_ends
        parameters.repair = ask_and_repair
        await run.state.save(run.books, run.sessions.handles)
        await run.sessions.all_ended(30)

    play(scene)
    assert not run.events("checkpoint_failed")
    saved = checkpoint.read(run.folder.last)
    assert saved["version"] == parameters.version == 1
    assert saved["journal_lines"] == run.journal() == 1, "of one moment, and counted once"
    assert run.books.ledger.counted == run.samples
    assert run.books.ledger.held(run.handle.member.owner) == 0


@pytest.mark.parametrize("applied", ["whole", "half", "never"])
def test_the_push_of_a_killed_session_is_settled_once_before_the_rest_goes_back(
    run: Run, applied: str
) -> None:
    async def scene() -> None:
        await run.grant()
        if applied != "never":
            await asyncio.to_thread(run.die_in_mid_apply if applied == "half" else run.apply)
        run.handle.over.set()
        await run.sessions.all_ended(30)

    play(scene)
    times = 0 if applied == "never" else 1
    assert run.books.ledger.counted == times * run.samples
    assert run.journal() == run.parameters.version == times
    assert run.books.ledger.held(run.handle.member.owner) == 0
    assert run.handle.pending is None
    assert not run.sessions.handles()


def hold_the_lock(parameters: SharedParameters, held: Event) -> None:
    with parameters.locked():
        held.set()
        signal.pause()


def test_the_loop_answers_while_another_process_holds_the_lock(run: Run) -> None:
    context = multiprocessing.get_context("forkserver")
    held = context.Event()
    holder = context.Process(target=hold_the_lock, args=(run.parameters, held))
    holder.start()
    assert held.wait(60)
    stood_still = threading.Timer(20, holder.kill)
    stood_still.start()
    repair_asked = threading.Event()
    repair = run.parameters.repair

    def ask_and_repair() -> None:
        repair_asked.set()
        repair()

    async def scene() -> None:
        run.parameters.repair = ask_and_repair
        await run.grant()
        run.handle.over.set()
        saving = asyncio.create_task(run.state.save(run.books, run.sessions.handles))
        measuring = asyncio.create_task(asyncio.to_thread(run.parameters.freeze))
        await asyncio.to_thread(repair_asked.wait)
        assert run.books.answer(run.handle, requests.Renew()) == messages.Answer()
        assert holder.is_alive(), "the loop stood still until the lock was free"
        assert run.sessions.handles() == [run.handle], "its slot is taken until it is settled"
        holder.kill()
        await asyncio.gather(saving, measuring)
        await run.sessions.all_ended(30)

    play(scene)
    stood_still.cancel()
    holder.join()
    assert run.books.ledger.held(run.handle.member.owner) == 0
    assert run.events("checkpoint")


def test_a_session_that_is_frozen_inside_the_lock_is_killed(run: Run) -> None:
    context = multiprocessing.get_context("forkserver")
    held = context.Event()
    holder = context.Process(target=hold_the_lock, args=(run.parameters, held))

    async def scene() -> None:
        await run.grant()
        run.handle.process = holder
        holder.start()
        assert await asyncio.to_thread(held.wait, 60)
        looks = [run.sessions.kill_frozen() for _ in range(sessions.FROZEN_LOOKS + 1)]
        assert looks == [None] * sessions.FROZEN_LOOKS + [run.handle]
        await asyncio.to_thread(run.parameters.repair)
        run.handle.over.set()
        await run.sessions.all_ended(30)

    play(scene)
    holder.join()
    assert holder.exitcode == -signal.SIGKILL


def test_a_lock_that_is_taken_again_and_again_is_not_frozen(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same process holds it at every look, but each time anew."""

    def take_and_look() -> Handle | None:
        with run.parameters.locked():
            return run.sessions.kill_frozen()

    async def scene() -> None:
        await run.grant()
        process = multiprocessing.get_context("forkserver").Process()
        process.kill = lambda: pytest.fail("killed")
        run.handle.process = process
        for _ in range(3 * sessions.FROZEN_LOOKS):
            assert await asyncio.to_thread(take_and_look) is None
        run.handle.over.set()
        await run.sessions.all_ended(30)

    monkeypatch.setattr(Handle, "pid", property(lambda _: os.getpid()))
    play(scene)


def test_the_event_loop_may_not_take_the_lock(run: Run) -> None:
    async def scene() -> None:
        with pytest.raises(AssertionError, match="event loop"):
            run.parameters.repair()

    play(scene)


def test_connections_for_a_frozen_session_do_not_stop_the_loop(run: Run) -> None:
    async def scene() -> None:
        await run.grant()
        fits = 0
        for _ in range(10_000):
            near, far = socket.socketpair()
            far.close()
            if not run.sessions.pass_on(run.handle.spec.id, near, "127.0.0.1"):
                near.close()
                break
            fits += 1
        assert 0 < fits < 10_000
        run.handle.over.set()
        await run.sessions.all_ended(30)

    play(scene)
