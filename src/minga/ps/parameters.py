"""The run's weights in memory shared between processes, with pushes that survive a kill.

One file descriptor holds everything: header, weights, BatchNorm buffers, a frozen copy of both
for validations, and the redo record of the push being applied. Any process that holds the lock
may be killed at any instruction: the kernel frees the lock, and the next holder completes the
push from its record before it does anything else.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

from minga.algorithm.codec import CHUNK, CODECS, chunks, make_codec

SLOTS = 1024
"""Maximum number of sessions; each has a slot for the last push applied for it."""

# Header words, 8 bytes each.
_VERSION, _ACTIVE_WORKERS = 0, 1
_REDO, _PUSH, _SLOT, _NEW_VERSION, _CODEC, _PROGRESS, _SCALE, _BUFFER_WEIGHT = range(2, 10)
_HOLDER, _TAKEN = 10, 11
_APPLIED = 16
_HEADER_BYTES = 8 * (_APPLIED + SLOTS)
_ALIGNMENT = 64

_LOCK_BYTE = 0
TURN_BYTE = 1
"""Bytes of the descriptor that serve as locks: of the parameters, of the replies' turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One push to apply.

    Args:
        payload: uint8, encoded for the length of the weights.
        codec: name of its codec.
        scale: see :func:`minga.algorithm.localsgd.push_scale`.
        buffers: fp32, the worker's BatchNorm buffers.
        buffer_weight: their weight in the moving average.
    """

    payload: Tensor
    codec: str
    scale: float
    buffers: Tensor
    buffer_weight: float


class SharedParameters:
    """Weights, BatchNorm buffers and version, in shared memory.

    Pickled only to start a process with :mod:`multiprocessing`, which passes the descriptor on.

    The lock is a POSIX record lock, which the kernel frees when its holder dies (a multiprocessing
    lock it does not). It belongs to a process and is lost when that process closes *any*
    descriptor of the file: keep one object per process and never duplicate its descriptor there.
    Threads of a process are kept apart by a lock of their own; both are re-entrant.

    Args:
        descriptor: from :meth:`create`; owned by this object from now on.
        weights: length of the weight vector.
        buffers: length of the vector of BatchNorm buffers.

    Attributes:
        weights: see above.
        buffers: see above.
    """

    def __init__(self, descriptor: int, weights: int, buffers: int) -> None:
        self.weights = weights
        self.buffers = buffers
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _Sections.total_bytes(weights, buffers))
        self._integers = memoryview(self._memory)[:_HEADER_BYTES].cast("q")
        self._floats = memoryview(self._memory)[:_HEADER_BYTES].cast("d")
        self._at = _Sections(self._memory, weights, buffers)
        self._codecs = [make_codec(name, weights) for name in CODECS]
        self._stages = [(self._renew_weights, self._at.weights, *c) for c in chunks(weights)]
        self._stages += [(self._renew_buffers, self._at.buffers, *c) for c in chunks(buffers)]
        self._chunk = torch.empty(min(weights, CHUNK))
        self._threads = threading.RLock()
        self._depth = 0

    @classmethod
    def create(cls, weights: Tensor, buffers: Tensor) -> SharedParameters:
        """Create the shared memory with copies of both, flat fp32. Version 0."""
        descriptor = _anonymous_file()
        os.fchmod(descriptor, 0)  # not even this user's processes reopen it through /proc
        os.ftruncate(descriptor, _Sections.total_bytes(weights.numel(), buffers.numel()))
        created = cls(descriptor, weights.numel(), buffers.numel())
        created.load(weights, buffers, 0)
        return created

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (reduction.DupFd(self._descriptor), self.weights, self.buffers)

    def fileno(self) -> int:
        """Return the descriptor, to pass it to another process."""
        return self._descriptor

    @property
    def version(self) -> int:
        """Pushes applied so far. Read without the lock."""
        return self._integers[_VERSION]

    @property
    def active_workers(self) -> int:
        """Active workers; set by the coordinator, read without the lock."""
        return self._integers[_ACTIVE_WORKERS]

    @active_workers.setter
    def active_workers(self, count: int) -> None:
        self._store(_ACTIVE_WORKERS, count)

    def applied(self, slot: int) -> int:
        """Return the number of the slot's last applied push; 0 for none. Takes no lock."""
        return self._integers[_APPLIED + slot]

    def holder(self) -> tuple[int, int]:
        """Return the process that holds the lock (0: none) and the number of acquisitions so far.

        Takes no lock. A killed process stays named until the next one takes the lock.
        """
        return self._integers[_HOLDER], self._integers[_TAKEN]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; first complete the push of a dead holder.

        Never on an event loop: the lock's holder may wait for the loop, or be frozen.
        """
        assert not _on_an_event_loop(), "the event loop must not wait for the parameters' lock"
        with self._threads:
            if self._depth == 0:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, _LOCK_BYTE, os.SEEK_SET)
                self._integers[_HOLDER] = os.getpid()
                self._integers[_TAKEN] += 1
            self._depth += 1
            try:
                if self._depth == 1:
                    self._finish()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._integers[_HOLDER] = 0
                    fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _LOCK_BYTE, os.SEEK_SET)

    def repair(self) -> None:
        """Complete the push of a killed process, if any."""
        with self.locked():
            pass

    def apply(self, update: Update, *, push_id: int, slot: int) -> int:
        """Subtract the scaled push and average its buffers in, atomically.

        Args:
            update: the push.
            push_id: the value of :meth:`applied` for ``slot`` from then on.
            slot: of the session, below ``SLOTS``.

        Returns:
            The new version.
        """
        with self.locked():
            version, codec_index = self.version + 1, CODECS.index(update.codec)
            nbytes = update.payload.numel()
            assert nbytes == self._codecs[codec_index].nbytes, "another codec's payload"
            self._at.redo_payload[:nbytes].copy_(update.payload)
            self._at.redo_buffers.copy_(update.buffers)
            self._floats[_SCALE] = update.scale
            self._floats[_BUFFER_WEIGHT] = update.buffer_weight
            self._store(_CODEC, codec_index)
            self._store(_PUSH, push_id)
            self._store(_SLOT, slot)
            self._store(_NEW_VERSION, version)
            self._store(_PROGRESS, 0)
            self._store(_REDO, 1)  # from here on the push counts, whichever process completes it
            self._finish()
            return version

    def ahead(self, start: int, held: Tensor) -> Tensor:
        """Return the weights from ``start`` on, minus ``held``: fp32 [n <= CHUNK].

        The result is this object's own memory, valid until the next call: one thread at a time.
        """
        count = held.numel()
        with self.locked():
            return torch.sub(self._at.weights[start : start + count], held, out=self._chunk[:count])

    def read_buffers(self) -> Tensor:
        """Return a copy of the BatchNorm buffers."""
        with self.locked():
            return self._at.buffers.clone()

    def snapshot(self) -> tuple[Tensor, Tensor, int]:
        """Return copies of weights and buffers, and the version, of one moment."""
        with self.locked():
            return self._at.weights.clone(), self._at.buffers.clone(), self.version

    def load(self, weights: Tensor, buffers: Tensor, version: int) -> None:
        """Restore weights, buffers and version from a checkpoint."""
        with self.locked():
            self._at.weights.copy_(weights)
            self._at.buffers.copy_(buffers)
            self._store(_VERSION, version)

    def freeze(self) -> int:
        """Copy weights and buffers to the frozen vectors; return their version."""
        with self.locked():
            self._at.frozen_weights.copy_(self._at.weights)
            self._at.frozen_buffers.copy_(self._at.buffers)
            return self.version

    def frozen_weights(self) -> Tensor:
        """Return the frozen weights themselves: the next :meth:`freeze` changes them."""
        return self._at.frozen_weights

    def frozen_buffers(self) -> Tensor:
        """Return the frozen buffers themselves."""
        return self._at.frozen_buffers

    def set_frozen_buffers(self, buffers: Tensor) -> None:
        """Set recalibrated buffers beside the frozen weights."""
        self._at.frozen_buffers.copy_(buffers)

    def _finish(self) -> None:
        """Continue the recorded push from its progress to its end.

        Progress 2k: chunk k is untouched. 2k + 1: its new values are complete in the scratch
        chunk. Work between two stores can be interrupted anywhere and repeated.
        """
        words = self._integers
        if not words[_REDO]:
            return
        for k in range(words[_PROGRESS] // 2, len(self._stages)):
            renew, vector, start, stop = self._stages[k]
            scratch = self._at.scratch[: stop - start]
            if words[_PROGRESS] == 2 * k:
                renew(start, stop, scratch)
                self._store(_PROGRESS, 2 * k + 1)
            vector[start:stop].copy_(scratch)
            self._store(_PROGRESS, 2 * k + 2)
        self._store(_APPLIED + words[_SLOT], words[_PUSH])
        self._store(_VERSION, words[_NEW_VERSION])
        self._store(_REDO, 0)

    def _renew_weights(self, start: int, stop: int, scratch: Tensor) -> None:
        codec, scale = self._codecs[self._integers[_CODEC]], self._floats[_SCALE]
        moved = codec.decode(self._at.redo_payload[: codec.nbytes], start, stop)
        torch.sub(self._at.weights[start:stop], moved, alpha=scale, out=scratch)

    def _renew_buffers(self, start: int, stop: int, scratch: Tensor) -> None:
        old, pushed = self._at.buffers[start:stop], self._at.redo_buffers[start:stop]
        torch.lerp(old, pushed, self._floats[_BUFFER_WEIGHT], out=scratch)

    def _store(self, word: int, value: int) -> None:
        self._integers[word] = value


def _on_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _attach(descriptor: Any, weights: int, buffers: int) -> SharedParameters:
    return SharedParameters(descriptor.detach(), weights, buffers)


class _Sections:
    """The offsets of the vectors in the shared memory, after the header."""

    def __init__(self, memory: mmap.mmap, weights: int, buffers: int) -> None:
        parts = iter(self._lengths(weights, buffers))
        place = _HEADER_BYTES

        def take() -> Tensor:
            nonlocal place
            count = next(parts)
            start, place = place, place + _aligned_bytes(count)
            if not count:
                return torch.empty(0)
            return torch.frombuffer(memory, dtype=torch.float32, count=count, offset=start)

        self.weights, self.buffers = take(), take()
        self.frozen_weights, self.frozen_buffers = take(), take()
        self.redo_payload, self.redo_buffers = take().view(torch.uint8), take()
        self.scratch = take()

    @staticmethod
    def _lengths(weights: int, buffers: int) -> list[int]:
        scratch = min(CHUNK, max(weights, buffers))
        return [weights, buffers] * 3 + [scratch]  # no codec needs more than 4 bytes per value

    @classmethod
    def total_bytes(cls, weights: int, buffers: int) -> int:
        """Return the size of the whole memory."""
        return _HEADER_BYTES + sum(map(_aligned_bytes, cls._lengths(weights, buffers)))


def _aligned_bytes(floats: int) -> int:
    return -(-4 * floats // _ALIGNMENT) * _ALIGNMENT


def _anonymous_file() -> int:
    """Return a descriptor of anonymous memory that is freed with its last holder."""
    if sys.platform == "linux":
        return os.memfd_create("minga-parameters")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
