"""What each part of ``.ci/run`` took: it notes when each begins, the last part's pytest tells."""

from __future__ import annotations

from collections.abc import Iterator


def clock(notes: str, now_s: float) -> Iterator[str]:
    """Yield a line for each part, and one for all; ``notes`` has ``<second> <part>`` for each."""
    begun = [(float(each.split()[0]), each.partition(" ")[2]) for each in notes.splitlines()]
    ends = [*(start for start, _ in begun[1:]), now_s]
    for (start, name), end in zip(begun, ends, strict=True):
        yield f"{name:<20} {_minutes(end - start)}"
    if begun:
        yield f"{'all':<20} {_minutes(now_s - begun[0][0])}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60:3d} min {int(seconds) % 60:02d} s"
