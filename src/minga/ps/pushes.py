"""Reading the message of a push, and adding it to its worker's totals."""

from __future__ import annotations

from typing import Any

from minga.algorithm.pacing import Pace
from minga.messages import Push
from minga.ps.members import Member
from minga.ps.requests import Applied

_TIMES = ("compute_s", "wait_s", "exchange_s", "overhead_s", "encode_cpu_s")
_COSTS = ("session_cpu_s", "apply_cpu_s", "reply_cpu_s")
_LEAST_STEP_S = 1e-6
_SMOOTHING = 0.8
"""Weight of the past in a worker's rate."""


def pace_of(push: Push, batch_size: int) -> Pace | None:
    """Return the pace that a push reports; None if its times are missing or absurd.

    The first push has no exchange time yet. Absurd times must not reach the pacing of all workers.
    """
    step_s = push.compute_s / push.steps
    if step_s < _LEAST_STEP_S or push.exchange_s <= 0:
        return None
    return Pace(step_s, push.exchange_s, push.overhead_s, batch_size)


def record_push(member: Member, push: Push, staleness: int, batch_size: int) -> None:
    """Add an applied push to its worker's totals, pace, rate and last loss.

    Args:
        member: the worker.
        push: its message.
        staleness: of the push, in versions.
        batch_size: of the worker, images per step.
    """
    totals = member.totals
    totals.samples += push.samples
    totals.pushes += 1
    totals.staleness_sum += staleness
    totals.staleness_max = max(totals.staleness_max, staleness)
    totals.bytes_in += push.bytes_out
    totals.bytes_out += push.bytes_in
    totals.compute_s += push.compute_s
    totals.wait_s += push.wait_s
    member.window_s = push.compute_s + push.wait_s
    if (pace := pace_of(push, batch_size)) is not None:
        member.paces.add(pace)
    member.last_loss = push.loss
    if member.window_s > _LEAST_STEP_S:
        rate = push.samples / member.window_s
        past = member.rate or rate
        member.rate = _SMOOTHING * past + (1 - _SMOOTHING) * rate


def facts_of(push: Push, applied: Applied | None) -> dict[str, Any]:
    """Return an event's figures of a push, and of its cost to the session."""
    return {
        "base_version": push.base_version,
        "samples": push.samples,
        "loss": push.loss,
        "lr": push.lr,
        "steps": push.steps,
        **{name: getattr(push, name) for name in _TIMES},
        **{name: getattr(applied, name, None) for name in _COSTS},
    }
