"""Large replies take turns on the ps's link: one at a time, each at the full rate.

Transfers that share a link equally all end late and together, so that its two directions
idle in turn: with N workers that only exchange, each direction carries N/(N+1) of its capacity
(mean value analysis of two processor-sharing stations). One at a time, both are full.
"""

from __future__ import annotations

import fcntl
import os
import time

ASK_AGAIN_S = 0.005
HOLD_S = 0.5
"""Then the next one starts as well: a worker on a slow link delays others no longer."""
WAIT_S = 2.0
"""After so long a reply is sent without a turn."""


class Turn:
    """One connection's turn among all session processes.

    The lock is a POSIX record lock on a byte: the kernel frees it when its holder dies. All
    connections of a process hold it together.

    Args:
        descriptor: a file that all of them share.
        byte: place of the lock in it.
    """

    def __init__(self, descriptor: int, byte: int) -> None:
        self._descriptor = descriptor
        self._byte = byte
        self._asked_s: float | None = None
        self._held_from_s: float | None = None
        self._free = False

    def mine(self) -> bool:
        """Return whether this reply may be sent now; if not, ask again in ASK_AGAIN_S."""
        if self._free:
            return True
        now_s = time.monotonic()
        if self._held_from_s is not None:
            if now_s - self._held_from_s > HOLD_S:
                self._let_go()
                self._free = True
            return True
        if self._asked_s is None:
            self._asked_s = now_s
        if self._take():
            self._held_from_s = now_s
            return True
        self._free = now_s - self._asked_s > WAIT_S
        return self._free

    def over(self) -> None:
        """End the turn: the reply is sent."""
        if self._held_from_s is not None:
            self._let_go()
        self._asked_s, self._free = None, False

    def _take(self) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._byte, os.SEEK_SET)
        except OSError:
            return False
        return True

    def _let_go(self) -> None:
        self._held_from_s = None
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, self._byte, os.SEEK_SET)
