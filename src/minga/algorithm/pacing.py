"""The number of local steps between two exchanges (H) for each worker, from measurements.

All windows aim at one length W, so that all PCs push about equally often (DyLU in Async
Local-SGD, 2024, arXiv:2401.09135): a slow PC gets few steps, a fast one many. W is long enough
for the exchange to hide behind half of the next window, and for what cannot be hidden (copying
the weights, taking the reply) to be a small share; short enough that an epoch keeps 8 rounds.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_STEPS = 8
"""Before anything is measured."""
MOST_STEPS = 64
ROUNDS_PER_EPOCH = 8
EVERY_S = 5.0
"""Seconds between two choices of H."""

_RECENT = 5
_ROOM = 2.0
"""An exchange may take half of a window: with more, the ps's link stays full."""
_OVERHEAD_SHARE = 0.02
_ALIKE = 0.15
"""A smaller change of H is noise."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Measured times of one worker's windows.

    Args:
        step_s: seconds of one local step.
        exchange_s: seconds from sending a push to having its reply.
        overhead_s: seconds of a window without training or overlap.
        batch_size: samples of one local step.
    """

    step_s: float
    exchange_s: float
    overhead_s: float
    batch_size: int


class RecentPaces:
    """The paces of one worker's last windows."""

    def __init__(self) -> None:
        self._paces: deque[Pace] = deque(maxlen=_RECENT)

    def add(self, pace: Pace) -> None:
        """Add the pace of a push."""
        self._paces.append(pace)

    @property
    def typical(self) -> Pace | None:
        """Their medians; None before the first window."""
        if not self._paces:
            return None
        return Pace(
            step_s=statistics.median(pace.step_s for pace in self._paces),
            exchange_s=statistics.median(pace.exchange_s for pace in self._paces),
            overhead_s=statistics.median(pace.overhead_s for pace in self._paces),
            batch_size=self._paces[-1].batch_size,
        )


@dataclass(frozen=True, slots=True)
class Pacing:
    """Windows for all workers.

    Args:
        window_s: W, the target length of all windows.
        steps: H by worker.
        short_by: an exchange's share of the longest window that an epoch's 8 rounds allow; above 1
            the network (or the ps) slows training down.
    """

    window_s: float
    steps: dict[int, int]
    short_by: float


def balance(
    paces: Mapping[int, Pace], epoch_samples: int, *, overlap: bool, alike: bool = False
) -> Pacing:
    """Choose H for each worker.

    Args:
        paces: by worker, at least one.
        epoch_samples: size of the training set.
        overlap: whether exchanges hide behind training.
        alike: the same H for all, that of the slowest: plain synchronous local SGD.
    """
    hidden = {who: _ROOM * pace.exchange_s if overlap else 0.0 for who, pace in paces.items()}
    least = {who: _least_window_s(pace, overlap=overlap) for who, pace in paces.items()}
    typical_s = statistics.median(hidden.values())
    slowest_s = max(pace.step_s for pace in paces.values())  # its H is 1 at least
    window_s = max(typical_s, statistics.median(least.values()), slowest_s)
    steps, short_by = {}, 0.0
    for who, pace in paces.items():
        # a PC on a slow link takes longer windows of its own; the others do not wait for it
        own_s = max(window_s, hidden[who], least[who])
        most = most_steps(epoch_samples, len(paces), pace.batch_size)
        steps[who] = min(max(1, round(own_s / pace.step_s)), most)
        short_by = max(short_by, typical_s / _ROOM / (most * pace.step_s))
    if alike:
        steps = dict.fromkeys(steps, min(steps.values()))
    return Pacing(window_s, steps, short_by)


def worth_a_change(chosen: Mapping[int, int], current: Mapping[int, int]) -> bool:
    """Return whether a choice of H differs by more than noise for any worker."""
    return any(abs(steps - current[who]) > _ALIKE * current[who] for who, steps in chosen.items())


def most_steps(epoch_samples: int, workers: int, batch_size: int) -> int:
    """Return the largest H that keeps 8 rounds in an epoch."""
    rounds = epoch_samples / (ROUNDS_PER_EPOCH * workers * batch_size)
    return max(1, min(MOST_STEPS, int(rounds)))


def _least_window_s(pace: Pace, *, overlap: bool) -> float:
    """Return the window in which the overhead is a small share."""
    bare_s = pace.overhead_s + (0.0 if overlap else pace.exchange_s)
    return bare_s / _OVERHEAD_SHARE


def explain(pacing: Pacing, paces: Mapping[int, Pace]) -> str:
    """Return one sentence: the reason for the windows' length, and what would shorten it."""
    exchange_s = statistics.median(pace.exchange_s for pace in paces.values())
    overhead_s = statistics.median(pace.overhead_s for pace in paces.values())
    takes = f"an exchange takes {exchange_s:.2g} s"
    if pacing.short_by > 1:
        return (
            f"network-bound: {takes}, {pacing.short_by:.1f} times what the longest window hides; "
            "a faster link of the ps, fewer workers or larger batches would help"
        )
    if pacing.window_s <= overhead_s / _OVERHEAD_SHARE:
        return f"copying and decoding take {overhead_s:.2g} s: {_OVERHEAD_SHARE:.0%} of a window"
    return f"{takes} and hides behind a window of {pacing.window_s:.2g} s"
