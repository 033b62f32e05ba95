"""TensorBoard files, written by the ps alone: a view of the events, never the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

    def __call__(self, event: dict[str, Any]) -> None:
        """Draw what can be drawn of an event, over samples counted."""
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
            writer.close()

    def _writer(self, source: str) -> Any:
        if source not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[source] = SummaryWriter(
                str(self._folder / source), purge_step=self._resumed_at
            )
        return self._writers[source]
