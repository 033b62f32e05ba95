"""Detects non-finite pushes: names the worker, ends a diverged run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from minga.algorithm.localsgd import SUSPECT
from minga.errors import Hint, RunFailed
from minga.observe.folder import RunFolder
from minga.ps.evaluation import Measured
from minga.ps.members import TRAINING, Member
from minga.settings.schema import Settings

LOST = 6
"""Non-finite pushes in a row, of every worker, after which training has diverged."""


@dataclass(slots=True)
class Health:
    """Counts consecutive non-finite pushes by rank; one finite push resets the count.

    Attributes:
        doubtful: no training worker had a finite push lately: the weights may be damaged.
        diverged: the same, for so long that training cannot recover.
    """

    doubtful: bool = False
    diverged: bool = False
    _rows: dict[int, int] = field(default_factory=dict)

    def good(self, rank: int) -> None:
        """Record an applied push with a finite loss."""
        self._rows.pop(rank, None)
        self.doubtful = False

    def bad(self, member: Member, members: Iterable[Member]) -> str | None:
        """Count a non-finite push; return the diagnosis once the count is significant."""
        row = self._rows[member.rank] = self.row(member.rank) + 1
        training = [each for each in members if each.state == TRAINING]
        rows = [self.row(each.rank) for each in training] or [0]
        self.doubtful = min(rows) > 0
        self.diverged = self.diverged or min(rows) >= LOST
        if row != SUSPECT:
            return None
        others = [each for each in training if each.rank != member.rank]
        if others and not any(self.row(each.rank) for each in others):
            return "the other workers' are finite: check this PC's device, memory and data"
        return "no other worker's are finite now: the learning rate is probably too high"

    def row(self, rank: int) -> int:
        """Return the number of this rank's pushes since its last finite one."""
        return self._rows.get(rank, 0)


def diverged(folder: RunFolder, settings: Settings, measured: list[Measured]) -> RunFailed:
    """Return the error of a diverged run: remaining checkpoints, and what to try."""
    lr = settings.optimizer.lr
    best = max(measured, key=lambda each: each.accuracy, default=None)
    if best is not None and folder.best.exists():
        left = f"the last good one is {folder.best} ({100 * best.accuracy:.2f} %)"
    elif folder.last.exists():
        left = f"nothing was evaluated yet; the last one is {folder.last}"
    else:
        left = "there was none yet"
    return RunFailed(
        f"training diverged: the last {LOST} pushes of every worker were not finite. "
        f"No checkpoint was overwritten; {left}",
        code="run-diverged",
        hints=(
            Hint("train again with a lower rate", f"./start_ps.sh --resume none {_lower(lr)}"),
            Hint("clip gradients?", f"optimizer.clip_norm is {settings.optimizer.clip_norm}"),
        ),
    )


def _lower(lr: float) -> str:
    return f"--optimizer.lr {lr / 4:.3g}"
