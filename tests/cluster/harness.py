"""Real ps and worker processes for tests: start, watch by their events, kill, restart."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster.starter import Started, running
from minga.ps.audit import Audit, audit
from minga.transport.forwarder import forward
from minga.transport.identity import Identity
from minga.transport.stream import close

TIMEOUT_S = 200.0
_LOOK_S = 0.02
_PORTS = range(10_000, 30_000)
"""Below those that systems give to outgoing connections: none of these takes a free one."""

Event = dict[str, Any]


def wait_until(true: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Return what ``true`` returns, once that is true. What is awaited is in other processes."""
    deadline = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(_LOOK_S)
    return value


def free_port() -> int:
    """Return a TCP port that nobody has now, nor soon: tests run beside each other."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def sessions(ps: subprocess.Popen[bytes] | Started) -> list[psutil.Process]:
    """Return a ps's session processes: its fork server's children."""
    servers = psutil.Process(ps.pid).children()
    return [session for server in servers for session in server.children()]


class Gate:
    """A loopback port that leads to another, once it is opened: a worker waits before it."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Let connections through from now on."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        if self._listener is not None:
            close(self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = listener.accept()
                forward(
                    visitor, socket.create_connection(("127.0.0.1", self._target)), lambda: None
                )


class Cluster:
    """One ps and its workers on this machine.

    Args:
        folder: everything that the processes write goes below it.
        data: the data set's folder.
        settings: ``section.field`` -> value, on top of a fast set-up for digits.
        entry: Python's arguments that start the ``minga`` command.
    """

    def __init__(
        self, folder: Path, data: Path, settings: dict[str, Any], entry: tuple[str, ...]
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._entry = entry
        self.runs = folder / "runs"
        self.port = free_port()
        self.identity = Identity.load_or_create(folder / "state")
        self.tokens: dict[str, str] = {}
        """Of processes with another token than the shared one."""
        self.processes: dict[str, subprocess.Popen[bytes] | Started] = {}
        self._read: tuple[Path | None, int] = (None, 0)
        self._events: list[Event] = []
        self._settings = {
            "model.name": "small-cnn",
            "data.path": data,
            "data.augment": "none",
            "train.batch_size": 32,
            "optimizer.lr": 0.1,
            "optimizer.warmup_epochs": 1,
            "optimizer.label_smoothing": 0,
            "exchange.local_steps": 2,
            **settings,
        }

    @property
    def run(self) -> Path:
        """The folder of the newest run."""
        return max(each for each in self.runs.iterdir() if each.is_dir())

    def start_ps(
        self,
        *flags: str,
        host: str = "127.0.0.1",
        world_size: int = 3,
        entry: tuple[str, ...] | None = None,
    ) -> None:
        """Start the ps, perhaps by another entry."""
        self._start("ps", *self.ps_flags(host, world_size), *flags, entry=entry)

    def ps_flags(self, host: str = "127.0.0.1", world_size: int = 3) -> list[str]:
        """Return what the ps is started with."""
        return [
            f"--port={self.port}",
            f"--host={host}",
            f"--runs={self.runs}",
            f"--state={self.folder / 'state'}",
            f"--world-size={world_size}",
            "--config=none",
            *(f"--{name}={value}" for name, value in self._settings.items()),
        ]

    def start_worker(
        self,
        rank: int,
        *flags: str,
        name: str | None = None,
        port: int | None = None,
        device: str = "cpu",
        entry: tuple[str, ...] | None = None,
    ) -> None:
        """Start a worker under the name ``worker<rank>``, perhaps by another entry."""
        self._start(
            "worker",
            "--address=127.0.0.1",
            f"--port={port or self.port}",
            f"--rank={rank}",
            f"--device={device}",
            f"--runs={self.folder / 'elsewhere' / 'runs'}",
            *flags,
            name=name or f"worker{rank}",
            entry=entry,
        )

    def joined(self, *ranks: int) -> None:
        """Wait until these workers have joined."""
        for rank in ranks:
            self.wait_for("worker_join", rank=rank)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process."""
        self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self.processes[name].wait()

    def finish(self, name: str, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for a process to end; return its exit status."""
        try:
            return self.processes[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} is still there; it said:\n{self.log(name)}") from None

    def log(self, name: str) -> str:
        """Return what a process said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def events(self) -> list[Event]:
        """Return the run's events so far (each is read once)."""
        try:
            path = self.run / "events.jsonl"
            content = path.open("rb")
        except (FileNotFoundError, ValueError):  # there is no run yet
            return []
        if path != self._read[0]:
            self._read, self._events = (path, 0), []
        with content:
            content.seek(self._read[1])
            lines = content.read()
        whole = lines.rfind(b"\n") + 1
        self._read = (path, self._read[1] + whole)
        self._events += [json.loads(line) for line in lines[:whole].splitlines()]
        return self._events

    def wait_for(self, kind: str, timeout_s: float = TIMEOUT_S, **wanted: Any) -> Event:
        """Wait for an event of this kind whose fields are as wanted (callables decide)."""

        def fits(event: Event) -> bool:
            return event["kind"] == kind and all(
                value(event.get(key)) if callable(value) else event.get(key) == value
                for key, value in wanted.items()
            )

        def look() -> Event | None:
            for name, process in self.processes.items():
                status = process.poll()
                assert status in (None, 0, -signal.SIGKILL, 130), (
                    f"{name} ended with {status}:\n{self.log(name)}"
                )
            return next((event for event in self.events() if fits(event)), None)

        return wait_until(look, f"event {kind} {wanted}", timeout_s)

    def summary(self) -> dict[str, Any]:
        """Return the finished run's summary."""
        return json.loads((self.run / "summary.json").read_text())

    def journal(self) -> list[str]:
        """Return the lines of the run's journal."""
        return (self.run / "journal.jsonl").read_text().splitlines()

    def audit(self, samples: int, epochs: int, seed: int = 0) -> Audit:
        """Audit the run's journal."""
        return audit(self.journal(), seed=seed, samples=samples, epochs=epochs)

    def stop_all(self) -> None:
        """Kill what is left."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(
        self,
        role: str,
        *flags: str,
        name: str | None = None,
        entry: tuple[str, ...] | None = None,
    ) -> None:
        name = name or role
        words = [*(entry or self._entry), role, *flags]
        path, env = (
            self.folder / f"{name}.log",
            {**os.environ, "MINGA_TOKEN": self.tokens.get(name, str(self.identity.secret))},
        )
        if running:
            self.processes[name] = running[0].start(words, path, self.folder, env)
            return
        with path.open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=env,
                start_new_session=True,
            )


@contextlib.contextmanager
def cluster(
    folder: Path, data: Path, *, entry: tuple[str, ...] = ("-m", "minga"), **settings: Any
) -> Iterator[Cluster]:
    """Give a cluster; whatever is left of it is killed. Settings: ``section__field=value``."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    made = Cluster(folder, data, named, entry)
    try:
        yield made
    finally:
        made.stop_all()
