"""A run on disk and in memory: created, resumed, saved."""

from __future__ import annotations

import asyncio
import dataclasses
import platform
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from minga import __version__
from minga.algorithm.layout import Layout
from minga.data.facts import DataFacts
from minga.errors import Hint, Refused
from minga.observe.events import EventLog
from minga.observe.folder import RunFolder
from minga.protocol import TRAIN
from minga.ps import checkpoint
from minga.ps.bookkeeper import Bookkeeper
from minga.ps.evaluation import Measured
from minga.ps.journal import Journal
from minga.ps.members import Members
from minga.ps.parameters import SharedParameters
from minga.ps.run_plan import Plan
from minga.ps.sessions import Handle
from minga.settings.schema import Settings
from minga.tasks import zoo
from minga.timing import CAPTURE_S

if TYPE_CHECKING:
    from collections.abc import Callable


class RunState:
    """A run's settings, folder, and everything that a checkpoint keeps.

    Args:
        settings: resolved settings.
        folder: of the run.
        resumed: content of ``last.pth``, or None for a new run.
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
        self._layout: Layout | None = None
        self._saving = asyncio.Lock()
        self._journal: Journal | None = None
        self._owed: dict[str, Any] | None = None
        """Content of ``best.pth`` that could not be written yet."""
        if resumed:
            self.measured = [Measured(**each) for each in resumed["measured"]]
            self.members.restore(resumed["members"], self.started_s)

    @property
    def wall_s(self) -> float:
        """Seconds of the run, without the time between a stop and its resume."""
        return self.earlier_s + time.monotonic() - self.started_s

    @property
    def best_accuracy(self) -> float | None:
        """Best validation accuracy so far."""
        return max((each.accuracy for each in self.measured), default=None)

    def prepare(self, facts: DataFacts, nominal_workers: int) -> Bookkeeper:
        """Build the model's parameters and the bookkeeper, new or from the checkpoint (blocking).

        Raises:
            UsageError: the model cannot be built.
            Refused: ``data-differs`` from the data that the checkpoint was trained on.
        """
        resumed = self.resumed
        if resumed and resumed["facts"] != facts.to_dict():
            raise Refused(
                f"the data are not those of {self.run_id}",
                code="data-differs",
                hints=(Hint("start a new run", "minga ps --resume none"),),
            )
        chosen = self.settings.model
        model = zoo.build_model(
            chosen.name,
            facts.classes,
            facts.image_size,
            stem=chosen.stem,
            seed=self.settings.train.seed,
        )
        self._layout = layout = Layout(model)
        state = resumed["model"] if resumed else model.state_dict()
        weights, buffers = layout.flatten(state)
        parameters = SharedParameters.create(weights, buffers)
        self._journal = journal = Journal(self.folder.path / "journal.jsonl")
        nominal = int(resumed["nominal_workers"]) if resumed else nominal_workers
        bookkeeper = Bookkeeper(
            Plan(self.settings, facts, nominal),
            parameters=parameters,
            journal=journal,
            events=self.events,
            members=self.members,
        )
        if resumed:
            parameters.load(weights, buffers, int(resumed["version"]))
            bookkeeper.restore(resumed)
            self.repeated_pushes = journal.resume(int(resumed["journal_lines"]))
            self.events.write(
                "resume",
                version=parameters.version,
                samples_done=bookkeeper.ledger.counted,
                repeated_pushes=self.repeated_pushes,
            )
        else:
            journal.resume(0)  # a ps of this run may have died before its first checkpoint
        return bookkeeper

    async def save(self, bookkeeper: Bookkeeper, handles: Callable[[], list[Handle]]) -> None:
        """Write ``last.pth``: weights and books of one moment.

        On failure the old file stays, an event has the reason, and the next attempt may succeed.
        """
        async with self._saving:
            await self._write_best()
            try:
                content = await asyncio.to_thread(
                    self._capture, bookkeeper, handles, asyncio.get_running_loop()
                )
                started_s = time.monotonic()
                await asyncio.to_thread(
                    checkpoint.write, self.folder.last, content, keep=self.folder.previous
                )
            except OSError as error:
                self.events.write("checkpoint_failed", reason=f"{self.folder.last.name}: {error}")
                return
        self.events.write(
            "checkpoint",
            version=content["version"],
            samples_done=bookkeeper.ledger.counted,
            write_s=time.monotonic() - started_s,
        )

    async def save_best(self, bookkeeper: Bookkeeper, result: Measured) -> None:
        """Write ``best.pth``, the evaluated snapshot, now or when the disk has space."""
        async with self._saving:
            self._owed = await asyncio.to_thread(self._best, bookkeeper, result)
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

    def _best(self, bookkeeper: Bookkeeper, result: Measured) -> dict[str, Any]:
        parameters = bookkeeper.parameters
        content = self._about(
            bookkeeper.plan.facts, parameters.frozen_weights(), parameters.frozen_buffers()
        )
        content.update(dataclasses.asdict(result))
        return content

    def unwritten(self) -> OSError | None:
        """Try to write the lines that events and journal keep in memory; return the failure."""
        for log in (self.events, self._journal):
            if log is not None and not log.file.flush():
                return log.file.trouble
        return None

    def _capture(
        self,
        bookkeeper: Bookkeeper,
        handles: Callable[[], list[Handle]],
        loop: asyncio.AbstractEventLoop,
    ) -> dict[str, Any]:
        """Copy weights and books while no push can be applied (runs in a thread)."""
        parameters = bookkeeper.parameters
        books: dict[str, Any] = {}
        copied = threading.Event()

        def copy_books() -> None:
            for handle in handles():
                bookkeeper.settle(handle)  # applied, but not reported yet
            # a checkpoint must not count entries that exist in memory only
            books.update(unwritten=not bookkeeper.journal.file.flush())
            books.update(
                bookkeeper.state(),
                members=self.members.state(),
                measured=[dataclasses.asdict(each) for each in self.measured],
                wall_s=self.wall_s,
            )
            copied.set()

        with parameters.locked():
            weights, buffers, version = parameters.snapshot()
            loop.call_soon_threadsafe(copy_books)
            if not copied.wait(CAPTURE_S):
                raise TimeoutError("the ps's event loop stands still")
        if books.pop("unwritten"):
            raise bookkeeper.journal.file.trouble or OSError("the journal cannot be written")
        content = self._about(bookkeeper.plan.facts, weights, buffers)
        content.update(
            books,
            version=version,
            nominal_workers=bookkeeper.plan.nominal_workers,
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
            "facts": facts.to_dict(),
            "model": self._layout.state_dict(weights, buffers),
            "minga": __version__,
            "torch": str(torch.__version__),
            "host": platform.node(),
        }
