"""A peer's training loop: take a step, say so in a line of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

BATCH = 128


def told(step: Callable[[], object]) -> None:
    """Take steps for ever; print when each was done, and for how many samples."""
    while True:
        step()
        print(json.dumps({"at_s": time.time(), "samples": BATCH}), flush=True)
