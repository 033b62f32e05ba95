"""A split that is closed reads no more."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from minga.data.leases import Lease
from minga.data.loader import BatchLoader
from minga.data.split import Labels, Split

COUNT, SIDE, WAIT_S = 400, 80, 30.0
"""Images larger than what is kept decoded."""


class Gated:
    """Equal images, each read only once the gate is open."""

    def __init__(self) -> None:
        self.labels: Labels = np.zeros(COUNT, dtype=np.int64)
        self.asked, self.gate = threading.Event(), threading.Event()
        self.read = 0
        buffer = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE)).save(buffer, "PNG")
        self._encoded = buffer.getvalue()

    def name(self, index: int) -> str:
        return f"gated-{index}.png"

    def encoded(self, index: int) -> bytes:
        self.asked.set()
        assert self.gate.wait(WAIT_S), "a test forgot to open the gate"
        self.read += 1
        return self._encoded


@pytest.mark.parametrize("closed", [True, False])
def test_a_long_batch_is_cut_short_when_its_split_is_closed(closed: bool) -> None:
    source = Gated()
    split = Split(source, SIDE)
    loader = BatchLoader(split, seed=0, batch_size=COUNT, augment="none")
    loader.add(Lease(1, "train", 0, 0, COUNT))
    assert source.asked.wait(WAIT_S)
    if closed:
        split.close()
    source.gate.set()
    loader.close()
    assert (source.read < 100) == closed, "control: else all of it is read"
