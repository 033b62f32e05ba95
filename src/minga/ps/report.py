"""The reports of a run: ``status.json`` while it goes on, ``summary.json`` at its end."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from minga.observe.folder import write_json
from minga.ps.bookkeeper import Bookkeeper
from minga.ps.members import Member
from minga.ps.run_state import RunState


class Report:
    """Builds and writes the reports of one run.

    Args:
        state: the run; nothing of it is changed.
    """

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._disk_failed = False

    def publish(self, bookkeeper: Bookkeeper | None, refused_visitors: int) -> dict[str, Any]:
        """Write ``status.json`` and return its content; a full disk is an event, not an error."""
        state = self._state
        status = self.status(bookkeeper)
        status["refused_visitors"] = refused_visitors
        failure = state.unwritten()
        try:
            write_json(state.folder.path / "status.json", status)
        except OSError as error:
            failure = failure or error
        if failure and not self._disk_failed:
            state.events.write("disk_trouble", reason=str(failure))
        elif self._disk_failed and not failure:
            state.events.write("disk_recovered")
        self._disk_failed = failure is not None
        return status

    def status(self, bookkeeper: Bookkeeper | None) -> dict[str, Any]:
        """Return the run as it is now: the content of ``status.json``, shown on the screen."""
        state = self._state
        workers = [self._worker(member) for member in state.members]
        counted = bookkeeper.ledger.counted if bookkeeper else 0
        total = bookkeeper.plan.total_samples if bookkeeper else 0
        rate = sum(worker["samples_per_s"] for worker in workers)
        losses = [worker["loss"] for worker in workers if worker["loss"] is not None]
        return {
            "schema": "minga.status/1",
            "run_id": state.run_id,
            "state": (bookkeeper.phase if bookkeeper else "waiting for workers"),
            "epoch": bookkeeper.ledger.complete_epochs if bookkeeper else 0,
            "epochs": state.settings.train.epochs,
            "samples": counted,
            "total_samples": total,
            "version": bookkeeper.parameters.version if bookkeeper else 0,
            "accuracy": state.measured[-1].accuracy if state.measured else None,
            "best_accuracy": state.best_accuracy,
            "loss": sum(losses) / len(losses) if losses else None,
            "samples_per_s": rate,
            "eta_s": (total - counted) / rate if rate else None,
            "up_s": state.wall_s,
            "refused": sum(worker["refused"] for worker in workers),
            "workers": workers,
        }

    def _worker(self, member: Member) -> dict[str, Any]:
        return {
            "rank": member.rank,
            "name": member.name,
            "host": member.host,
            "hostname": member.hostname,
            "device": member.device,
            "state": member.state,
            "loss": member.last_loss,
            "local_steps": self._state.settings.exchange.local_steps or member.steps,
            "samples_per_s": member.rate if member.state == "training" else 0.0,
            "staleness_mean": member.totals.staleness_sum / max(1, member.totals.pushes),
            "last_seen_s": time.monotonic() - member.heard_s,
            **dataclasses.asdict(member.totals),
        }

    def summary(self, bookkeeper: Bookkeeper) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        state = self._state
        status = self.status(bookkeeper)
        wall_s = state.wall_s
        return {
            "schema": "minga.summary/1",
            "run_id": state.run_id,
            "model": state.settings.model.name,
            "val_accuracy": status["accuracy"],
            "best_val_accuracy": status["best_accuracy"],
            "samples": status["samples"],
            "epochs": status["epoch"],
            "version": status["version"],
            "wall_s": wall_s,
            "samples_per_s": status["samples"] / wall_s,
            "workers": status["workers"],
            "rejected": status["refused"],
            "resumed_from": state.resumed["version"] if state.resumed else None,
            "repeated_pushes": state.repeated_pushes,
        }
