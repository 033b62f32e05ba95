"""A ps and its workers in one process and in simulated time: the ps's own sessions, no wire.

The event-driven clock makes slow workers as stale as slow PCs are; nothing else is simulated.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from minga.algorithm.codec import apply_delta, crc, encode_push, make_codec
from minga.algorithm.localsgd import RecentNorms, combine_statistics
from minga.config import OptimizerConfig
from minga.models import Layout, build_model
from minga.ps.parameters import SharedParameters
from minga.ps.session import Control, Session, SessionSpec
from minga.transport.stream import Message
from minga.worker.replica import Replica

HET8 = (1, 1, 1, 1, 2, 2, 4, 8)
"""Seconds per step of eight unequal PCs."""
STEPS, WINDOWS, BATCH = 8, 80, 32
CPU = torch.device("cpu")

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass
class Books:
    """Answers a session as the coordinator would that admits every push."""

    norms: RecentNorms = field(default_factory=RecentNorms)
    staleness: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    admitted: int = 0
    guard: bool = True
    """Whether outsized pushes are refused; a test of divergence must let them through."""

    def ask(self, do: str, **facts: Any) -> Message:
        match do:
            case "admit":
                self.admitted += 1
                median = self.norms.median if self.guard else None
                return {"verdict": "granted", "push": self.admitted, "median_norm": median}
            case "applied":
                self.norms.add(facts["norm"])
                self.staleness.append(facts["staleness"])
                return {"verdict": "applied"}
            case "refused" | "drifted":
                self.refused.append(facts.get("reason", do))
                return {"verdict": "refused"}
        return {}


class Ps:
    """Shared parameters, their sessions and one set of books."""

    def __init__(
        self,
        weights: Tensor,
        buffers: Tensor,
        *,
        workers: int,
        codec: str = "int8",
        gain: float = 1.0,
    ) -> None:
        self.parameters = SharedParameters.create(weights, buffers)
        self.parameters.active_workers = workers
        self.books = Books()
        self.codec = codec
        self._gain = gain
        self._sessions = 0

    def session(self) -> Session:
        self._sessions += 1
        spec = SessionSpec(
            id="",
            key="",
            slot=self._sessions,
            host="",
            codec=self.codec,
            gain=self._gain,
            max_staleness=None,
            weights=self.parameters.weights,
            buffers=self.parameters.buffers,
            identity=cast(Any, None),  # of the wire
        )
        return Session(spec, self.parameters, cast(Control, self.books))


class Exchange:
    """A worker's side: its base, its residual, and one session at the ps."""

    def __init__(self, ps: Ps) -> None:
        self.session = ps.session()
        self._codec = make_codec(ps.codec, ps.parameters.weights)
        self._residual = torch.zeros(ps.parameters.weights)
        self.base = torch.zeros(ps.parameters.weights)
        self.buffers = torch.zeros(ps.parameters.buffers)
        self.payload = torch.empty(self._codec.nbytes, dtype=torch.uint8)
        self.reply = torch.empty_like(self.payload)
        self.version = 0
        self.pull()

    def pull(self) -> None:
        """Take the whole weights, as at a join."""
        answer, (weights, self.buffers) = self.session.handle({"do": "weights"}, ())
        self.base.copy_(weights)
        self._residual.zero_()
        self.version = int(answer["version"])

    def push(self, local: Tensor, buffers: Tensor) -> str:
        """Push the way from base to local; take the reply; return the verdict."""
        encode_push(self._codec, self.base, local, self._residual, self.payload)
        message = {"do": "push", "base_version": self.version, "reference_crc": crc(self.base)}
        answer, tensors = self.session.handle(message, (self.payload, buffers))
        if answer["verdict"] == "applied":
            self.reply, self.buffers = tensors
            apply_delta(self._codec, self.reply, self.base)
            self.version = int(answer["version"])
        else:
            self.pull()
        return str(answer["verdict"])


class Worker:
    """A replica that trains in windows and exchanges after each.

    Args:
        ps: where it joins.
        replica: its model.
        batches: what it trains on.
        step_s: simulated seconds of a local step.
        bend: changes the difference before it is pushed; for negative controls.
    """

    def __init__(
        self,
        ps: Ps,
        replica: Replica,
        batches: Batches,
        *,
        step_s: float = 1.0,
        bend: Callable[[Tensor], Tensor] = lambda moved: moved,
    ) -> None:
        self._ps = ps
        self._batches = batches
        self._bend = bend
        self.replica = replica
        self.step_s = step_s
        self.join()

    def join(self) -> None:
        """Join, or join again: a new session, no momentum."""
        self.exchange = Exchange(self._ps)
        self.replica.reset_momentum()
        self.replica.load(self.exchange.base, self.exchange.buffers)

    def window(self, steps: int, lr: float) -> None:
        """Take some local steps and exchange."""
        for _ in range(steps):
            self.replica.step(*next(self._batches), lr)
        base = self.exchange.base
        local = base - self._bend(base - self.replica.weights)
        self.exchange.push(local, self.replica.buffers())
        self.replica.load(base, self.exchange.buffers)


@dataclass
class Clock:
    """Lets each worker have its window when its steps are done."""

    steps: int
    lr: Callable[[int], float]
    """Learning rate after so many windows."""
    now_s: float = 0.0
    windows: int = 0
    _due: list[tuple[float, int, Worker]] = field(default_factory=list)
    _started: int = 0

    def start(self, workers: Sequence[Worker]) -> None:
        """Let these workers train from now on."""
        for worker in workers:
            self._started += 1
            due_s = self.now_s + self.steps * worker.step_s
            heapq.heappush(self._due, (due_s, self._started, worker))

    def kill(self, workers: Sequence[Worker]) -> None:
        """Let these workers never end their window."""
        self._due = [each for each in self._due if each[2] not in workers]
        heapq.heapify(self._due)

    def run(self, windows: int) -> None:
        """Go on until so many windows are done, of all workers together."""
        for _ in range(windows):
            self.now_s, _, worker = heapq.heappop(self._due)
            worker.window(self.steps, self.lr(self.windows))
            self.windows += 1
            self.start([worker])


@dataclass(frozen=True)
class Digits:
    """1 442 real handwritten digits to learn from and 355 to be judged by."""

    images: Tensor
    labels: Tensor
    judged_images: Tensor
    judged_labels: Tensor

    def batches(self) -> Batches:
        generator = torch.Generator().manual_seed(0)
        while True:
            for part in torch.randperm(len(self.labels), generator=generator).split(BATCH):
                yield self.images[part], self.labels[part]


def load_digits_data() -> Digits:
    raw = load_digits()
    images = torch.from_numpy((raw.images * 15.9375).round()).to(torch.uint8)
    images = images.unsqueeze(1).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(raw.target)
    parts = train_test_split(images, labels, test_size=355, stratify=labels, random_state=0)
    return Digits(parts[0], parts[2], parts[1], parts[3])


def small_cnn() -> nn.Module:
    return build_model("small-cnn", 10, 8, seed=0)


def smooth_cnn() -> nn.Module:
    """The small CNN without kinks: at a ReLU's two roundings of one weight part for good."""
    model = small_cnn()
    for name, layer in model.named_children():
        if isinstance(layer, nn.ReLU):
            setattr(model, name, nn.Tanh())
    return model


def pooled_cnn() -> nn.Module:
    """A network that, as ResNets do, averages over the image before its last layer."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1)):
            layers.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Training:
    """Digits, a ps and workers; ``build`` gives each its model."""

    def __init__(
        self,
        digits: Digits,
        speeds: tuple[int, ...],
        *,
        build: Callable[[], nn.Module] = small_cnn,
        codec: str = "int8",
        gain: float = 1.0,
        momentum: float = 0.9,
        bend: Callable[[Tensor], Tensor] = lambda moved: moved,
    ) -> None:
        self._digits = digits
        options = OptimizerConfig(momentum=momentum)
        model = build()
        weights, self.first_buffers = Layout(model).flatten(model.state_dict())
        self.ps = Ps(weights, self.first_buffers, workers=len(speeds), codec=codec, gain=gain)
        batches = digits.batches()
        self.workers = [
            Worker(self.ps, Replica(build(), options, CPU), batches, step_s=step_s, bend=bend)
            for step_s in speeds
        ]
        self._judge = Replica(model, options, CPU)

    def run(self, *, steps: int = STEPS, windows: int = WINDOWS, lr: float = 0.3) -> None:
        clock = Clock(steps, lambda _: lr)
        clock.start(self.workers)
        clock.run(windows)

    def recalibrated(self) -> Tensor:
        """Return BatchNorm buffers measured at the ps's weights, lease by lease."""
        self._judge.set_weights(self.ps.parameters.snapshot()[0])
        leases = self._digits.images.split(256)
        parts = [self._judge.batch_statistics(lease.split(128)) for lease in leases]
        return combine_statistics(parts)

    def accuracy(self, buffers: Tensor) -> float:
        """Return the ps's weights' accuracy with these buffers, in percent."""
        self._judge.load(self.ps.parameters.snapshot()[0], buffers)
        judged = (self._digits.judged_images, self._digits.judged_labels)
        correct, _, count = self._judge.evaluate(*judged)
        return 100 * correct / count


class ServerMomentum:
    """The classic mistake: Nesterov momentum at the ps, over everybody's pushes."""

    def __init__(self) -> None:
        self._velocity: Tensor | float = 0.0

    def __call__(self, moved: Tensor) -> Tensor:
        self._velocity = 0.9 * self._velocity + moved
        return moved + 0.9 * self._velocity
