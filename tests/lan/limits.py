"""What the virtual LAN can do at best, measured: all cables at once, all disks at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lan.pc import VirtualPc

_WIRE_BYTES, _DISK_BYTES = 200 << 20, 1 << 30
"""What each PC is sent, and writes."""
_PORT = 5001
_SINK = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print("listening", flush=True)
    peer = server.accept()[0]
    while peer.recv(1 << 20):
        pass
    peer.sendall(b"!")
"""
_SOURCE = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=120) as peer:
    chunk, left = bytes(1 << 20), int(sys.argv[3])
    while left > 0:
        left -= peer.send(chunk[:left])
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b"!"
"""


def wire_bytes_per_s(pcs: Sequence[VirtualPc]) -> float:
    """Return what the control PC gets across to all PCs together."""
    python, port = (sys.executable, "-Ic"), str(_PORT)
    sinks = [
        subprocess.Popen(
            ["ip", "netns", "exec", pc.plug.namespace, *python, _SINK, port],
            stdout=subprocess.PIPE,
            text=True,
        )
        for pc in pcs
    ]
    try:
        for sink in sinks:
            assert sink.stdout is not None
            assert sink.stdout.readline() == "listening\n"
        sources = [[*python, _SOURCE, pc.address, port, str(_WIRE_BYTES)] for pc in pcs]
        return len(pcs) * _WIRE_BYTES / _seconds_of(sources)
    finally:
        for sink in sinks:
            sink.kill()
            sink.communicate()


def disk_bytes_per_s(pcs: Sequence[VirtualPc]) -> float:
    """Return what the disks below the PCs' engines write together, to the platter."""
    files = [pc.folder / "docker" / "written" for pc in pcs]
    write = ["dd", "if=/dev/zero", "bs=1M", f"count={_DISK_BYTES >> 20}", "conv=fsync"]
    try:
        return len(pcs) * _DISK_BYTES / _seconds_of([[*write, f"of={file}"] for file in files])
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _seconds_of(commands: Sequence[Sequence[str]]) -> float:
    """Run commands side by side; return when the last has ended."""
    started_s = time.monotonic()
    running = [subprocess.Popen(each, stderr=subprocess.DEVNULL) for each in commands]
    assert [each.wait(300) for each in running] == [0] * len(running)
    return time.monotonic() - started_s


def processor_s() -> tuple[float, float]:
    """Return the seconds that this machine's processors have been busy, and idle, all together."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / 100, idle / 100
