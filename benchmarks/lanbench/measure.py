"""One row: run a system, wait until it is warm, watch it for a while."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import psutil

from lanbench.place import Place, place
from lanbench.systems import SYSTEMS, Case, Mark, System

RATE_BITS = 1e9
MOST_CPU_SHARE = 0.85
"""Above that the machine is what is measured, and the row is void."""
_LEAST_OF_RATE = 0.85
"""A plain copy carries 94 % of the rate as payload; less than this is no such link."""


@dataclass(frozen=True)
class Reading:
    """Counters of one moment."""

    at_s: float
    busy_s: float
    all_s: float
    cpu_s: list[float]
    """Of each PC's processes."""
    sent_bytes: list[int]

    @classmethod
    def take(cls, there: Place) -> Reading:
        """Read all counters."""
        times = psutil.cpu_times()
        everything = sum(times) - times.guest - times.guest_nice
        return cls(
            at_s=time.time(),
            busy_s=everything - times.idle - times.iowait,
            all_s=everything,
            cpu_s=[sum(map(_cpu_s, processes(there, n))) for n in range(len(there.pcs))],
            sent_bytes=there.sent_bytes(),
        )


def measure(case: Case, ideal_per_s: float | None = None) -> dict[str, Any]:
    """Run a case; return its row."""
    kind = SYSTEMS[case.system]
    with place(case.workers + kind.has_ps, RATE_BITS / case.slow) as there:
        system = kind(there, case)
        system.start()
        system.wait_until(system.warm)
        before = Reading.take(there)
        after = watch(system, case.window_s)
        row = {
            "system": case.system,
            "model": case.subject,
            "workers": case.workers,
            **columns(system, before, after),
            **system.finish(),
        }
    if ideal_per_s:
        row["ratio_to_ideal"] = row["samples_per_s"] / (case.workers * ideal_per_s)
    return row


def watch(system: System, window_s: float) -> Reading:
    """Let the system run for a while, until every worker has two marks in it at least."""
    began_s = time.time()
    time.sleep(window_s)
    system.wait_until(lambda: system.each_has(2, began_s))
    system.there.require_alive()
    return Reading.take(system.there)


def columns(system: System, before: Reading, after: Reading) -> dict[str, Any]:
    """Return what is measured of every system."""
    there, case, took_s = system.there, system.case, after.at_s - before.at_s
    rates = [
        rate(system.marks(), worker, before.at_s, after.at_s)
        for worker in range(1, case.workers + 1)
    ]
    sent = sum(after.sent_bytes) - sum(before.sent_bytes)
    cores = [(b - a) / took_s for a, b in zip(before.cpu_s, after.cpu_s, strict=True)]
    busy = (after.busy_s - before.busy_s) / (after.all_s - before.all_s)
    row: dict[str, Any] = {
        "samples_per_s": sum(rates),
        "slowed": case.slow,
        "bytes_per_sample": sent / took_s / sum(rates),
        "cpu_share": busy,
        "cpu_share_of_others": max(0.0, busy - sum(cores) / (psutil.cpu_count() or 1)),
        "void": busy > MOST_CPU_SHARE,
        "window_s": took_s,
    }
    if system.has_ps:
        row["ps_cpu"] = cores[0]
        row["ps_sent_bytes_per_s"] = (after.sent_bytes[0] - before.sent_bytes[0]) / took_s
    row["worker_cpu"] = sum(cores[system.has_ps :]) / case.workers
    sizes = session_bytes(there) if case.system == "minga" else []
    if sizes:
        row["session_memory_bytes"] = sum(sizes) / len(sizes)
    return row


def rate(marks: list[Mark], worker: int, start_s: float, stop_s: float) -> float:
    """Return a worker's samples per second from its first to its last mark in a window."""
    own = [mark for mark in marks if mark.worker == worker and start_s <= mark.at_s <= stop_s]
    return sum(mark.samples for mark in own[1:]) / (own[-1].at_s - own[0].at_s)


def processes(there: Place, number: int) -> list[psutil.Process]:
    """Return all processes of a PC."""
    found = []
    for process in there.pcs[number].processes:
        try:
            found += [*psutil.Process(process.pid).children(recursive=True)]
        except psutil.Error:
            continue
    return found


def session_bytes(there: Place) -> list[int]:
    """Return the memory of each session process of the ps that it shares with nobody."""
    sizes = []
    for ps in psutil.Process(there.pcs[0].processes[0].pid).children():
        for server in ps.children():
            sizes += [session.memory_full_info().uss for session in server.children()]
    return sizes


def plain_copy(workers: int, slow: float) -> dict[str, Any]:
    """Return what plain TCP carries between one PC and some others, both ways at once.

    Raises:
        RuntimeError: the links are not as fast as they should be.
    """
    with place(workers + 1, RATE_BITS / slow) as there:
        first = there.start(0, "lanbench.plain", "listen", workers)
        others = [
            there.start(n, "lanbench.plain", there.pcs[0].address) for n in range(1, workers + 1)
        ]
        for process in (first, *others):
            process.wait(60)
        logs = [there.log(n).read_text() for n in range(workers + 1)]
    each = [json.loads(log)["bytes_per_s"] for log in logs]
    towards, away = each[0], sum(each[1:])
    wanted = RATE_BITS / slow / 8
    if not all(_LEAST_OF_RATE * wanted < each < wanted for each in (towards, away)):
        raise RuntimeError(f"links of {wanted:.3g} B/s carry {towards:.3g} and {away:.3g}")
    return {
        "system": "plain-copy",
        "model": "",
        "workers": workers,
        "slowed": slow,
        "towards_ps_bytes_per_s": towards,
        "from_ps_bytes_per_s": away,
    }


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
