"""A window of local steps, and the push that it becomes."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from minga.data.leases import Span
from minga.messages import MOST_SPANS, Answer
from minga.transport.rpc import Pending, Tensors


@dataclass(slots=True)
class Figures:
    """Figures of a push that are known only after it: the next one brings them."""

    wait_s: float = 0.0
    exchange_s: float = 0.0
    overhead_s: float = 0.0
    encode_cpu_s: float = 0.0
    bytes_in: int = 0


@dataclass(slots=True)
class Window:
    """The training since the last push."""

    losses: list[torch.Tensor] = field(default_factory=list)
    segments: list[Span] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    """Seconds of it spent waiting for the ps."""

    @property
    def room(self) -> bool:
        """Whether one more batch fits into its push, even one of many leases."""
        return len(self.segments) < MOST_SPANS // 2


@dataclass(slots=True)
class SentPush:
    """A push without an answer yet; at first it is still being encoded."""

    sending: Future[Pending]
    samples: int
    begun_s: float

    @property
    def answered(self) -> bool:
        """Whether :meth:`answer` returns or raises immediately."""
        sent = self.sending
        return sent.done() and (sent.exception() is not None or sent.result().done)

    def answer(self) -> tuple[Answer, Tensors]:
        """Wait for the answer. Raises ConnectionError."""
        return self.sending.result().result()

    @property
    def took_s(self) -> float:
        """Seconds until the answer arrived."""
        return self.sending.result().finished_s - self.begun_s
