"""Virtual PCs on shaped links: each has a network and a PID namespace of its own.

With a PID namespace in common TensorPipe passes tensors through shared memory, and the wire is
never used.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.netns import VirtualPc, ip, virtual_lan

BENCHMARKS = Path(__file__).resolve().parents[1]
_PYTHON_PATH = (BENCHMARKS.parent / "src", BENCHMARKS.parent / "tests", BENCHMARKS)
_ENVIRONMENT = {
    "PYTHONPATH": ":".join(map(str, _PYTHON_PATH)),
    "PYTHONUNBUFFERED": "1",
    "GLOO_SOCKET_IFNAME": "eth0",
    "TP_SOCKET_IFNAME": "eth0",
}
OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_LEAST_BURST_BYTES, _BURST_S = 8 * 1024, 0.002
"""A burst of 2 ms: far less than a tenth of any push."""
_QUEUE_S, _LEAST_QUEUE_BYTES = 0.02, 256 * 1024
"""What a cheap switch holds; less than a large segment would starve a link."""


@dataclass
class Place:
    """The PCs of one row, and what flows between them.

    Args:
        pcs: the first one is the ps's where there is a ps.
        folder: for logs and runs.
        rate_bits: of each link, each way.
    """

    pcs: list[VirtualPc]
    folder: Path
    rate_bits: float

    def start(
        self, number: int, module: str, *arguments: object, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a Python module on a PC."""
        return self.pcs[number].start(
            [*OWN_PIDS, sys.executable, "-m", module, *map(str, arguments)],
            self.log(number),
            self.folder,
            **(_ENVIRONMENT | environment),
        )

    def log(self, number: int) -> Path:
        """Return where the processes of a PC say what they say."""
        return self.folder / f"pc{number}.log"

    def sent_bytes(self) -> list[int]:
        """Return what each PC has put on the wire so far, headers included."""
        counter = "/sys/class/net/eth0/statistics/tx_bytes"
        return [int(pc.run(f"cat {counter}")) for pc in self.pcs]

    def set_link(self, number: int, rate_bits: float) -> None:
        """Change the rate of one PC's link, both ways."""
        pc = self.pcs[number]
        shape(["ip", "netns", "exec", pc.name, "tc"], "eth0", rate_bits)
        peer = ip("-n", pc.name, "-o", "link", "show", "eth0").split("@if")[1].split(":")[0]
        for line in ip("-o", "link", "show", "type", "veth").splitlines():
            index, name = line.split(":")[:2]
            if index == peer:
                shape(["tc"], name.split("@")[0].strip(), rate_bits)

    def require_alive(self) -> None:
        """Raise RuntimeError with what it said, if a process has ended."""
        for number, pc in enumerate(self.pcs):
            for process in pc.processes:
                if process.poll() is not None:
                    said = self.log(number).read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{pc.name} ended with {process.returncode}:\n{said}")

    def stop(self) -> None:
        """Kill every process on these PCs."""
        for pc in self.pcs:
            for process in pc.processes:
                with contextlib.suppress(psutil.Error):
                    for child in psutil.Process(process.pid).children():
                        child.kill()  # the first one of a PID namespace takes all others along
                process.kill()
                process.wait()
            pc.processes.clear()


@contextlib.contextmanager
def place(count: int, rate_bits: float) -> Iterator[Place]:
    """Make ``count`` PCs with links of this rate; take all away again."""
    with tempfile.TemporaryDirectory() as name, virtual_lan(Path(name), count) as pcs:
        made = Place(pcs, Path(name), rate_bits)
        for number in range(count):
            made.set_link(number, rate_bits)
        try:
            yield made
        finally:
            made.stop()


def shape(tc: list[str], device: str, rate_bits: float) -> None:
    """Let a device send this much and no more."""
    burst = max(_LEAST_BURST_BYTES, int(rate_bits / 8 * _BURST_S))
    queue = max(_LEAST_QUEUE_BYTES, int(rate_bits / 8 * _QUEUE_S)) + burst
    words = f"qdisc replace dev {device} root tbf rate {rate_bits:.0f}bit burst {burst}b"
    subprocess.run([*tc, *words.split(), "limit", f"{queue}b"], check=True, timeout=20)
