"""Places for connections that are not authenticated yet."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

FAILURES = 16
"""Failed handshakes of one address in BACK_OFF_S, after which it has few places."""
FEW = 32
BACK_OFF_S = 60.0
MOST_ADDRESSES = 1024
"""Addresses whose failures are remembered; of more, the oldest are forgotten."""

Visitor = TypeVar("Visitor")


class WaitingRoom(Generic[Visitor]):
    """Places for visitors, by address.

    A full room drops the oldest visitor of the address that has the most, so a flood costs its
    own address places. An address whose handshakes keep failing has few places, for a minute.

    Args:
        places: in all.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._by_address: dict[str, OrderedDict[Visitor, None]] = {}
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of visitors."""
        return sum(map(len, self._by_address.values()))

    def visitors(self) -> list[Visitor]:
        """Return all visitors."""
        return [each for theirs in self._by_address.values() for each in theirs]

    def enter(self, visitor: Visitor, address: str, now_s: float) -> list[Visitor]:
        """Give a visitor a place; return those who lose theirs."""
        self._by_address.setdefault(address, OrderedDict())[visitor] = None
        dropped = []
        while len(self._by_address[address]) > self._share(address, now_s):
            dropped.append(self._oldest_of(address))
        while len(self) > self._places:
            crowded = max(self._by_address, key=lambda each: len(self._by_address[each]))
            dropped.append(self._oldest_of(crowded))
        return dropped

    def leave(self, visitor: Visitor, address: str) -> None:
        """Free a visitor's place, if it still has one."""
        theirs = self._by_address.get(address)
        if theirs is not None:
            theirs.pop(visitor, None)
            if not theirs:
                del self._by_address[address]

    def failed(self, address: str, now_s: float) -> None:
        """Count a failed handshake of an address."""
        failures = self._failures.setdefault(address, deque(maxlen=FAILURES))
        failures.append(now_s)
        self._failures.move_to_end(address)
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def _share(self, address: str, now_s: float) -> int:
        failures = self._failures.get(address, ())
        recent = sum(now_s - at_s < BACK_OFF_S for at_s in failures)
        return FEW if recent >= FAILURES else self._places

    def _oldest_of(self, address: str) -> Visitor:
        oldest = next(iter(self._by_address[address]))
        self.leave(oldest, address)
        return oldest
