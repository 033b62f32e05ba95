"""Messages of a worker about its device and its data."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch

from minga.algorithm.localsgd import NON_FINITE, OUTSIZED_PUSH, SUSPECT
from minga.console import Console
from minga.data.dataset import ImageData
from minga.errors import Hint, RunFailed

SPOILT = (NON_FINITE, OUTSIZED_PUSH)
"""Reasons of the ps to refuse a push for its content."""
_MEMORY = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
"""Out-of-memory messages of CUDA, cuDNN, MPS and the CPU's allocator."""


@contextlib.contextmanager
def out_of_memory_explained(device: torch.device, batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory failure into an error that names a batch size to try.

    Raises:
        RunFailed: ``out-of-memory``.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_about_memory(error):
            raise
        less = max(1, batch_size // 2)
        hints = [Hint("what else uses it?", "nvidia-smi" if device.type == "cuda" else "free -h")]
        if batch_size > 1:
            retry = f"MINGA_TRAIN_BATCH_SIZE={less} ./start_worker.sh"
            hints.insert(0, Hint("a smaller batch, on this PC only", retry))
        raise RunFailed(
            f"{device} of {platform.node()} has too little memory for a batch of {batch_size}"
            + (f"; try {less}" if batch_size > 1 else ""),
            code="out-of-memory",
            hints=tuple(hints),
        ) from error


def _is_about_memory(error: Exception) -> bool:
    words = str(error).lower()
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(each in words for each in _MEMORY)


class Warnings:
    """Reports each problem of this PC once."""

    def __init__(self) -> None:
        self._console = Console("worker")
        self._bad_images = 0
        self._row = 0

    def settled(self, reason: str | None) -> None:
        """Record the reason for a refused push, or None for a counted one."""
        if reason is None:
            self._row = 0
        elif reason == NON_FINITE:
            self._row += 1
            if self._row == SUSPECT:
                self._console.warn(
                    f"the last {SUSPECT} pushes of this worker were not finite (nan) and did not "
                    "count: its device, memory or data are faulty, or the learning rate too high"
                )

    def look_at(self, data: ImageData) -> None:
        """Report images that could not be read since the last call."""
        bad = bad_images(data)
        if len(bad) == self._bad_images:
            return
        fresh = [*bad.items()][self._bad_images :]
        self._bad_images = len(bad)
        named = ", ".join(f"{name} ({why})" for name, why in fresh[:3])
        self._console.warn(
            f"{len(bad)} of {len(data.train) + len(data.val)} images cannot be read and are "
            f"replaced by their neighbours, newly {named}"
        )


def bad_images(data: ImageData) -> dict[str, str]:
    """Return the images that could not be read so far, with the reason of each."""
    return {**data.train.bad, **data.val.bad}
