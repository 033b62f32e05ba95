"""``curves.png``: accuracy and loss over time, from the run's events."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

_SMOOTHING = 0.9
_MOST_POINTS = 2000
"""Of one curve: more are thinned while they are read."""


class _Curve:
    """Points of one curve; halves them when there are too many."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.values: list[float] = []
        self._every = 1
        self._seen = 0

    def add(self, time_s: float, value: float) -> None:
        """Add a point."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        self.times.append(time_s)
        self.values.append(value)
        if len(self.times) > _MOST_POINTS:
            del self.times[1::2], self.values[1::2]
            self._every *= 2


def draw(events: Path, picture: Path) -> Path:
    """Draw a run's curves (validation accuracy, training loss per worker) and return the path.

    The events are read one by one; what is no event, or a missing file, is left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    accuracies, losses = _read(events)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss = figure.subplots(1, 2)
    accuracy.plot(accuracies.times, accuracies.values, marker="o")
    accuracy.set(xlabel="seconds", ylabel="validation accuracy (%)", title="Accuracy")
    for rank, curve in sorted(losses.items()):
        loss.plot(curve.times, _smooth(curve.values), label=f"worker {rank}")
    loss.set(xlabel="seconds", ylabel="training loss (smoothed)", title="Loss")
    if loss.lines:
        loss.legend()
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    return picture


def _read(events: Path) -> tuple[_Curve, dict[int, _Curve]]:
    """Return accuracy in percent, and loss by rank, over the seconds since the first event."""
    accuracies, losses = _Curve(), defaultdict[int, _Curve](_Curve)
    start: float | None = None
    with contextlib.suppress(FileNotFoundError), events.open(encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                at = _seconds(event)
                start = at if start is None else start
                if event["kind"] == "evaluation":
                    accuracies.add(at - start, 100 * event["accuracy"])
                elif event["kind"] == "push" and event.get("loss"):
                    losses[event["rank"]].add(at - start, float(event["loss"]))
    return accuracies, losses


def _seconds(entry: dict[str, Any]) -> float:
    return datetime.fromisoformat(entry["time"]).timestamp()


def _smooth(values: list[float]) -> list[float]:
    smoothed: list[float] = []
    for value in values:
        last = smoothed[-1] if smoothed else value
        smoothed.append(_SMOOTHING * last + (1 - _SMOOTHING) * value)
    return smoothed
