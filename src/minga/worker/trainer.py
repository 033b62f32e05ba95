"""One worker's training: windows of local steps, pushes, and its share of each validation."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from minga.algorithm import codec as codecs
from minga.config import Settings
from minga.data.dataset import ImageData
from minga.data.leases import Lease
from minga.data.loader import BatchLoader, Segment, evaluation_batches
from minga.protocol import DONE, STOPPED, WAIT, Work
from minga.transport.dial import Link
from minga.transport.stream import Message
from minga.worker.replica import Replica

_IDLE_S = 0.2
_CHECK_EVERY = 50
_CALL_S = 60.0
_READ_S = 120.0


@dataclass(slots=True)
class Totals:
    """What this worker process did, over all its sessions."""

    samples: int = 0
    pushes: int = 0
    refused: int = 0
    joins: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0
    evaluated: int = 0
    refused_for: dict[str, int] = field(default_factory=dict)


class Trainer:
    """The model, the data and the exchange of one worker process; outlives its sessions.

    Args:
        settings: the run's, as the ps sent them.
        data: this worker's data set.
        replica: makes the model that trains, and another one for validation leases.
        batch_size: images per local step.
        leaving: set when this worker was asked to leave.
        progress: called after each push with what to show.
    """

    def __init__(
        self,
        settings: Settings,
        data: ImageData,
        *,
        replica: Callable[[], Replica],
        batch_size: int,
        leaving: threading.Event,
        progress: Callable[[Message], None],
    ) -> None:
        self.totals = Totals()
        self._settings = settings
        self._data = data
        self._replica = replica()
        self._judge = replica()
        self._leaving = leaving
        self._progress = progress
        self._batch_size = batch_size
        self._loader = BatchLoader(
            data.train,
            seed=settings.train.seed,
            batch_size=batch_size,
            augment=settings.data.augment,
        )
        numel = self._replica.weights.numel()
        self._codec = codecs.make_codec(settings.exchange.codec, numel)
        self._payload = torch.empty(self._codec.nbytes, dtype=torch.uint8)
        self._base = torch.zeros(numel)
        self._residual = torch.zeros(numel)
        self._version = 0
        self._sequence = 0
        self._last_wait_s = 0.0
        self._last_bytes_in = 0
        self._work = Work(task=WAIT)
        self._judging: deque[Lease] = deque()
        self._judged_snapshot = 0

    @property
    def codec_bytes(self) -> int:
        """Bytes of one encoded push."""
        return self._codec.nbytes

    def train(self, link: Link) -> str:
        """Train over this link until the run ends; return ``done``, ``stopped`` or ``left``.

        Raises:
            ConnectionError: the link broke; what was not pushed goes back to the ledger.
        """
        self._begin(link)
        while True:
            if self._leaving.is_set() or self._work.task in (DONE, STOPPED):
                link.call({"do": "leave"}, timeout_s=_CALL_S)
                return "left" if self._leaving.is_set() else self._work.task
            if self._judging:
                self._judge_lease(link, self._judging.popleft())
            elif self._loader.pending():
                self._window(link)
            else:
                self._leaving.wait(_IDLE_S)
                self._take(link.call({"do": "work"}, timeout_s=_CALL_S)[0])

    def close(self) -> None:
        """Stop the loader's thread."""
        self._loader.close()

    def _begin(self, link: Link) -> None:
        """Start from the ps's weights; nothing of an earlier session is kept."""
        self.totals.joins += 1
        self._loader.clear()
        self._judging.clear()
        self._judged_snapshot = 0
        self._replica.reset_momentum()
        self._pull(link)

    def _pull(self, link: Link) -> None:
        answer, (weights, buffers) = link.call({"do": "weights"}, timeout_s=_CALL_S)
        self.totals.bytes_in += weights.nbytes + buffers.nbytes
        self._base.copy_(weights)
        self._residual.zero_()
        self._replica.load(weights, buffers)
        self._version = int(answer["version"])
        self._take(answer)

    def _take(self, answer: Message) -> None:
        """Note what the ps gave along with an answer."""
        self._work = work = Work(**answer["work"])
        for plain in work.leases:
            lease = Lease.from_list(plain)
            if lease.kind == "train":
                self._loader.add(lease)
            else:
                self._judging.append(lease)

    def _window(self, link: Link) -> None:
        """Take H local steps, push, and go on from the reply."""
        started_s = time.monotonic()
        losses: list[torch.Tensor] = []
        segments: list[Segment] = []
        while len(losses) < self._work.steps:
            batch = self._loader.next(_READ_S)
            if batch is None:
                break
            losses.append(self._replica.step(batch.images, batch.labels, self._work.lr))
            segments.extend(batch.segments)
        if losses:
            loss = float(torch.stack(losses).mean())
            self._push(link, segments, loss, time.monotonic() - started_s)

    def _push(self, link: Link, segments: list[Segment], loss: float, compute_s: float) -> None:
        started_s = time.monotonic()
        codecs.encode_push(
            self._codec, self._base, self._replica.cpu_weights(), self._residual, self._payload
        )
        buffers = self._replica.buffers()
        self._sequence += 1
        samples = sum(each.stop - each.start for each in segments)
        message: dict[str, Any] = {
            "do": "push",
            "sequence": self._sequence,
            "base_version": self._version,
            "progress": [[s.lease, s.epoch, s.start, s.stop, s.crc] for s in segments],
            "loss": loss,
            "lr": self._work.lr,
            "compute_s": compute_s,
            "wait_s": self._last_wait_s,
            "bytes_out": self._payload.nbytes + buffers.nbytes,
            "bytes_in": self._last_bytes_in,
        }
        if self._sequence % _CHECK_EVERY == 0:
            message["reference_crc"] = codecs.crc(self._base)
        answer, tensors = link.call(message, (self._payload, buffers), timeout_s=_CALL_S)
        self.totals.bytes_out += self._payload.nbytes + buffers.nbytes
        self.totals.compute_s += compute_s
        if answer["verdict"] == "applied":
            self._go_on(answer, *tensors)
            self.totals.samples += samples
            self.totals.pushes += 1
        else:
            reason = str(answer.get("reason", answer["verdict"]))
            self.totals.refused += 1
            self.totals.refused_for[reason] = self.totals.refused_for.get(reason, 0) + 1
            self._take(answer)
            self._pull(link)
        self._last_wait_s = time.monotonic() - started_s
        self.totals.wait_s += self._last_wait_s
        self._progress({"loss": loss, "samples": samples, "version": self._version})

    def _go_on(self, answer: Message, payload: torch.Tensor, buffers: torch.Tensor) -> None:
        codecs.apply_delta(self._codec, payload, self._base)
        self._replica.load(self._base, buffers)
        self._version = int(answer["version"])
        self._last_bytes_in = payload.nbytes + buffers.nbytes
        self.totals.bytes_in += self._last_bytes_in
        self._take(answer)

    def _judge_lease(self, link: Link, lease: Lease) -> None:
        """Do one lease of a validation on the ps's frozen snapshot."""
        with_weights = self._judged_snapshot != self._work.snapshot
        _, (weights, buffers) = link.call(
            {"do": "snapshot", "weights": with_weights}, timeout_s=_CALL_S
        )
        if with_weights:
            self._judge.load(weights, buffers)
            self._judged_snapshot = self._work.snapshot
        else:
            self._judge.set_buffers(buffers)
        message: dict[str, Any] = {
            "do": "result",
            "kind": lease.kind,
            "lease": lease.id,
            "start": lease.start,
            "stop": lease.stop,
        }
        split = self._data.train if lease.kind == "calibrate" else self._data.val
        batches = evaluation_batches(
            split, lease, seed=self._settings.train.seed, batch_size=self._batch_size
        )
        vector: tuple[torch.Tensor, ...] = ()
        if lease.kind == "calibrate":
            vector = (self._judge.batch_statistics(images for images, _ in batches),)
        else:
            correct, loss_sum = 0, 0.0
            for images, labels in batches:
                right, loss, _ = self._judge.evaluate(images, labels)
                correct, loss_sum = correct + right, loss_sum + loss
            message.update(correct=correct, loss_sum=loss_sum)
            self.totals.evaluated += lease.stop - lease.start
        self._take(link.call(message, vector, timeout_s=_CALL_S)[0])
