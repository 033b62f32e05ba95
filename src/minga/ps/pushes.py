"""What the message of a push says."""

from __future__ import annotations

import math

from minga.algorithm.pacing import Pace
from minga.ps.ledger import Span
from minga.transport.stream import Message


def pace_of(message: Message, batch_size: int) -> Pace | None:
    """Return what a push tells of its worker's pace; None where it tells nothing usable.

    The first push knows no exchange yet. Times that are no times must not reach the pacing of all.
    """
    names = ("compute_s", "exchange_s", "overhead_s")
    compute_s, exchange_s, overhead_s = (float(message.get(name) or 0) for name in names)
    if not (math.isfinite(compute_s + exchange_s + overhead_s) and compute_s > 0 < exchange_s):
        return None
    return Pace(compute_s / max(1, int(message["steps"])), exchange_s, overhead_s, batch_size)


def round_s(message: Message) -> float:
    """Return how many seconds old a push is by its worker's own speed."""
    return sum(float(message.get(name) or 0) for name in ("compute_s", "wait_s", "exchange_s"))


def spans_of(message: Message) -> list[Span]:
    """Read a push's progress: ``[[lease, epoch, start, stop, crc], ...]``."""
    return [Span(*(int(field) for field in each)) for each in message["progress"]]
