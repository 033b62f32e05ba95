"""The ``minga`` command with local steps that wait: for their time, and for the test.

What a test needs of a run (that it is not over yet, that two workers train at once) is decided by
these waits, not by how fast the machine is.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path

from torch import Tensor

from minga.cli import main
from minga.worker.replica import Replica

_LOOK_S = 0.01


@dataclass(frozen=True)
class Steps:
    """How a process takes its local steps.

    Args:
        step_s: what each takes at least.
        until: a file; once it exists, steps take only as long as they need.
        gates: by the number of a step (this process's, from 0), a file without which it waits.
        constants: by its place (``minga.worker.run.RANK_HELD_S``), another value of a constant.
    """

    step_s: float = 0.0
    until: Path | None = None
    gates: dict[int, Path] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)

    @property
    def entry(self) -> tuple[str, ...]:
        """Python's arguments that start a ``minga`` with such steps."""
        return (__file__, json.dumps(asdict(self), default=str))

    def gated(self, number: int, path: Path) -> Steps:
        """Return the same with another gate."""
        return replace(self, gates={**self.gates, number: path})


FREE = Steps()
"""Steps that take as long as they need."""


def _install(
    step_s: float, until: str | None, gates: dict[str, str], constants: dict[str, float]
) -> None:
    for place, value in constants.items():
        module, _, name = place.rpartition(".")
        assert hasattr(import_module(module), name), place
        setattr(import_module(module), name, value)
    take, taken = Replica.step, 0

    def step(self: Replica, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        nonlocal taken
        gate = gates.get(str(taken))
        while gate is not None and not Path(gate).exists():
            time.sleep(_LOOK_S)
        taken += 1
        done_s = time.monotonic() + step_s
        loss = take(self, images, labels, lr)
        while time.monotonic() < done_s and not (until and Path(until).exists()):
            time.sleep(min(_LOOK_S, max(0.0, done_s - time.monotonic())))
        return loss

    Replica.step = step


if __name__ == "__main__":
    _install(**json.loads(sys.argv.pop(1)))
    sys.exit(main())
