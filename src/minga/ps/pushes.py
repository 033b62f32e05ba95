"""Reading the message of a push, and adding it to its worker's totals."""

from __future__ import annotations

import math

from minga.algorithm.pacing import Pace
from minga.ps.ledger import Span
from minga.ps.members import Member
from minga.transport.stream import Message

_SMOOTHING = 0.8
"""Weight of the past in a worker's rate."""


def pace_of(message: Message, batch_size: int) -> Pace | None:
    """Return the pace that a push reports; None if its times are missing or not positive.

    The first push has no exchange time yet. Invalid times must not reach the pacing of all workers.
    """
    names = ("compute_s", "exchange_s", "overhead_s")
    compute_s, exchange_s, overhead_s = (float(message.get(name) or 0) for name in names)
    if not (math.isfinite(compute_s + exchange_s + overhead_s) and compute_s > 0 < exchange_s):
        return None
    return Pace(compute_s / max(1, int(message["steps"])), exchange_s, overhead_s, batch_size)


def round_s(message: Message) -> float:
    """Return the seconds that a push takes at its worker's own speed."""
    return sum(float(message.get(name) or 0) for name in ("compute_s", "wait_s", "exchange_s"))


def spans_of(message: Message) -> list[Span]:
    """Read a push's progress: ``[[lease, epoch, start, stop, crc], ...]``."""
    return [Span(*(int(field) for field in each)) for each in message["progress"]]


def record_push(
    member: Member, message: Message, samples: int, staleness: int, batch_size: int
) -> None:
    """Add an applied push to its worker's totals, pace, rate and last loss.

    Args:
        member: the worker.
        message: of the push.
        samples: that it counted.
        staleness: of the push, in versions.
        batch_size: of the worker, images per step.
    """
    totals = member.totals
    totals.samples += samples
    totals.pushes += 1
    totals.staleness_sum += staleness
    totals.staleness_max = max(totals.staleness_max, staleness)
    totals.bytes_in += int(message.get("bytes_out", 0))
    totals.bytes_out += int(message.get("bytes_in", 0))
    compute_s, wait_s = float(message.get("compute_s", 0)), float(message.get("wait_s", 0))
    totals.compute_s += compute_s
    totals.wait_s += wait_s
    member.window_s = compute_s + wait_s
    if (pace := pace_of(message, batch_size)) is not None:
        member.paces.add(pace)
    loss = message.get("loss")
    member.last_loss = float(loss) if loss is not None and math.isfinite(loss) else None
    if member.window_s > 0:
        rate = samples / member.window_s
        past = member.rate or rate
        member.rate = _SMOOTHING * past + (1 - _SMOOTHING) * rate
