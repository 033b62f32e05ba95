"""Rounds of pushes: in the synchronous modes K pushes get their answers together."""

from __future__ import annotations

import asyncio

from minga.timing import ROUND_S


class Rounds:
    """Counts the pushes of the present round, and closes it.

    Not thread-safe: its owner is one event loop.

    Attributes:
        number: of the present round.
        waiting: owners of the pushes that are in.
    """

    def __init__(self) -> None:
        self.number = 1
        self.waiting: set[str] = set()
        self._arrived = 0
        self._closed = asyncio.Event()

    def arrive(self, owner: str) -> int:
        """Add an applied push; return the number of its round."""
        self.waiting.add(owner)
        self._arrived += 1
        return self.number

    def leave(self, owner: str) -> None:
        """Remove a worker that no longer waits; its push still counts."""
        self.waiting.discard(owner)

    def close_if(self, wanted: int, *, others: bool) -> None:
        """Close the round if it has ``wanted`` pushes, or some and no ``others`` will push."""
        if not self._arrived or (others and self._arrived < wanted):
            return
        self.number += 1
        self.waiting.clear()
        self._arrived = 0
        self._closed.set()
        self._closed = asyncio.Event()

    async def closed(self, number: int) -> bool:
        """Return whether that round is closed; wait for it, at most ROUND_S."""
        if number < self.number:
            return True
        try:
            async with asyncio.timeout(ROUND_S):
                await self._closed.wait()
        except TimeoutError:
            return False
        return True
