"""A window that is dropped: its samples come again, first and in order, and nothing is lost."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from minga.data.leases import Lease
from minga.data.loader import Batch, BatchLoader
from minga.data.split import Split

COUNT, WAIT_S = 80, 30.0


class Slow:
    """Images that are all alike; after ``free`` of them each one waits for the gate."""

    def __init__(self) -> None:
        self.labels = np.zeros(COUNT, dtype=np.int64)
        self.free = COUNT
        self.open = threading.Event()
        self.waiting = threading.Event()
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
        self._png = buffer.getvalue()
        self._lock = threading.Lock()

    def name(self, index: int) -> str:
        return f"{index}.png"

    def encoded(self, index: int) -> bytes:
        with self._lock:
            self.free -= 1
            free = self.free >= 0
        if not free:
            self.waiting.set()
            assert self.open.wait(WAIT_S)
        return self._png


@pytest.fixture
def source() -> Slow:
    return Slow()


@pytest.fixture
def loader(source: Slow) -> Iterator[BatchLoader]:
    made = BatchLoader(Split(source, size=8), seed=0, batch_size=8, augment="none", prefetch=2)
    yield made
    made.close()


def rest(loader: BatchLoader) -> list[Batch]:
    return list(iter(lambda: loader.next(WAIT_S), None))


def positions(batches: list[Batch]) -> list[tuple[int, int]]:
    return [
        (each.lease, at)
        for batch in batches
        for each in batch.segments
        for at in range(each.start, each.stop)
    ]


def test_a_dropped_window_comes_again_before_what_was_read_ahead(loader: BatchLoader) -> None:
    loader.add(Lease(1, "train", 0, 0, 20))
    loader.add(Lease(2, "train", 0, 20, 60))
    first, second = loader.next(WAIT_S), loader.next(WAIT_S)
    assert first is not None
    assert second is not None
    loader.put_back(second.segments)
    assert loader.pending() == 52
    again = rest(loader)
    assert positions([first, *again]) == [(1, at) for at in range(20)] + [
        (2, at) for at in range(20, 60)
    ]


def test_what_is_being_read_meanwhile_is_delivered_once(source: Slow, loader: BatchLoader) -> None:
    source.free = 24
    loader.add(Lease(1, "train", 0, 0, 40))
    loader.add(Lease(2, "train", 0, 40, 80))
    first, second = loader.next(WAIT_S), loader.next(WAIT_S)
    assert first is not None
    assert second is not None
    assert source.waiting.wait(WAIT_S)  # the third is ready, the fourth is being read
    loader.put_back([*first.segments, *second.segments])
    source.open.set()
    assert positions(rest(loader)) == [(1, at) for at in range(40)] + [
        (2, at) for at in range(40, 80)
    ]
