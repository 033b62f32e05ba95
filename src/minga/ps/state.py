"""What a run is on disk and in memory: made, resumed, saved, published."""

from __future__ import annotations

import asyncio
import dataclasses
import platform
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from minga import __version__, models
from minga.config import Settings
from minga.errors import Hint, Refused
from minga.observe.events import EventLog
from minga.observe.folder import RunFolder, write_json
from minga.protocol import TRAIN
from minga.ps import checkpoint
from minga.ps.accounts import Accounts
from minga.ps.evaluation import Measured
from minga.ps.facts import DataFacts, Plan
from minga.ps.journal import Journal
from minga.ps.members import Members
from minga.ps.parameters import SharedParameters
from minga.ps.sessions import Handle

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOP_S = 30.0


class RunState:
    """A run's settings, folder, and everything that a checkpoint keeps.

    Args:
        settings: resolved settings.
        folder: where the run's files go.
        resumed: what ``last.pth`` held, or None for a new run.
    """

    def __init__(
        self, settings: Settings, folder: RunFolder, resumed: dict[str, Any] | None
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.run_id = folder.path.name
        self.resumed = resumed
        self.events = EventLog(folder.path / "events.jsonl", self.run_id)
        self.members = Members()
        self.measured: list[Measured] = []
        self.started_s = time.monotonic()
        self.earlier_s = float(resumed["wall_s"]) if resumed else 0.0
        self.repeated_pushes = 0
        self._layout: models.Layout | None = None
        self._saving = asyncio.Lock()
        self._journal: Journal | None = None
        self._owed: dict[str, Any] | None = None
        """What belongs into ``best.pth`` and could not be written yet."""
        self._trouble = False
        if resumed:
            self.measured = [Measured(**each) for each in resumed["measured"]]
            self.members.restore(resumed["members"], self.started_s)

    @property
    def wall_s(self) -> float:
        """Seconds that the run took, without the time between a stop and its resume."""
        return self.earlier_s + time.monotonic() - self.started_s

    @property
    def best_accuracy(self) -> float | None:
        """Best validation accuracy so far."""
        return max((each.accuracy for each in self.measured), default=None)

    def prepare(self, facts: DataFacts, nominal_workers: int) -> Accounts:
        """Build the model's parameters and the books, new or from the checkpoint (blocking).

        Raises:
            UsageError: the model cannot be built.
            Refused: ``data-differs`` from the data that the checkpoint was trained on.
        """
        resumed = self.resumed
        if resumed and resumed["facts"] != dataclasses.asdict(facts):
            raise Refused(
                f"the data are not those that {self.run_id} was trained on",
                code="data-differs",
                hints=(Hint("begin a new run", "minga ps --resume none"),),
            )
        chosen = self.settings.model
        model = models.build_model(
            chosen.name,
            facts.classes,
            facts.image_size,
            stem=chosen.stem,
            seed=self.settings.train.seed,
        )
        self._layout = layout = models.Layout(model)
        state = resumed["model"] if resumed else model.state_dict()
        weights, buffers = layout.flatten(state)
        parameters = SharedParameters.create(weights, buffers)
        self._journal = journal = Journal(self.folder.path / "journal.jsonl")
        nominal = int(resumed["nominal_workers"]) if resumed else nominal_workers
        accounts = Accounts(
            Plan(self.settings, facts, nominal),
            parameters=parameters,
            journal=journal,
            events=self.events,
            members=self.members,
        )
        if resumed:
            parameters.load(weights, buffers, int(resumed["version"]))
            accounts.ledger.restore(resumed["ledger"])
            accounts.last_sequence = dict(resumed["last_sequence"])
            accounts.last_push = int(resumed["last_push"])
            self.repeated_pushes = journal.resume(int(resumed["journal_lines"]))
            self.events.write(
                "resume",
                version=parameters.version,
                samples_done=accounts.ledger.counted,
                repeated_pushes=self.repeated_pushes,
            )
        else:
            journal.resume(0)  # a ps of this run may have died before its first checkpoint
        return accounts

    async def save(self, accounts: Accounts, handles: Callable[[], list[Handle]]) -> None:
        """Write ``last.pth``: weights and books of one and the same moment.

        Where that fails the old one stays, an event says why, and the next time may go well.
        """
        async with self._saving:
            await self._write_best()
            try:
                content = await asyncio.to_thread(
                    self._capture, accounts, handles, asyncio.get_running_loop()
                )
                started_s = time.monotonic()
                await asyncio.to_thread(checkpoint.write, self.folder.last, content)
            except OSError as error:
                self.events.write("checkpoint_failed", reason=f"{self.folder.last.name}: {error}")
                return
        self.events.write(
            "checkpoint",
            version=content["version"],
            samples_done=accounts.ledger.counted,
            write_s=time.monotonic() - started_s,
        )

    async def save_best(self, accounts: Accounts, result: Measured) -> None:
        """Write ``best.pth``: the very snapshot that was measured, now or when there is room."""
        async with self._saving:
            self._owed = await asyncio.to_thread(self._best, accounts, result)
            await self._write_best()

    async def _write_best(self) -> None:
        if self._owed is None:
            return
        try:
            await asyncio.to_thread(checkpoint.write, self.folder.best, self._owed)
        except OSError as error:
            self.events.write("checkpoint_failed", reason=f"{self.folder.best.name}: {error}")
            return
        self._owed = None

    def _best(self, accounts: Accounts, result: Measured) -> dict[str, Any]:
        parameters = accounts.parameters
        content = self._about(
            accounts.plan.facts, parameters.frozen_weights(), parameters.frozen_buffers()
        )
        content.update(dataclasses.asdict(result))
        return content

    def publish(self, accounts: Accounts | None, refused_visitors: int) -> dict[str, Any]:
        """Write ``status.json`` if that can be, and return what belongs in it."""
        status = self.status(accounts)
        status["refused_visitors"] = refused_visitors
        trouble = self.unwritten()
        try:
            write_json(self.folder.path / "status.json", status)
        except OSError as error:
            trouble = trouble or error
        if trouble and not self._trouble:
            self.events.write("disk_trouble", reason=str(trouble))
        elif self._trouble and not trouble:
            self.events.write("disk_recovered")
        self._trouble = trouble is not None
        return status

    def unwritten(self) -> OSError | None:
        """Try to write what events and journal keep in memory; return why it stays there."""
        for log in (self.events, self._journal):
            if log is not None and not log.file.flush():
                return log.file.trouble
        return None

    def status(self, accounts: Accounts | None) -> dict[str, Any]:
        """Return the run as it is now: what ``status.json`` holds and the screen shows."""
        now_s = time.monotonic()
        workers = [
            {
                "rank": member.rank,
                "name": member.name,
                "host": member.host,
                "hostname": member.hostname,
                "device": member.device,
                "state": member.state,
                "loss": member.last_loss,
                "local_steps": self.settings.exchange.local_steps or member.steps,
                "samples_per_s": member.rate if member.state == "training" else 0.0,
                "staleness_mean": member.totals.staleness_sum / max(1, member.totals.pushes),
                "last_seen_s": now_s - member.heard_s,
                **dataclasses.asdict(member.totals),
            }
            for member in self.members
        ]
        counted = accounts.ledger.counted if accounts else 0
        total = accounts.plan.total_samples if accounts else 0
        rate = sum(worker["samples_per_s"] for worker in workers)
        losses = [worker["loss"] for worker in workers if worker["loss"] is not None]
        return {
            "schema": "minga.status/1",
            "run_id": self.run_id,
            "state": (accounts.phase if accounts else "waiting for workers"),
            "epoch": accounts.ledger.complete_epochs if accounts else 0,
            "epochs": self.settings.train.epochs,
            "samples": counted,
            "total_samples": total,
            "version": accounts.parameters.version if accounts else 0,
            "accuracy": self.measured[-1].accuracy if self.measured else None,
            "best_accuracy": self.best_accuracy,
            "loss": sum(losses) / len(losses) if losses else None,
            "samples_per_s": rate,
            "eta_s": (total - counted) / rate if rate else None,
            "up_s": self.wall_s,
            "refused": sum(worker["refused"] for worker in workers),
            "workers": workers,
        }

    def summary(self, accounts: Accounts) -> dict[str, Any]:
        """Return what ``summary.json`` holds."""
        status = self.status(accounts)
        wall_s = self.wall_s
        return {
            "schema": "minga.summary/1",
            "run_id": self.run_id,
            "model": self.settings.model.name,
            "val_accuracy": status["accuracy"],
            "best_val_accuracy": status["best_accuracy"],
            "samples": status["samples"],
            "epochs": status["epoch"],
            "version": status["version"],
            "wall_s": wall_s,
            "samples_per_s": status["samples"] / wall_s,
            "workers": status["workers"],
            "rejected": status["refused"],
            "resumed_from": self.resumed["version"] if self.resumed else None,
            "repeated_pushes": self.repeated_pushes,
        }

    def _capture(
        self,
        accounts: Accounts,
        handles: Callable[[], list[Handle]],
        loop: asyncio.AbstractEventLoop,
    ) -> dict[str, Any]:
        """Copy weights and books while no push can be applied (runs beside the loop)."""
        parameters = accounts.parameters
        books: dict[str, Any] = {}
        copied = threading.Event()

        def copy_books() -> None:
            for handle in handles():
                accounts.settle(handle)  # applied, but not reported yet
            # a checkpoint must not count entries that would die with this process
            books.update(unwritten=not accounts.journal.file.flush())
            books.update(
                ledger=accounts.ledger.state(),
                last_sequence=dict(accounts.last_sequence),
                last_push=accounts.last_push,
                journal_lines=accounts.journal.lines,
                members=self.members.state(),
                measured=[dataclasses.asdict(each) for each in self.measured],
                wall_s=self.wall_s,
            )
            copied.set()

        with parameters.locked():
            weights, buffers, version = parameters.snapshot()
            loop.call_soon_threadsafe(copy_books)
            if not copied.wait(_LOOP_S):
                raise TimeoutError("the ps's event loop stands still")
        if books.pop("unwritten"):
            raise accounts.journal.file.trouble or OSError("the journal cannot be written")
        content = self._about(accounts.plan.facts, weights, buffers)
        content.update(
            books,
            version=version,
            nominal_workers=accounts.plan.nominal_workers,
            phase=TRAIN,
        )
        return content

    def _about(
        self, facts: DataFacts, weights: torch.Tensor, buffers: torch.Tensor
    ) -> dict[str, Any]:
        assert self._layout is not None, "prepare() comes first"
        return {
            "run_id": self.run_id,
            "settings": self.settings.to_dict(),
            "facts": dataclasses.asdict(facts),
            "model": self._layout.state_dict(weights, buffers),
            "minga": __version__,
            "torch": str(torch.__version__),
            "host": platform.node(),
        }
