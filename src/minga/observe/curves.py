"""``curves.png``: accuracy and loss over time, from the run's events."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

_SMOOTHING = 0.9


def draw(events: Path, picture: Path) -> Path:
    """Draw a run's curves (validation accuracy, training loss per worker) and return the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss = figure.subplots(1, 2)
    start = _seconds(entries[0]) if entries else 0.0
    measured = [entry for entry in entries if entry["kind"] == "evaluation"]
    accuracy.plot(
        [_seconds(entry) - start for entry in measured],
        [100 * entry["accuracy"] for entry in measured],
        marker="o",
    )
    accuracy.set(xlabel="seconds", ylabel="validation accuracy (%)", title="Accuracy")
    for rank in sorted({entry["rank"] for entry in entries if entry["kind"] == "push"}):
        pushes = [e for e in entries if e["kind"] == "push" and e["rank"] == rank and e.get("loss")]
        loss.plot(
            [_seconds(entry) - start for entry in pushes],
            _smooth([entry["loss"] for entry in pushes]),
            label=f"worker {rank}",
        )
    loss.set(xlabel="seconds", ylabel="training loss (smoothed)", title="Loss")
    if loss.lines:
        loss.legend()
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    return picture


def _seconds(entry: dict[str, Any]) -> float:
    return datetime.fromisoformat(entry["time"]).timestamp()


def _smooth(values: list[float]) -> list[float]:
    smoothed: list[float] = []
    for value in values:
        last = smoothed[-1] if smoothed else value
        smoothed.append(_SMOOTHING * last + (1 - _SMOOTHING) * value)
    return smoothed
