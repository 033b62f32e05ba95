"""Batches for the training loop, prefetched by one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from msgspec.structs import replace as change

from minga.data.augment import Images, draws
from minga.data.leases import Lease, Span, ids_crc, sample_ids
from minga.data.split import Split
from minga.errors import DataError, Hint

_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one local step.

    Args:
        images: uint8 [B, 3, H, W] in any memory order; the trainer normalises on its device.
        labels: int64 [B].
        segments: the leases that the samples come from, in order.
    """

    images: torch.Tensor
    labels: torch.Tensor
    segments: tuple[Span, ...]


class BatchLoader:
    """Turns leases into full batches; a batch may span leases and epochs.

    One thread prefetches. The augmentation of a position depends on seed, epoch and position
    only (:mod:`minga.data.augment`), not on its worker or batch.

    Args:
        split: the training set.
        seed: the run's.
        batch_size: images per batch.
        augment: ``crop-flip`` or ``none``.
        pinned: batches lie in page-locked memory, which a GPU copies directly.
        prefetch: most batches that are ready at a time.
    """

    def __init__(
        self,
        split: Split,
        *,
        seed: int,
        batch_size: int,
        augment: str,
        pinned: bool = False,
        prefetch: int = 2,
    ) -> None:
        self._split = split
        self._seed = seed
        self._batch_size = batch_size
        self._augment = augment != "none"
        self._pinned = pinned
        self._prefetch = prefetch
        self._changed = threading.Condition()
        self._leases: deque[Lease] = deque()  # not read yet
        self._reading: list[Lease] = []
        self._ready: deque[Batch] = deque()
        self._pending = 0
        self._short_wanted = False
        self._generation = 0
        self._error: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="minga-loader", daemon=True)
        self._thread.start()

    def add(self, lease: Lease) -> None:
        """Queue a training lease behind the others."""
        assert lease.kind == "train", lease
        assert lease.start < lease.stop, lease
        with self._changed:
            self._leases.append(lease)
            self._pending += lease.stop - lease.start
            self._changed.notify_all()

    def pending(self) -> int:
        """Return how many samples were added and not yet delivered."""
        return self._pending

    def next(self, timeout_s: float) -> Batch | None:
        """Return the next batch, or None when all leases are consumed.

        Only the last batch before None may be short.

        Raises:
            DataError: the data cannot be read, or not within ``timeout_s``.
        """
        with self._changed:
            if not self._pending:
                return None
            self._short_wanted = True
            self._changed.notify_all()
            arrived = self._changed.wait_for(lambda: self._ready or self._error, timeout_s)
            self._short_wanted = False
            if not arrived:
                raise DataError(
                    f"no batch could be read within {timeout_s:g} s",
                    code="data-slow",
                    hints=(Hint("is the disk or the network share alive?", "df -h ."),),
                )
            if not self._ready:
                assert self._error
                raise self._error
            batch = self._ready.popleft()
            self._pending -= len(batch.labels)
            self._changed.notify_all()
            return batch

    def put_back(self, segments: Sequence[Span]) -> None:
        """Deliver segments again, before everything that was not delivered yet."""
        with self._changed:
            again = [*segments, *(each for batch in self._ready for each in batch.segments)]
            leases = [Lease(s.lease, "train", s.epoch, s.start, s.stop) for s in again]
            self._leases.extendleft(reversed([*leases, *self._reading]))
            self._drop_what_was_read()
            self._pending += sum(each.samples for each in segments)
            self._changed.notify_all()

    def clear(self) -> None:
        """Drop all leases, batches and errors: after a lost link other workers get the work."""
        with self._changed:
            self._leases.clear()
            self._drop_what_was_read()
            self._pending = 0
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the thread. It is a daemon: a read that hangs does not keep the process alive."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_JOIN_S)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._can_read())
                if self._closed:
                    return
                generation, parts = self._generation, self._cut()
                self._reading = parts
            batch: Batch | None = None
            error: Exception | None = None
            try:
                batch = self._read(parts)
            except Exception as raised:  # handed to the training loop by next()
                error = raised
            with self._changed:
                if generation == self._generation:
                    self._reading = []
                    self._error = error
                    if batch:
                        self._ready.append(batch)
                    self._changed.notify_all()

    def _drop_what_was_read(self) -> None:
        self._generation += 1
        self._ready.clear()
        self._reading = []
        self._error = None

    def _can_read(self) -> bool:
        if self._error or len(self._ready) >= self._prefetch:
            return False
        unread = sum(lease.stop - lease.start for lease in self._leases)
        if unread >= self._batch_size:
            return True
        # More leases may still fill this batch, unless the training loop waits for it.
        return unread > 0 and self._short_wanted and not self._ready

    def _cut(self) -> list[Lease]:
        """Take one batch of positions off the leases, as segments."""
        parts: list[Lease] = []
        want = self._batch_size
        while want and self._leases:
            lease = self._leases.popleft()
            stop = min(lease.stop, lease.start + want)
            parts.append(change(lease, stop=stop))
            if stop < lease.stop:
                self._leases.appendleft(change(lease, start=stop))
            want -= stop - lease.start
        return parts

    def _read(self, parts: list[Lease]) -> Batch:
        ids = [sample_ids(part, self._seed, len(self._split)) for part in parts]
        numbers = None
        if self._augment:
            numbers = np.concatenate(
                [draws(self._seed, part.epoch, part.start, part.stop) for part in parts]
            )
        images, labels = self._split.read(np.concatenate(ids), numbers)
        segments = tuple(
            Span(part.id, part.epoch, part.start, part.stop, ids_crc(of_part))
            for part, of_part in zip(parts, ids, strict=True)
        )
        batch = Batch(_channels_first(images), torch.from_numpy(labels), segments)
        if self._pinned:
            batch = replace(
                batch, images=batch.images.pin_memory(), labels=batch.labels.pin_memory()
            )
        return batch


def evaluation_batches(
    split: Split, lease: Lease, *, seed: int, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a lease's images uint8 [B, 3, H, W] and labels int64 [B], without augmentation.

    Raises:
        DataError: too many images cannot be read.
    """
    ids = sample_ids(lease, seed, len(split))
    for start in range(0, len(ids), batch_size):
        images, labels = split.read(ids[start : start + batch_size])
        yield _channels_first(images), torch.from_numpy(labels)


def _channels_first(images: Images) -> torch.Tensor:
    """Return a view [B, 3, H, W]: a copy in another memory order takes as long as a GPU's step."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)
