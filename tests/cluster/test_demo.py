"""`minga demo` that is ended in mid-run takes its ps, sessions and workers along."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.harness import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="awaits ends by pidfd (Linux)"),
]

DEMO = ("-m", "minga", "demo")
WITHOUT_WATCH = (
    "-c",
    "import sys; from minga import cli, demo; demo._CHILD = 'minga'; sys.exit(cli.main())",
    "demo",
)
"""The children do not watch their parent: as it was before."""
STATUS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGKILL: -9}
START_S = 240
PROCESSES = 3 + 1 + 2
"""A ps and two workers; the ps's fork server; two sessions. More may be there."""


def _default_signals() -> None:
    """Take signals as in a terminal; a background job ignores Ctrl-C, with nohup SIGHUP, too."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Demo:
    """A demo in mid-run, and its whole process group."""

    def __init__(self, folder: Path, entry: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *entry, "--epochs=100000", f"--runs={folder / 'runs'}"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_default_signals,
        )
        self._runs = folder / "runs"
        self._ends: dict[int, int] = {}

    def wait_in_mid_run(self) -> None:
        """Return when both workers push; note all that was started."""
        wait_until(self._trains, "both workers to push", START_S)
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.started = {each.pid: " ".join(each.cmdline()) for each in started}
        self._ends = {os.pidfd_open(pid): pid for pid in self.started}

    def alive(self, wait_s: float) -> set[int]:
        """Return who has not ended, after ``wait_s`` at most."""
        poller = select.poll()
        left = dict(self._ends)
        for end in left:
            poller.register(end, select.POLLIN)
        while left and (ended := poller.poll(1000 * wait_s)):
            for end, _ in ended:
                poller.unregister(end)
                del left[end]
        return set(left.values())

    def close(self) -> None:
        """Kill what is left."""
        for end in self._ends:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(end, signal.SIGKILL)
            os.close(end)
        self.process.kill()
        self.process.wait()

    def _trains(self) -> bool:
        assert self.process.poll() is None
        told = "".join(each.read_text() for each in self._runs.glob("*/events.jsonl"))
        events = map(json.loads, told.rpartition("\n")[0].splitlines())
        return {event["rank"] for event in events if event["kind"] == "push"} >= {1, 2}


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Demo]:
    running = Demo(tmp_path, getattr(request, "param", DEMO))
    try:
        running.wait_in_mid_run()
        yield running
    finally:
        running.close()


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_a_demo_that_a_signal_ends_leaves_no_process(demo: Demo, number: signal.Signals) -> None:
    assert len(demo.started) >= PROCESSES, demo.started
    demo.process.send_signal(number)
    assert demo.process.wait(60) == STATUS[number]
    left = demo.alive(60)
    assert not left, [demo.started[pid] for pid in left]


@pytest.mark.parametrize("demo", [WITHOUT_WATCH], indirect=True)
def test_without_their_watch_the_processes_of_a_killed_demo_would_live_on(demo: Demo) -> None:
    demo.process.kill()
    demo.process.wait(60)
    assert demo.alive(1) == set(demo.started)
