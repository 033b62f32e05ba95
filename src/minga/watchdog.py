"""Says which wait of this process stands still: a thread looks once a second."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_S = 1.0
_PACKAGE = str(Path(__file__).parent)

Report = Callable[[str, float], None]


class Watchdog:
    """Reports where a thread stands when it has not called :meth:`beat` for a while.

    The reports come after ``limit_s``, twice, four times ... that. The watched thread is the one
    that makes this object.

    Args:
        limit_s: seconds without a beat.
        report: called from the watchdog's thread with the place, such as
            ``Trainer._settle (worker/trainer.py:267)``, and the seconds.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self, limit_s: float, report: Report, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s = limit_s
        self._report = report
        self._clock = clock
        self._watched = threading.get_ident()
        self._beaten_s = clock()
        self._next_s = limit_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def beat(self) -> None:
        """Note that the thread goes on."""
        self._beaten_s = self._clock()

    def look(self) -> None:
        """Report if the thread stands still."""
        still_s = self._clock() - self._beaten_s
        if still_s < self._limit_s:
            self._next_s = self._limit_s
        elif still_s >= self._next_s:
            self._next_s = 2 * still_s
            self._report(place_of(self._watched), still_s)

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.look()


def place_of(thread: int) -> str:
    """Return the innermost place in minga's code where a thread is; empty if it has ended."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE):
            where = Path(path).relative_to(_PACKAGE)
            return f"{frame.f_code.co_qualname} ({where}:{frame.f_lineno})"
        frame = frame.f_back
    return ""
