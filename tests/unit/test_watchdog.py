"""What stands still is reported, with its place: after the limit, twice, four times that."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from standins import Run

from minga.console import Console
from minga.observe.events import EventLog
from minga.ps.chores import CHORE_STILL_S, LOOP_STILL_S, Chores
from minga.watchdog import Watchdog, place_of


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_reports_come_after_the_limit_and_then_half_as_often() -> None:
    clock, seen = Clock(), []
    watchdog = Watchdog(10.0, lambda place, seconds: seen.append(seconds), clock)
    for _ in range(100):
        clock.now_s += 1.0
        watchdog.look()
    assert seen == [10.0, 20.0, 40.0, 80.0]
    watchdog.beat()
    watchdog.look()
    clock.now_s += 10.0
    watchdog.look()
    assert seen[4:] == [10.0], "from the last beat on"


def test_who_beats_is_never_reported() -> None:
    clock, seen = Clock(), []
    watchdog = Watchdog(10.0, lambda place, seconds: seen.append(seconds), clock)
    for _ in range(100):
        clock.now_s += 9.0
        watchdog.look()
        watchdog.beat()
    assert seen == []


def test_the_place_is_the_innermost_of_minga() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Words:
        def __str__(self) -> str:
            entered.set()
            leave.wait()  # as a disk or a network would
            return "words"

    thread = threading.Thread(target=lambda: Console("test").line(words=Words()))
    thread.start()
    entered.wait()
    assert thread.ident is not None
    place = place_of(thread.ident)
    leave.set()
    thread.join()
    assert "(console.py:" in place
    assert place_of(thread.ident) == "", "it has ended"


def test_the_watchdogs_thread_looks_and_ends() -> None:
    reported = threading.Event()
    watchdog = Watchdog(0.0, lambda place, seconds: reported.set())
    watchdog.start()
    assert reported.wait(60)
    watchdog.close()
    watchdog.close()  # again does no harm
    assert "watchdog" not in {each.name for each in threading.enumerate()}


def test_a_chore_that_stands_still_is_an_event(tmp_path: Path) -> None:
    run, clock = Run(tmp_path), Clock()
    chores = Chores(run.state.events, clock)

    async def play() -> None:
        hung = asyncio.Event()

        async def save() -> None:
            await hung.wait()

        saving = asyncio.create_task(chores.attempt(save))
        await asyncio.sleep(0)
        chores.note_alive()
        assert run.events("run_start") == run.events("stalled") == []
        clock.now_s += CHORE_STILL_S + 1
        for _ in range(3):
            chores.note_alive()
        hung.set()
        await saving

    asyncio.run(play())
    (event,) = run.events("stalled")
    assert (event["what"], event["at"], event["seconds"]) == ("chore", "save", CHORE_STILL_S + 1)


def test_an_event_loop_that_stands_still_is_said_at_once_and_is_an_event(tmp_path: Path) -> None:
    events: EventLog = (run := Run(tmp_path)).state.events
    chores, said = Chores(events), []
    chores.warn = said.append
    chores._loop_stands("RunState.save (ps/run_state.py:1)", LOOP_STILL_S)
    assert said == ["the ps has stood still for 10 s in RunState.save (ps/run_state.py:1)"]
    assert run.events("stalled") == []
    chores.note_alive()
    (event,) = run.events("stalled")
    assert (event["what"], event["seconds"]) == ("event loop", LOOP_STILL_S)
