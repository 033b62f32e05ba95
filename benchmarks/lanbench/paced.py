"""The ``minga`` command on a PC of a given speed: a local step takes no less than STEP_S.

python -m lanbench.paced STEP_S worker --address ...
"""

from __future__ import annotations

import sys
import time

from torch import Tensor

from minga.cli import main
from minga.worker.replica import Replica

_step = Replica.step


def pace(step_s: float) -> None:
    """Let every local step of this process take so long; what is left of it is a wait."""

    def step(self: Replica, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        done_s = time.monotonic() + step_s
        loss = _step(self, images, labels, lr)
        while (left_s := done_s - time.monotonic()) > 0:
            time.sleep(left_s)
        return loss

    Replica.step = step


if __name__ == "__main__":
    pace(float(sys.argv.pop(1)))
    sys.exit(main())
