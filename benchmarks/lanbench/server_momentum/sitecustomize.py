"""A control, read by every Python of a ps at its start: Nesterov momentum over all pushes.

The classic mistake (algorithms: DANA, arXiv:1907.11612). The velocity lies in a file that all
session processes map.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from minga.algorithm.codec import apply_delta, make_codec
from minga.ps.parameters import SharedParameters, Update

_MOMENTUM = 0.9
_apply = SharedParameters.apply


def apply(self: SharedParameters, update: Update, *, push_id: int, slot: int) -> int:
    """Apply the push with the velocity in it."""
    with self.locked():
        path = Path(os.environ["VELOCITY_FILE"])
        path.touch()
        velocity = torch.from_file(str(path), shared=True, size=self.weights)
        moved = torch.zeros(self.weights)
        apply_delta(make_codec(update.codec, self.weights), update.payload, moved)
        velocity.mul_(_MOMENTUM).add_(moved)
        payload = moved.add_(velocity, alpha=_MOMENTUM).view(torch.uint8)
        return _apply(
            self, replace(update, payload=payload, codec="none"), push_id=push_id, slot=slot
        )


SharedParameters.apply = apply
