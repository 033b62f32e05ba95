"""Whether pushes are numbers: one worker that has none is named, a run that has none ends."""

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
"""Once every worker made so many in a row, training does not come back by itself."""


@dataclass(slots=True)
class Health:
    """Counts, by rank, the pushes in a row that were no numbers; one good push ends the row.

    Attributes:
        doubtful: nobody who trains had a good push lately: the weights may be spoilt already.
        diverged: and that is for good.
    """

    doubtful: bool = False
    diverged: bool = False
    _rows: dict[int, int] = field(default_factory=dict)

    def good(self, rank: int) -> None:
        """A push was applied, and its loss is a number."""
        self._rows.pop(rank, None)
        self.doubtful = False

    def bad(self, member: Member, members: Iterable[Member]) -> str | None:
        """Count a push that is no number; return what that means once it is no chance."""
        row = self._rows[member.rank] = self.row(member.rank) + 1
        training = [each for each in members if each.state == TRAINING]
        rows = [self.row(each.rank) for each in training] or [0]
        self.doubtful = min(rows) > 0
        self.diverged = self.diverged or min(rows) >= LOST
        if row != SUSPECT:
            return None
        others = [each for each in training if each.rank != member.rank]
        if others and not any(self.row(each.rank) for each in others):
            return "the other workers' are finite: look at this PC's device, memory and data"
        return "nobody else's are finite now: the learning rate is probably too high"

    def row(self, rank: int) -> int:
        """Return how many bad pushes this rank made since its last good one."""
        return self._rows.get(rank, 0)


def diverged(folder: RunFolder, settings: Settings, measured: list[Measured]) -> RunFailed:
    """Return the error of a run whose workers all push nan: what is left, and what to try."""
    lr = settings.optimizer.lr
    best = max(measured, key=lambda each: each.accuracy, default=None)
    if best is not None and folder.best.exists():
        left = f"the last good one is {folder.best} ({100 * best.accuracy:.2f} %)"
    elif folder.last.exists():
        left = f"nothing was measured yet; the last one is {folder.last}"
    else:
        left = "there was none yet"
    return RunFailed(
        f"training diverged: the last {LOST} pushes of every worker were not finite. "
        f"No checkpoint was overwritten; {left}",
        code="run-diverged",
        hints=(
            Hint("train again, more slowly", f"./start_ps.sh --resume none {_lower(lr)}"),
            Hint("clip gradients?", f"optimizer.clip_norm is {settings.optimizer.clip_norm}"),
        ),
    )


def _lower(lr: float) -> str:
    return f"--optimizer.lr {lr / 4:.3g}"
