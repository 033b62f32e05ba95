"""Progress of image and data transfers, which ansible-playbook does not show.

Ansible starts one rsync per PC and waits. The bytes that such an rsync has read of its folder are
those it has sent, up to the network's buffers; of a partly transferred folder it reads less in the
end. Linux only: other systems do not report what a process has read.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from minga.deploy.ssh_problems import HERE

EVERY_S = 5.0
"""Seconds between two lines about one PC, and before its first; shorter transfers have none."""
LOOK_S = 2.0

_ADDRESS = re.compile(
    r"(?:[^@/\[]*@)?(?:\[(?:[^@/\]]*@)?(?P<six>[^@/\]]+)\]|(?P<host>[^@/:\[\]]+)):.*"
)
"""Of a folder on another PC: ``ana@10.0.0.2:/x``; for IPv6 Ansible writes ``[ana@fd00::2]:/x``."""
_WHAT = (("/build/image/", "image"), ("/build/pcs/", "settings"), ("/.minga/", "settings"))


@dataclass(frozen=True, slots=True)
class Transfer:
    """The transfer of one rsync: from a folder here to a PC's address (HERE: this PC itself)."""

    address: str
    source: str

    @property
    def what(self) -> str:
        """Return ``image``, ``data`` or ``settings``."""
        return next((what for part, what in _WHAT if part in self.source), "data")


@dataclass(frozen=True, slots=True)
class Sample:
    """Progress of a transfer at a time."""

    at_s: float
    done_bytes: int


def transfer_of(command: Sequence[str]) -> Transfer | None:
    """Return the transfer of an rsync command line; None if it is another or fetches. No I/O."""
    if len(command) < 3 or Path(command[0]).name != "rsync" or "--server" in command:
        return None
    source, target = command[-2:]
    if _ADDRESS.fullmatch(source):
        return None
    found = _ADDRESS.fullmatch(target)
    return Transfer((found["six"] or found["host"]) if found else HERE, source)


def line_of(pc: str, what: str, total_bytes: int, before: Sample, now: Sample) -> str:
    """Return the progress line of a transfer, with the speed since the previous sample. No I/O.

    ``desk-b  image  1.24 of 2.53 GB  98 MB/s  26 s left``
    """
    done_bytes = min(now.done_bytes, total_bytes)
    per_s = (now.done_bytes - before.done_bytes) / (now.at_s - before.at_s)
    left = _time((total_bytes - done_bytes) / per_s) if per_s > 0 else "stands still"
    if total_bytes >= 1e9:
        amount = f"{done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB"
    else:
        amount = f"{done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB"
    speed = f"{per_s / 1e6:.0f}" if per_s >= 1e7 else f"{per_s / 1e6:.1f}"
    return f"{pc}  {what}  {amount}  {speed} MB/s  {left}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s left"
    minutes = seconds / 60
    return f"{minutes:.0f} min left" if minutes < 100 else f"{minutes / 60:.1f} h left"


class Watch:
    """Watches the rsync processes below another one, and reports those that take long.

    Args:
        pid: of their parent process.
        names: returns the PCs' names by address; called once, at the first report.
        report: callback, called with each line.
        every_s: seconds between two lines about one transfer, and before its first.
    """

    def __init__(
        self,
        pid: int,
        names: Callable[[], Mapping[str, str]],
        report: Callable[[str], None],
        every_s: float = EVERY_S,
    ) -> None:
        self._pid = pid
        self._ask_names = names
        self._names: Mapping[str, str] | None = None
        self._report = report
        self._every_s = every_s
        self._reported: dict[psutil.Process, Sample] = {}
        self._total_bytes: dict[str, int] = {}

    def wait(self, process: subprocess.Popen[bytes], look_s: float = LOOK_S) -> int:
        """Watch until a process ends; return its exit status.

        Ctrl-C reaches the process directly; this waits for its end.
        """
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    return process.wait(look_s)
                except subprocess.TimeoutExpired:
                    self.look()

    def look(self) -> None:
        """Report the transfers that are due."""
        now_s = time.monotonic()
        reported: dict[psutil.Process, Sample] = {}  # those that have ended are removed
        for each, transfer in self._sending():
            with contextlib.suppress(psutil.Error, AttributeError):  # just ended, or not Linux
                now = Sample(now_s, int(each.io_counters().read_chars))
                reported[each] = self._reported.get(each, now)
                if now_s - reported[each].at_s >= self._every_s:
                    self._report(self._line(transfer, reported[each], now))
                    reported[each] = now
        self._reported = reported

    def _sending(self) -> Iterator[tuple[psutil.Process, Transfer]]:
        """Yield the senders; the receiver of a local transfer is an rsync below its sender."""
        senders: set[int] = set()
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    transfer = transfer_of(process.cmdline())
                    if transfer and process.ppid() not in senders:
                        yield process, transfer
                    if transfer:
                        senders.add(process.pid)

    def _line(self, transfer: Transfer, before: Sample, now: Sample) -> str:
        if self._names is None:
            self._names = {}
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                self._names = self._ask_names()
        pc = self._names.get(transfer.address, transfer.address)
        if transfer.source not in self._total_bytes:
            self._total_bytes[transfer.source] = size_bytes(Path(transfer.source))
        return line_of(pc, transfer.what, self._total_bytes[transfer.source], before, now)


def size_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{root}/{name}").st_size
    return total
