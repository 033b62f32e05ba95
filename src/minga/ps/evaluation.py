"""Measure accuracy on a frozen snapshot, spread over all workers by leases.

First the BatchNorm statistics are recomputed at the frozen weights (PreciseBN, as in pycls and
OpenMMLab), then the validation set is evaluated. Training continues meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from dataclasses import dataclass

import torch

from minga.algorithm import localsgd
from minga.data.leases import Kind, Lease, Span
from minga.messages import Malformed, Result
from minga.ps.ledger import Ledger
from minga.ps.parameters import SharedParameters

_SHARES = 16
_SMALLEST_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcome of one validation."""

    version: int
    samples_done: int
    accuracy: float
    loss: float


class Evaluation:
    """One validation at a time; its owner is one event loop.

    Args:
        parameters: their weights are evaluated.
        train, validate: samples in either set.
        recalibration_images: training images for the BatchNorm statistics.
        lease_s: seconds without progress after which a lease goes to another worker.
    """

    def __init__(
        self,
        parameters: SharedParameters,
        *,
        train: int,
        validate: int,
        recalibration_images: int,
        lease_s: float,
    ) -> None:
        self.snapshot = 0
        self._parameters = parameters
        self._samples: dict[Kind, int] = {
            "calibrate": min(recalibration_images, train),
            "validate": validate,
        }
        self._lease_s = lease_s
        self._ledger: Ledger | None = None
        self._phase_over = asyncio.Event()
        self._correct = 0
        self._loss_sum = 0.0
        self._statistics: list[torch.Tensor] = []

    async def run(self, samples_done: int) -> Measured:
        """Freeze the weights, recalibrate, validate; return the result."""
        version = await asyncio.to_thread(self._parameters.freeze)
        self.snapshot += 1
        self._correct, self._loss_sum, self._statistics = 0, 0.0, []
        if self._parameters.buffers and self._samples["calibrate"]:
            await self._phase("calibrate")
            combined = localsgd.combine_statistics(self._statistics)
            self._parameters.set_frozen_buffers(combined)
        await self._phase("validate")
        return Measured(
            version=version,
            samples_done=samples_done,
            accuracy=self._correct / self._samples["validate"],
            loss=self._loss_sum / self._samples["validate"],
        )

    def grant(self, owner: str) -> list[Lease]:
        """Lease a part of the present phase; nothing if the owner already holds one."""
        if self._ledger is None or self._ledger.held(owner):
            return []
        return self._ledger.grant(owner, self._ledger.chunk, time.monotonic())

    def take(self, owner: str, result: Result, statistics: str) -> bool:
        """Count one lease's result; return False if it is too late.

        Raises:
            Malformed: more correct images than images, or statistics of another length.
        """
        span = Span(result.lease, 0, result.start, result.stop)
        ledger = self._ledger
        if ledger is None or ledger.kind != result.kind or ledger.objection(owner, [span]):
            return False
        if result.correct > span.samples:
            raise Malformed(f"result: correct {result.correct} of {span.samples} images")
        if ledger.kind == "calibrate":
            self._statistics.append(self._decoded(statistics))
        else:
            self._correct += result.correct
            self._loss_sum += result.loss_sum if result.loss_sum is not None else math.nan
        ledger.count([span], time.monotonic())
        if ledger.finished:
            self._phase_over.set()
        return True

    def _decoded(self, statistics: str) -> torch.Tensor:
        """Return the sums of a calibration: fp64 [1 + 2 * buffers]."""
        raw = bytearray(base64.b64decode(statistics))
        length = 8 * (1 + 2 * self._parameters.buffers)
        if len(raw) != length:
            raise Malformed(f"result: statistics of {len(raw)} bytes, not {length}")
        return torch.frombuffer(raw, dtype=torch.float64)

    def give_back(self, owner: str) -> None:
        """Take back the leases of a lost worker."""
        if self._ledger is not None:
            self._ledger.give_back(owner)

    def renew(self, owner: str) -> None:
        """Renew the owner's lease."""
        if self._ledger is not None:
            self._ledger.renew(owner, time.monotonic())

    def expire(self) -> None:
        """Take back the leases of silent workers."""
        if self._ledger is not None:
            self._ledger.expire(time.monotonic())

    async def _phase(self, kind: Kind) -> None:
        samples = self._samples[kind]
        chunk = max(_SMALLEST_CHUNK, -(-samples // _SHARES))
        self._phase_over.clear()
        self._ledger = Ledger(kind, samples=samples, epochs=1, chunk=chunk, lease_s=self._lease_s)
        await self._phase_over.wait()
        self._ledger = None
