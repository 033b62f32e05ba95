"""The run's event log: one JSON object per line, and listeners for each event."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minga.observe.folder import plain, utc_now
from minga.observe.lines import LineFile

SCHEMA = "minga.event/1"

Listener = Callable[[dict[str, Any]], None]


class EventLog:
    """Appends events to ``events.jsonl`` and passes them on to its listeners.

    Attributes:
        file: the lines; they are kept in memory while the disk is full.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.file = LineFile(path)
        self._run_id = run_id
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Pass every later event to ``listener``."""
        self._listeners.append(listener)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event; non-finite floats become null."""
        event = {
            "schema": SCHEMA,
            "time": utc_now(),
            "run_id": self._run_id,
            "kind": kind,
            **plain(fields),
        }
        self.file.write(json.dumps(event, separators=(",", ":")))
        for listener in self._listeners:
            listener(event)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
