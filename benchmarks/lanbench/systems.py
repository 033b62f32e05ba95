"""The systems that are measured: how each is started, when it is warm, what it has trained."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lanbench.fake_device import SUBJECTS
from lanbench.place import Place
from minga.ps.journal import audit
from minga.transport.identity import Identity

PORT = 30005
STEP_S = 0.128
"""Of a batch of 128: a GPU that trains 1000 images per second."""
_LIMIT_S = 900.0
_LOOK_S = 0.5
_MINUTE_S = 60.0
_SETTLED_S = 12.0
"""H is chosen every 5 s; without a change for so long, and for two windows, it is settled."""


@dataclass(frozen=True)
class Mark:
    """A worker had trained so many samples more by then."""

    at_s: float
    worker: int
    samples: int


@dataclass(frozen=True)
class Case:
    """One row to measure.

    Args:
        system: a key of SYSTEMS.
        subject: a key of SUBJECTS.
        workers: how many.
        slow: links and compute are slowed by this factor.
        window_s: seconds that are measured.
        settings: of minga, on top of its defaults.
    """

    system: str
    subject: str
    workers: int
    slow: float
    window_s: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"{self.system}-{self.subject}-{self.workers}"

    @property
    def step_s(self) -> float:
        """Seconds of a local step."""
        return STEP_S * self.slow


class System(ABC):
    """A system under measurement on its PCs; PC 0 is the ps's, the others are the workers'."""

    has_ps = True

    def __init__(self, there: Place, case: Case) -> None:
        self.there = there
        self.case = case
        self._arguments = (case.subject, case.step_s)

    @abstractmethod
    def start(self) -> None:
        """Start all processes."""

    @abstractmethod
    def marks(self) -> list[Mark]:
        """Return all that was trained so far."""

    @abstractmethod
    def warm(self) -> bool:
        """Whether it runs as it will go on running."""

    def wait_until(self, true: Callable[[], object]) -> None:
        """Return when that is so. Raises RuntimeError when a process ended or after 15 min."""
        deadline = time.monotonic() + _LIMIT_S
        while not true():
            self.there.require_alive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.case.name} did not get going")
            time.sleep(_LOOK_S)

    def finish(self) -> dict[str, Any]:
        """Check what can be checked at the end; return more columns for the row."""
        return {}

    def each_has(self, count: int, since_s: float = 0.0) -> bool:
        """Whether every worker has so many marks since then."""
        seen = [mark.worker for mark in self.marks() if mark.at_s >= since_s]
        return all(seen.count(worker) >= count for worker in range(1, self.case.workers + 1))


class Minga(System):
    """The product: real ps, real sessions, the product's trainer; the local step is a wait."""

    def start(self) -> None:
        """Start the ps, then the workers."""
        there, case = self.there, self.case
        identity = Identity.load_or_create(there.folder / "state")
        flags = [
            f"--port={PORT}",
            f"--runs={there.folder / 'runs'}",
            f"--state={there.folder / 'state'}",
            f"--world-size={case.workers + 1}",
            "--config=none",
            f"--model.name={SUBJECTS[case.subject].model}",
            "--data.augment=none",
            "--train.epochs=1000",
            "--evaluation.every_epochs=1000",
            *(f"--{name}={value}" for name, value in case.settings.items()),
        ]
        there.start(0, "minga", "ps", *flags)
        token = str(identity.secret)
        for rank in range(1, case.workers + 1):
            words = (there.pcs[0].address, PORT, token, rank, *self._arguments)
            there.start(rank, "lanbench.minga_worker", *words)

    def events(self) -> list[dict[str, Any]]:
        """Return the run's events."""
        for path in (self.there.folder / "runs").glob("*/events.jsonl"):
            return [*whole_lines(path)]
        return []

    def marks(self) -> list[Mark]:
        """Return the pushes that were applied."""
        return [
            Mark(seconds_of(event["time"]), event["rank"], event["samples"])
            for event in self.events()
            if event["kind"] == "push"
        ]

    def warm(self) -> bool:
        """Whether everybody trains and H is settled, or a minute is over."""
        events = self.events()
        joins = [event for event in events if event["kind"] == "worker_join"]
        if len(joins) < self.case.workers:
            return False
        joined_s = seconds_of(joins[-1]["time"])
        if time.time() - joined_s > _MINUTE_S:
            return self.each_has(2)
        paced = [event for event in events if event["kind"] == "pacing"]
        longest_s = max((event["window_s"] for event in paced), default=self.case.step_s)
        changed_s = max([joined_s, *(seconds_of(event["time"]) for event in paced)])
        if time.time() - changed_s < max(_SETTLED_S, 2 * longest_s):
            return False
        return self.each_has(3, joined_s) and self.each_has(1, changed_s)

    def finish(self) -> dict[str, Any]:
        """Audit what was counted; say what H was and how stale pushes were."""
        subject = SUBJECTS[self.case.subject]
        journal = next((self.there.folder / "runs").glob("*/journal.jsonl"))
        lines = [json.dumps(each) for each in whole_lines(journal)]
        epochs = 1 + max(span[0] for line in lines for span in json.loads(line)["spans"])
        found = audit(lines, seed=0, samples=subject.train, epochs=epochs)
        assert not found.double, found.problems
        assert not found.wrong_ids, found.problems
        pushes = [event for event in self.events() if event["kind"] == "push"]
        last = pushes[-4 * self.case.workers :]
        waits = [each["wait_s"] / (each["wait_s"] + each["compute_s"]) for each in last]
        paced = [event for event in self.events() if event["kind"] == "pacing"]
        status = json.loads((journal.parent / "status.json").read_text())
        return {
            "local_steps": sorted(each["steps"] for each in last)[len(last) // 2],
            "staleness": sum(each["staleness"] for each in last) / len(last),
            "exchange_s": sum(each["exchange_s"] for each in last) / len(last),
            "wait_share": sum(waits) / len(waits),
            "refused": sum(event["kind"] == "refused" for event in self.events()),
            "push_bytes": max(
                each["bytes_in"] / max(1, each["pushes"]) for each in status["workers"]
            ),
            "pacing": paced[-1]["why"] if paced else None,
        }


class _Peer(System):
    """Workers that print a line after each step."""

    def marks(self) -> list[Mark]:
        """Return the steps that the workers printed."""
        return [
            Mark(line["at_s"], rank, line["samples"])
            for rank in range(1, self.case.workers + 1)
            for line in whole_lines(self.there.log(self._pc(rank)))
        ]

    def warm(self) -> bool:
        """Whether everybody has taken some steps."""
        return self.each_has(2)

    def _pc(self, rank: int) -> int:
        return rank if self.has_ps else rank - 1


class Alone(_Peer):
    """One worker that exchanges nothing."""

    has_ps = False

    def start(self) -> None:
        """Start it."""
        self.there.start(0, "lanbench.alone", self.case.step_s)


class Ddp(_Peer):
    """DistributedDataParallel's exchange over Gloo."""

    has_ps = False

    def start(self) -> None:
        """Start all workers; the first one is where they meet."""
        world = self.case.workers
        for rank in range(world):
            words = (self.there.pcs[0].address, rank, world, *self._arguments)
            self.there.start(rank, "lanbench.ddp", *words)


class Textbook(_Peer):
    """The parameter server of torch's RPC tutorials."""

    def start(self) -> None:
        """Start the ps and the workers."""
        world = self.case.workers + 1
        for rank in range(world):
            words = (self.there.pcs[0].address, rank, world, *self._arguments)
            self.there.start(rank, "lanbench.textbook", *words)


SYSTEMS: dict[str, type[System]] = {
    "alone": Alone,
    "minga": Minga,
    "ddp": Ddp,
    "textbook": Textbook,
}


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file that is still written to."""
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            yield json.loads(line)


def seconds_of(time_utc: str) -> float:
    return datetime.fromisoformat(time_utc).timestamp()
