"""Measure accuracy on a frozen snapshot, spread over all workers by leases.

First the BatchNorm statistics are recomputed at the frozen weights (PreciseBN, as in pycls and
OpenMMLab), then the validation set is evaluated. Training continues meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass

import torch

from minga.algorithm import localsgd
from minga.data.leases import Lease
from minga.ps.ledger import Ledger, Span
from minga.ps.parameters import SharedParameters
from minga.transport.stream import Message

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
        self._samples = {"calibrate": min(recalibration_images, train), "validate": validate}
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

    def take(self, owner: str, message: Message, vector: str) -> Span | None:
        """Count one lease's result; return its span, or None if it is too late."""
        span = Span(int(message["lease"]), 0, int(message["start"]), int(message["stop"]))
        ledger = self._ledger
        if ledger is None or ledger.kind != message["kind"] or ledger.objection(owner, [span]):
            return None
        if ledger.kind == "calibrate":
            raw = bytearray(base64.b64decode(vector))
            self._statistics.append(torch.frombuffer(raw, dtype=torch.float64))
        else:
            self._correct += int(message["correct"])
            self._loss_sum += float(message["loss_sum"])
        ledger.count([span], time.monotonic())
        if ledger.finished:
            self._phase_over.set()
        return span

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

    async def _phase(self, kind: str) -> None:
        samples = self._samples[kind]
        chunk = max(_SMALLEST_CHUNK, -(-samples // _SHARES))
        self._phase_over.clear()
        self._ledger = Ledger(kind, samples=samples, epochs=1, chunk=chunk, lease_s=self._lease_s)
        await self._phase_over.wait()
        self._ledger = None
