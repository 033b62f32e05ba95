"""Starts Python processes as forks of one that has minga and torch loaded.

Loading them takes a processor some seconds, several times per test. Each process is one of its own
all the same: with its own session, log, folder, environment and network, and it ends as others do.
Tests of the demo and of the README start Python itself. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver, set_forkserver_preload, util
from pathlib import Path
from typing import Any

_LOADED = (
    "minga.cli",
    "minga.ps.run",
    "minga.worker.run",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.utils.tensorboard",
)
_FORK_SERVER_LOADS = "minga.ps.session"
_CLONE_NEWNET = 0x40000000  # sched.h


class Started:
    """A started process; of Popen's interface what tests use."""

    def __init__(self, starter: Starter, pid: int) -> None:
        self._starter = starter
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        """The exit status, minus a signal's number; None while it runs, as far as known."""
        return self._starter.statuses.get(self.pid)

    def poll(self) -> int | None:
        """Look whether it has ended; return its status."""
        self._starter.hear(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._starter.hear(left_s)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Starter:
    """The process that forks, as a test session holds it."""

    def __init__(self) -> None:
        self._line, there = socket.socketpair()
        self._lines = self._line.makefile("rb")
        self._lock = threading.RLock()
        self.statuses: dict[int, int] = {}
        with there:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(
        self, words: list[str], log: Path, cwd: Path, env: dict[str, str], netns: str = ""
    ) -> Started:
        """Start ``python words...`` in a session of its own, perhaps in a network namespace."""
        asked = {"words": words, "log": str(log), "cwd": str(cwd), "env": env, "netns": netns}
        log.touch()
        with self._lock:
            self._line.sendall(json.dumps(asked).encode() + b"\n")
            while (pid := self._take().get("started")) is None:
                continue
        return Started(self, pid)

    def hear(self, timeout_s: float | None) -> None:
        """Note who has ended; wait for that so long."""
        with self._lock:
            while select.select([self._line], [], [], timeout_s)[0]:
                self._take()
                timeout_s = 0

    def close(self) -> None:
        """End it; what it started goes on."""
        self._lines.close()
        self._line.close()
        self._process.wait()

    def _take(self) -> dict[str, int]:
        line = self._lines.readline()
        assert line, "the starter has ended"
        told: dict[str, int] = json.loads(line)
        if "ended" in told:
            self.statuses[told["ended"]] = told["status"]
        else:
            self.statuses.pop(told["started"], None)  # a number may come again
        return told


running: list[Starter] = []
"""The session's, if it has one."""


# -- in the process that forks


def _serve(line: socket.socket) -> dict[str, Any]:
    """Fork for each request, until the session ends; return in the fork, with the request."""
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the session's
    signal.set_wakeup_fd(wakes.fileno())
    lines = line.makefile("rb")
    while True:
        ready = select.select([line, woken], [], [])[0]
        if woken in ready:
            woken.recv(4096)
            for pid, status in _ended():
                line.sendall(json.dumps({"ended": pid, "status": status}).encode() + b"\n")
        if line in ready:
            asked = lines.readline()
            if not asked:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for each in (woken, wakes, lines, line):
                    each.close()
                request: dict[str, Any] = json.loads(asked)
                return request
            line.sendall(json.dumps({"started": pid}).encode() + b"\n")


def _ended() -> list[tuple[int, int]]:
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((ended[0], os.waitstatus_to_exitcode(ended[1])))
    return found


def _become(asked: dict[str, Any]) -> None:
    """Do what Python does at its start, in a fork."""
    os.setsid()
    if asked["netns"]:
        _enter(Path("/run/netns") / asked["netns"])
    os.chdir(asked["cwd"])
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(asked["env"])
    for folder in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
            if (Path(folder) / "sitecustomize.py").exists():
                sys.modules.pop("sitecustomize", None)
                importlib.import_module("sitecustomize")
    if "ps" in asked["words"]:
        _fork_the_fork_server()


def _enter(namespace: Path) -> None:
    """Move this process into a network namespace (os.setns is Python 3.12's)."""
    with namespace.open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns", str(namespace))


def _fork_the_fork_server() -> None:
    """Start the ps's fork server now, while a fork is safe: later there are threads."""

    def fork(path: str, words: list[str], kept: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            for name in os.listdir("/proc/self/fd"):
                if int(name) not in {0, 1, 2, *kept}:
                    with contextlib.suppress(OSError):  # the listing's own
                        os.close(int(name))
            with contextlib.suppress(SystemExit):
                exec(words[words.index("-c") + 1], {"__name__": "__main__"})
            os._exit(0)
        return pid

    spawn, util.spawnv_passfds = util.spawnv_passfds, fork
    set_forkserver_preload([_FORK_SERVER_LOADS])
    forkserver.ensure_running()
    util.spawnv_passfds = spawn


def _run(words: list[str]) -> None:
    """Run ``python words...`` in this process."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _line = socket.socket(fileno=int(sys.argv[1]))
    for _module in _LOADED:
        importlib.import_module(_module)
    _asked = _serve(_line)
    _become(_asked)
    _run(_asked["words"])
