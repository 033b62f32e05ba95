"""TensorBoard files, written by the ps alone: a view of the events, which are authoritative."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

_PAUSE_S = 60.0
"""Pause after a failed write: a full disk is not tried at every push."""
_PUSH_TAGS = ("loss", "lr", "staleness", "compute_s", "wait_s")


class TensorBoard:
    """A listener of the event log. One folder per source, or TensorBoard loses data.

    Args:
        folder: ``runs/<run id>/tb``.
        resumed_at: samples counted in the checkpoint that the run resumes from; later
            points of the interrupted run are hidden.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        self._folder = folder
        self._resumed_at = resumed_at
        self._writers: dict[str, Any] = {}
        self._again_s = 0.0
        _silence_writers()

    def __call__(self, event: dict[str, Any]) -> None:
        """Plot an event's figures over samples counted.

        While writing fails, points are lost; the events have all of them.
        """
        if time.monotonic() < self._again_s:
            return
        try:
            self._draw(event)
        except OSError:
            self._again_s = time.monotonic() + _PAUSE_S
            self.close()

    def _draw(self, event: dict[str, Any]) -> None:
        if event["kind"] == "push":
            writer = self._writer(f"worker-{event['rank']:02d}")
            for tag in _PUSH_TAGS:
                if event.get(tag) is not None:
                    writer.add_scalar(tag, event[tag], event["samples_done"])
        elif event["kind"] == "evaluation":
            for tag in ("accuracy", "loss"):
                self._writer("ps").add_scalar(f"val/{tag}", event[tag], event["samples_done"])

    def close(self) -> None:
        """Flush and close."""
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                writer.close()
        self._writers.clear()

    def _writer(self, source: str) -> Any:
        if source not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[source] = SummaryWriter(
                str(self._folder / source), purge_step=self._resumed_at
            )
        return self._writers[source]


def _silence_writers() -> None:
    """Keep a writer's thread from printing a traceback: its error is raised at the next event."""
    shown = threading.excepthook

    def show(failed: threading.ExceptHookArgs) -> None:
        if not (
            isinstance(failed.exc_value, OSError)
            and type(failed.thread).__module__.startswith("tensorboard.")
        ):
            shown(failed)

    threading.excepthook = show
