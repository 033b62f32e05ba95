"""PCs of a LAN as network namespaces on a bridge: own address, own loopback, own home."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.starter import Started, running
from support import ALLOW_ROOT

_NET = "10.77.9"
_numbers = itertools.count()


def ip(*words: str) -> str:
    """Run ``ip`` and return what it says."""
    return subprocess.run(
        ["ip", *words], check=True, capture_output=True, text=True, timeout=20
    ).stdout


@dataclass
class VirtualPc:
    """One namespace."""

    name: str
    address: str
    home: Path
    processes: list[Started] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of this PC's processes."""
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG")}
        return {**kept, "HOME": str(self.home), "OMP_NUM_THREADS": "1", **ALLOW_ROOT, **more}

    def start(self, words: list[str], log: Path, cwd: Path, **environment: str) -> Started:
        """Start ``python words...`` on this PC, as a fork of the starter."""
        env = self.environment(**environment)
        process = running[0].start(words, log, cwd, env, netns=self.name)
        self.processes.append(process)
        return process

    def run(self, command: str) -> str:
        """Run a command on this PC and return what it printed."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *shlex.split(command)],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def listening(self) -> set[tuple[str, int]]:
        """Return (address, port) of every TCP listener of this PC, as ``ss -ltn`` has it."""
        lines = self.run("ss -ltnH").splitlines()
        pairs = [line.split()[3].rsplit(":", 1) for line in lines]
        return {(address.split("%")[0].strip("[]"), int(port)) for address, port in pairs}

    def peers(self) -> set[tuple[str, int]]:
        """Return (address, port) of every TCP connection that leaves this PC."""
        lines = self.run("ss -tnH state established").splitlines()
        pairs = [line.split()[3].rsplit(":", 1) for line in lines]
        away = {(address.strip("[]").removeprefix("::ffff:"), int(port)) for address, port in pairs}
        return {(address, port) for address, port in away if not address.startswith("127.")}


@contextlib.contextmanager
def virtual_lan(folder: Path, count: int, rate: str | None = None) -> Iterator[list[VirtualPc]]:
    """Make ``count`` PCs on one bridge, links shaped to ``rate`` if given; take all away again."""
    # a deleted namespace lets go of its cable a while later: no name is used twice
    tag = f"mg{os.getpid() % 10_000}{next(_numbers)}"
    bridge, pcs = f"{tag}br", []
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for number in range(1, count + 1):
            pc = VirtualPc(f"{tag}pc{number}", f"{_NET}.{10 + number}", folder / f"home{number}")
            pcs.append(pc)
            pc.home.mkdir()
            _connect(pc, bridge, f"{tag}v{number}", rate)
        yield pcs
    finally:
        for pc in pcs:
            for process in pc.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", pc.name)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", bridge)


def _connect(pc: VirtualPc, bridge: str, cable: str, rate: str | None) -> None:
    ip("netns", "add", pc.name)
    ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", pc.name)
    ip("link", "set", cable, "master", bridge, "up")
    ip("-n", pc.name, "addr", "add", f"{pc.address}/24", "dev", "eth0")
    ip("-n", pc.name, "link", "set", "eth0", "up")
    ip("-n", pc.name, "link", "set", "lo", "up")
    if rate is not None:
        shape = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "20ms"]
        subprocess.run(["tc", "qdisc", "replace", "dev", cable, *shape], check=True, timeout=20)
        inside = ["ip", "netns", "exec", pc.name, "tc", "qdisc", "replace", "dev", "eth0", *shape]
        subprocess.run(inside, check=True, timeout=20)
