"""One worker's training: windows of local steps, pushes, and its share of each validation."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from msgspec.structs import replace

from minga.data.dataset import ImageData
from minga.data.leases import Lease
from minga.data.loader import BatchLoader, evaluation_batches
from minga.messages import (
    Answer,
    GetSnapshot,
    GetWeights,
    Leave,
    NextWork,
    Progress,
    Push,
    Result,
    Work,
)
from minga.protocol import DONE, STOPPED, WAIT
from minga.settings.schema import Settings
from minga.timing import CALL_S, REPORT_S
from minga.transport.dial import Link
from minga.transport.rpc import Pending
from minga.worker.diagnostics import SPOILT, Warnings
from minga.worker.exchange import Exchange
from minga.worker.replica import Replica
from minga.worker.window import Figures, SentPush, Window

_Images = tuple[torch.Tensor, torch.Tensor]
_IDLE_S = 0.2
_CHECK_EVERY = 50
_READ_S = 120.0


@dataclass(slots=True)
class Totals:
    """Totals of this worker process over all its sessions."""

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


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a trainer hears from its process, and lets it know.

    Attributes:
        leaving: set when this worker must leave.
        progress: called after each push with its loss and the version of its weights.
        beat: called at each step, batch and turn: training goes on.
    """

    leaving: threading.Event
    progress: Callable[[float, int], None]
    beat: Callable[[], None]


class Trainer:
    """The model, the data and the exchange of one worker process; outlives its sessions.

    Args:
        settings: the run's, as the ps sent them.
        data: this worker's data set.
        replica: makes the model that trains, and another one for validation leases.
        batch_size: images per local step.
        hooks: of its process.
    """

    def __init__(
        self,
        settings: Settings,
        data: ImageData,
        *,
        replica: Callable[[], Replica],
        batch_size: int,
        hooks: Hooks,
    ) -> None:
        self.totals = Totals()
        self._settings = settings
        self.data = data
        self._replica = replica()
        self._evaluator = replica()
        self._leaving = hooks.leaving
        self._progress = hooks.progress
        self._beat = hooks.beat
        self._batch_size = batch_size
        self._loader = BatchLoader(
            data.train,
            seed=settings.train.seed,
            batch_size=batch_size,
            augment=settings.data.augment,
            pinned=self._replica.weights.is_cuda,
        )
        numel = self._replica.weights.numel()
        self._exchange = Exchange(settings.exchange.codec, numel, self._replica.weights.device)
        self._sender = ThreadPoolExecutor(1, "sender")
        """Encodes and sends pushes beside training."""
        self._outstanding: SentPush | None = None
        self._report: Pending | None = None
        self._reported_s = 0.0
        self._report_every_s = min(REPORT_S, settings.ledger.lease_s / 3)
        self._next_buffers: torch.Tensor | None = None
        self._version = 0
        self._sequence = 0
        self._last = Figures()
        self._work = Work(task=WAIT)
        self._evaluating: deque[Lease] = deque()
        self._evaluated_snapshot = 0
        self._snapshot: tuple[int, Pending] | None = None
        """The snapshot being received beside training, and its number."""
        self._warnings = Warnings()

    def train(self, link: Link) -> str:
        """Train over this link until the run ends; return ``done``, ``stopped`` or ``left``.

        Raises:
            ConnectionError: the link broke; samples that were not pushed return to the ledger.
        """
        self._begin(link)
        while True:
            self._beat()
            if self._leaving.is_set() or self._work.task in (DONE, STOPPED):
                if self._outstanding is not None:
                    self._settle(link, self._outstanding)
                link.call(Leave(), timeout_s=CALL_S)
                return "left" if self._leaving.is_set() else self._work.task
            if self._evaluating and self._snapshot_is_here(link):
                self._evaluate_lease(link, self._evaluating.popleft())
            elif self._loader.pending():
                self._train_window(link)
            elif self._outstanding is not None:
                self._settle(link, self._outstanding)
            elif self._evaluating:
                self._snapshot_is_here(link, wait=True)
            else:
                self._leaving.wait(_IDLE_S)
                self._take(link.call(NextWork(), timeout_s=CALL_S)[0])

    def close(self) -> None:
        """Stop the threads."""
        self._sender.shutdown()
        for split in (self.data.train, self.data.val):
            split.close()
        self._loader.close()

    def _begin(self, link: Link) -> None:
        """Start from the ps's weights; discard the state of earlier sessions."""
        self.totals.joins += 1
        self._loader.clear()
        self._evaluating.clear()
        self._evaluated_snapshot, self._snapshot = 0, None
        if self._outstanding is not None:
            self._outstanding.sending.exception()  # waits: it reads fields that are reset here
        self._outstanding = self._report = None
        self._replica.reset_momentum()
        self._pull(link)

    def _pull(self, link: Link) -> None:
        answer, (weights, buffers) = link.call(GetWeights(), timeout_s=CALL_S)
        self.totals.bytes_in += weights.nbytes + buffers.nbytes
        self._exchange.restart(weights)
        self._replica.load(weights, buffers)
        self._next_buffers = None
        self._version = answer.version
        self._take(answer)

    def _take(self, answer: Answer) -> None:
        """Take the work from an answer. Raises ConnectionError if there is none."""
        if answer.work is None:
            raise ConnectionError("the ps answered without work")
        self._work = work = answer.work
        for lease in work.leases:
            if lease.kind == "train":
                self._loader.add(lease)
            else:
                self._evaluating.append(lease)

    def _train_window(self, link: Link) -> None:
        """Take H local steps while the last push may be in flight, then push."""
        window = Window()
        if self._next_buffers is not None:
            self._replica.set_buffers(self._next_buffers)
            self._next_buffers = None
        while len(window.losses) < self._work.steps and window.room:
            if not self._keep_up(link, window, wait=False):
                return
            batch = self._loader.next(_READ_S)
            if batch is not None:
                step_loss = self._replica.step(batch.images, batch.labels, self._work.lr)
                window.losses.append(step_loss)
                window.segments.extend(batch.segments)
                self._send_keepalive(link)
            elif self._outstanding is None:
                break
            elif not self._keep_up(link, window, wait=True):  # its answer may contain leases
                return
        if self._keep_up(link, window, wait=True) and window.losses:
            self._push(link, window)

    def _keep_up(self, link: Link, window: Window, *, wait: bool) -> bool:
        """Take the outstanding push's answer if it has arrived, or wait for it.

        Returns:
            False if that push was refused: this window started from weights that the ps does not
            have, so it is dropped and its samples are trained again.
        """
        push = self._outstanding
        if push is None or not (wait or push.answered):
            return True
        started_s = time.monotonic()
        applied = self._settle(link, push)
        window.waited_s += time.monotonic() - started_s
        if not applied:
            self._loader.put_back(window.segments)
        return applied

    def _send_keepalive(self, link: Link) -> None:
        """Renew this worker's leases: one window may outlast them. Does not wait for the answer."""
        self._beat()
        now_s = time.monotonic()
        due = now_s - self._reported_s >= self._report_every_s
        if due and (self._report is None or self._report.done):
            self._reported_s = now_s
            self._report = link.start(Progress(), timeout_s=CALL_S)

    def _push(self, link: Link, window: Window) -> None:
        loss = float(torch.stack(window.losses).mean())  # waits for the device
        compute_s = time.monotonic() - window.started_s - window.waited_s
        begun_s = time.monotonic()
        self._exchange.hold(self._replica.weights)
        buffers = self._replica.buffers()
        self._sequence += 1
        bytes_out = self._exchange.payload_bytes + buffers.nbytes
        last = self._last
        message = Push(
            sequence=self._sequence,
            base_version=self._version,
            progress=window.segments,
            loss=loss,
            lr=self._work.lr,
            steps=len(window.losses),
            compute_s=compute_s,
            bytes_out=bytes_out,
            wait_s=last.wait_s,
            exchange_s=last.exchange_s,
            overhead_s=last.overhead_s,
            encode_cpu_s=last.encode_cpu_s,
            bytes_in=last.bytes_in,
        )
        sending = self._sender.submit(self._send, link, message, buffers)
        self._outstanding = push = SentPush(sending, message.samples, begun_s)
        self.totals.bytes_out += bytes_out
        self.totals.compute_s += compute_s
        self._last.wait_s, self._last.overhead_s = 0.0, time.monotonic() - begun_s
        if self._settings.exchange.in_flight == "wait":
            self._settle(link, push)
        self._warnings.look_at(self.data)
        self._progress(loss, self._version)

    def _send(self, link: Link, message: Push, buffers: torch.Tensor) -> Pending:
        """Encode and send the held weights; runs beside training."""
        if message.sequence % _CHECK_EVERY == 0:
            message = replace(message, reference_crc=self._exchange.base_crc())
        started_s = time.thread_time()
        payload = self._exchange.encode()
        self._last.encode_cpu_s = time.thread_time() - started_s
        return link.start(message, (payload, buffers), timeout_s=CALL_S)

    def _settle(self, link: Link, push: SentPush) -> bool:
        """Wait for a push's answer and apply it; return whether the push was applied."""
        started_s = time.monotonic()
        answer, tensors = push.answer()
        self._outstanding = None
        waited_s = time.monotonic() - started_s
        self._last.wait_s += waited_s
        # without the time waiting for the rest of a round
        self._last.exchange_s = max(0.0, push.took_s - answer.held_s)
        self.totals.wait_s += waited_s
        self._take(answer)
        if answer.verdict == "applied":
            reply, self._next_buffers = tensors
            rebase_from_s = time.monotonic()
            self._exchange.rebase(reply, self._replica.weights)
            self._last.overhead_s += time.monotonic() - rebase_from_s
            self._version = answer.version
            self._last.bytes_in = reply.nbytes + self._next_buffers.nbytes
            self.totals.bytes_in += reply.nbytes + self._next_buffers.nbytes
            self.totals.samples += push.samples
            self.totals.pushes += 1
            self._warnings.settled(None)
            return True
        reason = answer.reason or str(answer.verdict)
        self.totals.refused += 1
        self.totals.refused_for[reason] = self.totals.refused_for.get(reason, 0) + 1
        self._warnings.settled(reason)
        if reason in SPOILT:
            self._replica.reset_momentum()  # the residual holds what made the push non-finite
        self._pull(link)
        return False

    def _snapshot_is_here(self, link: Link, *, wait: bool = False) -> bool:
        """Return whether the snapshot to evaluate has arrived; request it once if not."""
        wanted = self._work.snapshot
        if self._evaluated_snapshot == wanted:
            return True
        if self._snapshot is None or self._snapshot[0] != wanted:
            self._snapshot = wanted, link.start(GetSnapshot(weights=True), timeout_s=CALL_S)
        call = self._snapshot[1]
        if not (wait or call.done):
            return False
        _, (weights, buffers) = call.result()
        self._evaluator.load(weights, buffers)
        self._evaluated_snapshot, self._snapshot = wanted, None
        return True

    def _evaluate_lease(self, link: Link, lease: Lease) -> None:
        """Process one lease of a validation on the ps's frozen snapshot."""
        assert lease.kind != "train", lease
        asked = GetSnapshot(weights=False)  # the buffers change between two phases
        _, (_, buffers) = link.call(asked, timeout_s=CALL_S)
        self._evaluator.set_buffers(buffers)
        split = self.data.train if lease.kind == "calibrate" else self.data.val
        batches = self._reporting(
            link,
            evaluation_batches(
                split, lease, seed=self._settings.train.seed, batch_size=self._batch_size
            ),
        )
        correct, loss_sum = 0, 0.0
        statistics: tuple[torch.Tensor, ...] = ()
        if lease.kind == "calibrate":
            statistics = (self._evaluator.batch_statistics(images for images, _ in batches),)
        else:
            for images, labels in batches:
                right, loss = self._evaluator.evaluate(images, labels)
                correct, loss_sum = correct + right, loss_sum + loss
            self.totals.evaluated += lease.stop - lease.start
        result = Result(
            kind=lease.kind,
            lease=lease.id,
            start=lease.start,
            stop=lease.stop,
            correct=correct,
            loss_sum=loss_sum,
        )
        self._take(link.call(result, statistics, timeout_s=CALL_S)[0])

    def _reporting(self, link: Link, batches: Iterator[_Images]) -> Iterator[_Images]:
        """Pass batches on, and send a keepalive regularly."""
        for batch in batches:
            self._send_keepalive(link)
            yield batch
