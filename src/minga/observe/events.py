"""The run's event log: one JSON object per line, and listeners for each event."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minga.observe.folder import plain, utc_now
from minga.observe.lines import LineFile

SCHEMA = "minga.event/1"
ALL_WRITTEN = 4000
"""Pushes of one worker, and refusals, that are all written."""
THIN_S = 60.0

Listener = Callable[[dict[str, Any]], None]


class Thinned:
    """Decides which of many alike events are written: the first ones, then one a minute.

    So a run of a week costs a bounded number of lines, however fast its workers push.

    Args:
        seen: events before this process.
    """

    def __init__(self, seen: int = 0) -> None:
        self._seen = seen
        self._unwritten = 0
        self._written_s = -math.inf

    def due(self, now_s: float) -> int:
        """Count an event; return how many the one to be written stands for, or 0."""
        self._seen += 1
        self._unwritten += 1
        if self._seen > ALL_WRITTEN and now_s - self._written_s < THIN_S:
            return 0
        stands_for, self._unwritten, self._written_s = self._unwritten, 0, now_s
        return stands_for


class EventLog:
    """Appends events to ``events.jsonl`` and passes them on to its listeners.

    Attributes:
        file: the lines; they are kept in memory while the disk is full.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.file = LineFile(path)
        self._run_id = run_id
        self._listeners: list[Listener] = []
        self._failed: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Pass every later event to ``listener``."""
        self._listeners.append(listener)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event; non-finite floats become null. A listener that raises ends nothing."""
        event = {
            "schema": SCHEMA,
            "time": utc_now(),
            "run_id": self._run_id,
            "kind": kind,
            **plain(fields),
        }
        self.file.write(json.dumps(event, separators=(",", ":")))
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:
                self._report_failed(listener, error)

    def _report_failed(self, listener: Listener, error: Exception) -> None:
        """Write, once, that a listener fails; it goes on to get every event."""
        if listener not in self._failed:
            self._failed.append(listener)
            name = getattr(listener, "__qualname__", type(listener).__name__)
            self.write("listener_failed", listener=name, reason=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Close the file."""
        self.file.close()
