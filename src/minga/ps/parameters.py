"""The weights in memory that all ps processes share, and pushes that survive a kill.

A push is applied under one lock that the kernel releases when its holder dies. Before it
touches the weights it writes what it is about to do into a redo record beside them; whoever
takes the lock next first finishes what a dead holder left. So a push counts once or not at
all, and whoever holds the lock sees whole pushes only.

The lock is a POSIX record lock on the memory's own descriptor. Such locks belong to the
process, not to the thread (a thread lock goes with it), and closing *any* descriptor of the
same file drops them: a process keeps exactly one.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.reduction import DupFd
from typing import Any

import torch

from minga.algorithm.codec import CHUNK, CODECS, chunks, make_codec

SLOTS = 1024
_ALIGN = 64

# int64 fields of the header
_VERSION, _ACTIVE, _PENDING, _PUSH, _SLOT, _NEXT_VERSION, _CODEC, _PROGRESS = range(8)
# float64 fields of the header
_SCALE, _BUFFER_WEIGHT = range(2)


class SharedParameters:
    """Flat fp32 weights [W], BatchNorm buffers [B] and the version, shared between processes.

    Pickling it for a child process hands the descriptor over.

    Args:
        descriptor: the shared memory; this object owns it.
        weights, buffers: elements of the two vectors.
    """

    def __init__(self, descriptor: int, weights: int, buffers: int) -> None:
        self.weights = weights
        self.buffers = buffers
        self._descriptor = descriptor
        self._threads = threading.RLock()
        self._depth = 0
        sizes = _sizes(weights, buffers)
        self._memory = mmap.mmap(descriptor, sum(sizes.values()))
        parts, at = {}, 0
        for name, size in sizes.items():
            parts[name] = torch.frombuffer(self._memory, dtype=torch.uint8, offset=at, count=size)
            at += size
        self._integers = parts["integers"].view(torch.int64)
        self._floats = parts["floats"].view(torch.float64)
        self._applied = parts["applied"].view(torch.int64)
        self._weights = parts["weights"].view(torch.float32)[:weights]
        self._buffers = parts["buffers"].view(torch.float32)[:buffers]
        self._frozen_weights = parts["frozen_weights"].view(torch.float32)[:weights]
        self._frozen_buffers = parts["frozen_buffers"].view(torch.float32)[:buffers]
        self._payload = parts["payload"]
        self._pushed_buffers = parts["pushed_buffers"].view(torch.float32)[:buffers]
        self._scratch = parts["scratch"].view(torch.float32)
        self._codecs = {name: make_codec(name, weights) for name in CODECS}

    @classmethod
    def create(cls, weights: torch.Tensor, buffers: torch.Tensor) -> SharedParameters:
        """Make shared memory that holds these fp32 vectors, at version 0."""
        size = sum(_sizes(weights.numel(), buffers.numel()).values())
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("minga-parameters")
        else:  # macOS
            descriptor, path = tempfile.mkstemp(prefix="minga-parameters-")
            os.unlink(path)
        os.ftruncate(descriptor, size)
        made = cls(descriptor, weights.numel(), buffers.numel())
        made.load(weights, buffers, 0)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Hand the memory to a child process that multiprocessing starts."""
        return _attach, (DupFd(self._descriptor), self.weights, self.buffers)

    @property
    def version(self) -> int:
        """Number of pushes applied."""
        return int(self._integers[_VERSION])

    @property
    def active_workers(self) -> int:
        """N_active, as the coordinator last said."""
        return int(self._integers[_ACTIVE])

    @active_workers.setter
    def active_workers(self, count: int) -> None:
        self._integers[_ACTIVE] = count

    def applied(self, slot: int) -> int:
        """Return the number of the last push applied in a session's slot."""
        return int(self._applied[slot])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; a push that its holder left half applied is finished first."""
        with self._threads:
            self._depth += 1
            try:
                if self._depth == 1:
                    fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
                    self._finish()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def repair(self) -> None:
        """Finish what a dead process left half applied."""
        with self.locked():
            pass

    def apply(
        self,
        payload: torch.Tensor,
        codec: str,
        *,
        scale: float,
        buffers: torch.Tensor,
        buffer_weight: float,
        push_id: int,
        slot: int,
    ) -> int:
        """Apply ``weights -= scale * decoded payload``; return the new version.

        Args:
            payload: uint8, encoded by ``codec``.
            codec: its name.
            scale: (kappa / N_active) * s(tau).
            buffers: the worker's BatchNorm buffers, fp32 [B].
            buffer_weight: their weight in the moving average.
            push_id: number of this push; :meth:`applied` tells it afterwards.
            slot: of the session that applies it.
        """
        with self.locked():
            self._payload[: payload.numel()].copy_(payload)
            self._pushed_buffers.copy_(buffers)
            self._floats[_SCALE] = scale
            self._floats[_BUFFER_WEIGHT] = buffer_weight
            self._integers[_PUSH] = push_id
            self._integers[_SLOT] = slot
            self._integers[_NEXT_VERSION] = self.version + 1
            self._integers[_CODEC] = CODECS.index(codec)
            self._integers[_PROGRESS] = 0
            self._integers[_PENDING] = 1
            self._finish()
            return self.version

    def read_chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return a copy of weights ``start`` to ``stop``: whole pushes only."""
        with self.locked():
            return self._weights[start:stop].clone()

    def read_buffers(self) -> torch.Tensor:
        """Return a copy of the BatchNorm buffers."""
        with self.locked():
            return self._buffers.clone()

    def snapshot(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return (weights, buffers, version) of one moment."""
        with self.locked():
            return self._weights.clone(), self._buffers.clone(), self.version

    def load(self, weights: torch.Tensor, buffers: torch.Tensor, version: int) -> None:
        """Replace everything."""
        with self.locked():
            self._weights.copy_(weights)
            self._buffers.copy_(buffers)
            self._integers[_VERSION] = version

    def freeze(self) -> int:
        """Keep a copy for a validation; return the version that it is of."""
        with self.locked():
            self._frozen_weights.copy_(self._weights)
            self._frozen_buffers.copy_(self._buffers)
            return self.version

    def frozen_weights(self) -> torch.Tensor:
        """Return the frozen weights themselves; not to be written."""
        return self._frozen_weights

    def frozen_buffers(self) -> torch.Tensor:
        """Return the frozen buffers themselves; not to be written."""
        return self._frozen_buffers

    def set_frozen_buffers(self, buffers: torch.Tensor) -> None:
        """Put recalibrated BatchNorm statistics in the place of the frozen ones."""
        self._frozen_buffers.copy_(buffers)

    def _finish(self) -> None:
        """Carry the pending push to its end, from wherever it stands.

        Progress 2k says that k parts are done; 2k + 1, that part k stands ready in the scratch.
        A part is computed into the scratch and copied from there, so each of the two can be
        repeated. The parts are the weights' chunks, then the buffers.
        """
        if not self._integers[_PENDING]:
            return
        parts = [*chunks(self.weights), None]
        while (progress := int(self._integers[_PROGRESS])) < 2 * len(parts):
            part = parts[progress // 2]
            if progress % 2 == 0:
                self._compute(part)
            else:
                target = self._buffers if part is None else self._weights[part[0] : part[1]]
                target.copy_(self._scratch[: target.numel()])
            self._mark(progress + 1)
        self._applied[self._integers[_SLOT]] = self._integers[_PUSH]
        self._integers[_VERSION] = self._integers[_NEXT_VERSION]
        self._integers[_PENDING] = 0

    def _mark(self, progress: int) -> None:
        self._integers[_PROGRESS] = progress

    def _compute(self, part: tuple[int, int] | None) -> None:
        """Put what a part will be into the scratch."""
        if part is None:
            weight = float(self._floats[_BUFFER_WEIGHT])
            torch.lerp(
                self._buffers, self._pushed_buffers, weight, out=self._scratch[: self.buffers]
            )
            return
        start, stop = part
        codec = self._codecs[CODECS[int(self._integers[_CODEC])]]
        delta = codec.decode(self._payload[: codec.nbytes], start, stop)
        target = self._scratch[: stop - start]
        torch.sub(self._weights[start:stop], delta, alpha=float(self._floats[_SCALE]), out=target)


def _attach(memory: DupFd, weights: int, buffers: int) -> SharedParameters:
    return SharedParameters(memory.detach(), weights, buffers)


def _sizes(weights: int, buffers: int) -> dict[str, int]:
    """Return the bytes of each part of the memory, in order."""
    scratch = max(min(CHUNK, weights), buffers)
    exact = {
        "integers": 8 * 8,
        "floats": 8 * 8,
        "applied": 8 * SLOTS,
        "weights": 4 * weights,
        "buffers": 4 * buffers,
        "frozen_weights": 4 * weights,
        "frozen_buffers": 4 * buffers,
        "payload": 4 * weights + _ALIGN,
        "pushed_buffers": 4 * buffers,
        "scratch": 4 * scratch,
    }
    return {name: -(-max(size, 1) // _ALIGN) * _ALIGN for name, size in exact.items()}
