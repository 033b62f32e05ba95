"""Cables, addresses and speed of the virtual LAN; and the stranger on it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lan.places import BRIDGE, NAMESPACE_PREFIX
from lan.shell import CommandError, sh

_V4, _V6, _MAC = "10.77.0", "fd77:", "02:77:00:00:00"
CONTROL = (f"{_V4}.1", f"{_V6}:1")
FULL_RATE = "1gbit"
_SHAPE = ("root", "tbf", "burst", "256kb", "latency", "20ms", "rate")
"""A burst must be small against what a test sends: a small model disappears in it."""

PortState = Literal["open", "closed", "filtered"]

_CONNECT = """
import socket, sys
host, port, limit_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
try:
    socket.create_connection((host, port), timeout=limit_s).close()
    print("open")
except ConnectionRefusedError:
    print("closed")
except OSError:
    print("filtered")
"""


@dataclass(frozen=True)
class Listener:
    """One listening TCP socket; ``process`` is empty where ``ss`` names none."""

    address: str
    port: int
    process: str


def make_bridge() -> None:
    """Make the switch; the host is the control PC on it."""
    sh("ip", "link", "add", BRIDGE, "address", f"{_MAC}:01", "type", "bridge")
    sh("ip", "addr", "add", f"{CONTROL[0]}/24", "dev", BRIDGE)
    sh("ip", "addr", "add", f"{CONTROL[1]}/64", "dev", BRIDGE, "nodad")
    sh("ip", "link", "set", BRIDGE, "up")


@contextlib.contextmanager
def control_cable(mbit_per_s: int) -> Iterator[None]:
    """Let all that the control PC sends go through one cable for a while, as that of a PC does."""
    sh("tc", "qdisc", "replace", "dev", BRIDGE, *_SHAPE, f"{mbit_per_s}mbit")
    try:
        yield
    finally:
        sh("tc", "qdisc", "delete", "dev", BRIDGE, "root")


class Plug:
    """One place on the LAN: a network namespace, its two addresses and its cable."""

    def __init__(self, name: str, number: int, *, gateway: bool = True) -> None:
        self.namespace = f"{NAMESPACE_PREFIX}{name}"
        self.cable = f"mg-{name}"
        self.address = f"{_V4}.{number}"
        self.address6 = f"{_V6}:{number}"
        # A PC that was off comes back with the card it had; the others still know its address.
        self._mac = f"{_MAC}:{number}"
        self._gateway = gateway
        self._bytes_before = (0, 0)
        self._rate = FULL_RATE

    def plug_in(self) -> None:
        """Make the namespace and its cable, as fast as it was."""
        inside = self.namespace
        sh("ip", "netns", "add", inside)
        peer = ("peer", "name", "eth0", "address", self._mac, "netns", inside)
        sh("ip", "link", "add", self.cable, "type", "veth", *peer)
        sh("ip", "link", "set", self.cable, "master", BRIDGE, "up")
        sh("ip", "-n", inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        sh("ip", "-n", inside, "addr", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        sh("ip", "-n", inside, "link", "set", "eth0", "up")
        sh("ip", "-n", inside, "link", "set", "lo", "up")
        if self._gateway:
            route = ("route", "add", "default", "via", CONTROL[0], "mtu", str(_way_out_mtu()))
            sh("ip", "-n", inside, *route)
        self.shape(self._rate)

    def shape(self, rate: str) -> None:
        """Let so much through each way from now on, also after a power cut."""
        self._rate = rate
        sh("tc", "qdisc", "replace", "dev", self.cable, *_SHAPE, rate)
        self.exec("tc", "qdisc", "replace", "dev", "eth0", *_SHAPE, rate)

    def unplug(self) -> None:
        """Take namespace and cable away; its firewall's rules go too, as at a power cut."""
        self._bytes_before = self.bytes_in_out()
        # The namespace lives as long as a process in it: the cable has to go by its own name.
        sh("ip", "link", "del", self.cable, check=False)
        sh("ip", "netns", "del", self.namespace)

    def exec(self, *words: str, timeout_s: float = 30.0) -> str:
        """Run a command of the host in this place's network, and return what it printed."""
        return sh("ip", "netns", "exec", self.namespace, *words, timeout_s=timeout_s).stdout

    def cut(self) -> None:
        """Pull the cable out of the switch."""
        sh("ip", "link", "set", self.cable, "down")

    def mend(self) -> None:
        """Put the cable back."""
        sh("ip", "link", "set", self.cable, "up")

    def bytes_in_out(self) -> tuple[int, int]:
        """Return what came in and went out since the start, also before a power cut."""
        counters = Path("/sys/class/net", self.cable, "statistics")
        if not counters.exists():
            return self._bytes_before
        # The switch's end of the cable: what it sends is what comes in.
        read = [int((counters / name).read_text()) for name in ("tx_bytes", "rx_bytes")]
        return self._bytes_before[0] + read[0], self._bytes_before[1] + read[1]

    def listening(self) -> list[Listener]:
        """Return every TCP listener of this place, in containers or not."""
        found = []
        for line in self.exec("ss", "-ltnpH").splitlines():
            words = line.split()
            address, _, port = words[3].rpartition(":")
            process = words[5].split('"')[1] if len(words) > 5 and '"' in words[5] else ""
            found.append(Listener(address.split("%")[0].strip("[]"), int(port), process))
        return found

    def scan(self, address: str, port: int, limit_s: float = 3.0) -> PortState:
        """Try a TCP connection from here, v4 or v6: *closed* refuses, *filtered* never answers."""
        words = (sys.executable, "-Ic", _CONNECT, address, str(port), str(limit_s))
        answer = self.exec(*words, timeout_s=limit_s + 20).strip()
        if answer not in ("open", "closed", "filtered"):
            raise CommandError(f"scan of {address} port {port} said {answer!r}")
        return answer


def _way_out_mtu() -> int:
    """Return the MTU of the host's own way out: a PC's packets go on from there."""
    routes = json.loads(sh("ip", "-j", "route", "show", "default").stdout)
    if not routes:
        return 1500
    return min(1500, int(Path("/sys/class/net", routes[0]["dev"], "mtu").read_text()))
