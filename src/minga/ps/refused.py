"""Refusals connections, counted: floods of them must not fill the disk or the screen."""

from __future__ import annotations

from dataclasses import dataclass

EVERY_S = 60.0
"""An address and reason are reported at once, and then at most once in so long."""
MOST = 256
"""Pairs of address and reason that are counted apart; the rest is one pair."""
OTHERS = "other addresses"


@dataclass(slots=True)
class _Count:
    reported_s: float
    times: int = 0


@dataclass(frozen=True, slots=True)
class Refusals:
    """So many refusals of one address for one reason since the last report."""

    host: str
    reason: str
    times: int


class RefusedConnections:
    """Counts refusals by address and reason."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[tuple[str, str], _Count] = {}

    def add(self, host: str, reason: str, now_s: float) -> Refusals | None:
        """Count a refusal; return what is to be reported now."""
        self.total += 1
        key = (host, reason)
        if key not in self._counts and len(self._counts) >= MOST:
            key = (OTHERS, "various")
        count = self._counts.get(key)
        if count is None:
            self._counts[key] = _Count(now_s)
            return Refusals(*key, times=1)
        count.times += 1
        return None

    def due(self, now_s: float) -> list[Refusals]:
        """Return what is to be reported now, and forget addresses that stayed away."""
        reports = []
        for key, count in [*self._counts.items()]:
            if now_s - count.reported_s < EVERY_S:
                continue
            if count.times:
                reports.append(Refusals(*key, times=count.times))
                self._counts[key] = _Count(now_s)
            else:
                del self._counts[key]
        return reports
