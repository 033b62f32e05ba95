"""A link as a fluid: concurrent transfers share its rate fairly, without queues or packets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import simpy

_AT_ONCE = 1e-9
"""Transfers whose ends are closer than this share of the time left end together."""


def fair_rates(limits: Sequence[float], capacity: float) -> list[float]:
    """Return each flow's max-min fair share of a capacity.

    A flow that wants less than an equal share gets what it wants; the others share the rest.

    Args:
        limits: the most that each flow can take.
        capacity: of all together, in the same unit.
    """
    if not limits:
        return []
    if min(limits) * len(limits) >= capacity:
        return [capacity / len(limits)] * len(limits)
    rates, left, waiting = [0.0] * len(limits), capacity, len(limits)
    for index in sorted(range(len(limits)), key=limits.__getitem__):
        rates[index] = min(limits[index], left / waiting)
        left -= rates[index]
        waiting -= 1
    return rates


@dataclass(slots=True, eq=False)
class _Transfer:
    left_bytes: float
    limit: float
    done: simpy.Event
    rate: float = field(default=0.0)


class SharedLink:
    """One direction of a link. Rates are recomputed when a transfer begins or ends.

    Args:
        env: the simulation.
        bytes_per_s: of all transfers together.
    """

    def __init__(self, env: simpy.Environment, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._env = env
        self._transfers: list[_Transfer] = []
        self._carried_bytes = 0.0
        self._at_s = 0.0
        self._choice = 0

    @property
    def carried_bytes(self) -> float:
        """Bytes carried so far, including those of unfinished transfers."""
        elapsed_s = self._env.now - self._at_s
        return self._carried_bytes + elapsed_s * sum(each.rate for each in self._transfers)

    def send(self, size_bytes: float, limit: float = float("inf")) -> simpy.Event:
        """Return the event that so many bytes have arrived.

        Args:
            size_bytes: above 0.
            limit: bytes per second of the slower of the two ends.
        """
        self._advance()
        transfer = _Transfer(size_bytes, limit, self._env.event())
        self._transfers.append(transfer)
        self._share()
        return transfer.done

    def _advance(self) -> None:
        elapsed_s = self._env.now - self._at_s
        self._carried_bytes = self.carried_bytes
        for each in self._transfers:
            each.left_bytes -= each.rate * elapsed_s
        self._at_s = self._env.now

    def _share(self) -> None:
        """Compute all rates, and wake up when the first transfer ends."""
        self._choice += 1
        if not self._transfers:
            return
        rates = fair_rates([each.limit for each in self._transfers], self.bytes_per_s)
        for each, rate in zip(self._transfers, rates, strict=True):
            each.rate = rate
        left_s = [each.left_bytes / each.rate for each in self._transfers]
        soonest_s = max(0.0, min(left_s))
        together_s = soonest_s + _AT_ONCE * max(1.0, soonest_s)
        ended = [e for e, s in zip(self._transfers, left_s, strict=True) if s <= together_s]
        choice = self._choice

        def wake(_: object) -> None:
            if choice == self._choice:  # else another transfer has begun
                self._end(ended)

        self._env.timeout(soonest_s).callbacks.append(wake)

    def _end(self, ended: list[_Transfer]) -> None:
        self._advance()
        self._transfers = [each for each in self._transfers if each not in ended]
        for each in ended:
            each.done.succeed()
        self._share()
