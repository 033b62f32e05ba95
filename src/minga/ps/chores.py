"""The ps's regular work: a chore that fails, or stands still, is an event and ends nothing."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable

from minga.observe.events import EventLog
from minga.watchdog import Watchdog

LOOP_STILL_S = 10.0
"""Without :meth:`Chores.note_alive`; then the ps says where its event loop stands."""
CHORE_STILL_S = 60.0
"""A chore that takes longer is an event; it is waited for all the same."""

Chore = Callable[[], Awaitable[None]]


class Chores:
    """Runs chores on the event loop; their names are those of their functions.

    Attributes:
        warn: called at once when the event loop stands still, from another thread.
        watchdog: of the event loop; started and closed by the owner.
    """

    def __init__(self, events: EventLog, clock: Callable[[], float] = time.monotonic) -> None:
        self.warn: Callable[[str], None] = lambda text: None
        self.watchdog = Watchdog(LOOP_STILL_S, self._loop_stands)
        self.events = events
        self._clock = clock
        self._failing: dict[str, str] = {}
        """Chores that failed the last time, and why."""
        self._begun_s: dict[str, float] = {}
        """Chores in progress that are not reported yet."""
        self._stalls: deque[tuple[str, float]] = deque()
        """Places where the event loop stood, not written yet."""

    async def every(self, seconds: float, chore: Chore) -> None:
        """Run a chore again and again, with so long between."""
        while True:
            await asyncio.sleep(seconds)
            await self.attempt(chore)

    async def attempt(self, chore: Chore) -> None:
        """Run a chore once; one that fails is an event, at each new reason."""
        name = chore.__name__.strip("_")
        self._begun_s[name] = self._clock()
        try:
            await chore()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if self._failing.get(name) != reason:
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.events.write(
                    "chore_failed", chore=name, reason=reason, at=f"{where.name}:{where.lineno}"
                )
            self._failing[name] = reason
        else:
            self._failing.pop(name, None)
        finally:
            self._begun_s.pop(name, None)

    def note_alive(self) -> None:
        """Note that the event loop goes on, and write what stood still."""
        self.watchdog.beat()
        while self._stalls:
            place, seconds = self._stalls.popleft()
            self.events.write("stalled", what="event loop", at=place, seconds=seconds)
        for name, begun_s in list(self._begun_s.items()):
            seconds = self._clock() - begun_s
            if seconds > CHORE_STILL_S:
                del self._begun_s[name]
                self.events.write("stalled", what="chore", at=name, seconds=seconds)

    def _loop_stands(self, place: str, seconds: float) -> None:
        """Say it at once; the event is written when the loop goes on."""
        self._stalls.append((place, seconds))
        self.warn(f"the ps has stood still for {seconds:.0f} s in {place}")
