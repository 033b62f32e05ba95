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

from minga import messages
from minga.algorithm.layout import Layout
from minga.algorithm.localsgd import RecentNorms, combine_statistics
from minga.messages import Answer, Signed, encode
from minga.ps import requests
from minga.ps.parameters import SharedParameters
from minga.ps.session import Control, Session, SessionSpec
from minga.settings.schema import OptimizerConfig
from minga.tasks.zoo import build_model
from minga.worker.exchange import Exchange as WorkerExchange
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

    def ask(self, rank: int, request: requests.Request) -> requests.Reply:
        match request:
            case requests.Admit():
                self.admitted += 1
                median = self.norms.median if self.guard else None
                return requests.Grant(push=self.admitted, median_norm=median, own_staleness=0.0)
            case requests.Applied():
                self.norms.add(rank, request.norm)
                self.staleness.append(request.staleness)
                return Answer(verdict="applied")
            case requests.Refuse():
                self.refused.append(request.reason)
                return Answer(verdict="refused")
            case requests.Drifted():
                self.refused.append("drifted")
                return Answer(verdict="refused")
        return Answer()


@dataclass(frozen=True)
class Line:
    """A session's line to the books."""

    books: Books
    rank: int

    def ask(self, request: requests.Request) -> requests.Reply:
        return self.books.ask(self.rank, request)

    def answer(self, request: requests.Request) -> Answer:
        return cast(Answer, self.ask(request))


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
        return Session(spec, self.parameters, cast(Control, Line(self.books, self._sessions)))


class Exchange:
    """A worker's own end of the exchange, and its session at the ps."""

    def __init__(self, ps: Ps) -> None:
        self.session = ps.session()
        self._own = WorkerExchange(ps.codec, ps.parameters.weights, CPU)
        self.buffers = torch.zeros(ps.parameters.buffers)
        self._answer: tuple[Answer, Tensor, Tensor] | None = None
        self.reply = torch.empty(0)
        self.version = 0
        self.pull()

    @property
    def base(self) -> Tensor:
        """The weights that the ps knows this worker to hold."""
        return self._own.base

    def pull(self) -> None:
        """Take the whole weights, as at a join."""
        answer, (weights, self.buffers) = self._call(messages.GetWeights())
        self._own.restart(weights)
        self.version = answer.version

    def _call(self, call: messages.Call, *tensors: Tensor) -> tuple[Answer, tuple[Tensor, ...]]:
        return self.session.handle(encode(Signed(key="", call=call)).decode(), tensors)

    def send(self, local: Tensor, buffers: Tensor) -> str:
        """Push the way from base to local; return the verdict. The reply is still on its way."""
        crc_now = self._own.base_crc()
        self._own.hold(local)
        payload = self._own.encode()
        push = messages.Push(
            sequence=1, base_version=self.version, progress=[], reference_crc=crc_now
        )
        answer, tensors = self._call(push, payload, buffers)
        if answer.verdict == "applied":
            self._answer = (answer, *tensors)
        else:
            self.pull()
        return str(answer.verdict)

    def take(self, weights: Tensor) -> None:
        """Take the reply, if there is one; ``weights`` keep what was trained meanwhile."""
        if self._answer is not None:
            answer, self.reply, self.buffers = self._answer
            self._own.rebase(self.reply, weights)
            self.version = answer.version
            self._answer = None

    def push(self, local: Tensor, buffers: Tensor) -> str:
        """Push and take the reply at once; return the verdict."""
        verdict = self.send(local, buffers)
        self.take(local.clone())
        return verdict


class Worker:
    """A replica that trains in windows and exchanges after each.

    Args:
        ps: where it joins.
        replica: its model.
        batches: what it trains on.
        step_s: simulated seconds of a local step.
        in_flight: local steps of a window that are taken before the reply to the last push.
        bend: changes the difference before it is pushed; for negative controls.
    """

    def __init__(
        self,
        ps: Ps,
        replica: Replica,
        batches: Batches,
        *,
        step_s: float = 1.0,
        in_flight: int = 0,
        bend: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._ps = ps
        self._batches = batches
        self._bend = bend
        self._in_flight = in_flight
        self.replica = replica
        self.step_s = step_s
        self.steps: int | None = None
        """H of its own; None takes the clock's."""
        self.join()

    def join(self) -> None:
        """Join, or join again: a new session, no momentum."""
        self.exchange = Exchange(self._ps)
        self.replica.reset_momentum()
        self.replica.load(self.exchange.base, self.exchange.buffers)

    def window(self, steps: int, lr: float) -> None:
        """Take some local steps, the first ones with the last push in flight, and push."""
        self.replica.set_buffers(self.exchange.buffers)
        for number in range(steps):
            if number == self._in_flight:
                self.exchange.take(self.replica.weights)
            self.replica.step(*next(self._batches), lr)
        self.exchange.take(self.replica.weights)
        base = self.exchange.base
        if self._bend is not None:
            self.replica.set_weights(base - self._bend(base - self.replica.weights))
        if self.exchange.send(self.replica.weights, self.replica.buffers()) != "applied":
            self.replica.load(base, self.exchange.buffers)
        elif not self._in_flight:
            self.exchange.take(self.replica.weights)


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
            due_s = self.now_s + (worker.steps or self.steps) * worker.step_s
            heapq.heappush(self._due, (due_s, self._started, worker))

    def kill(self, workers: Sequence[Worker]) -> None:
        """Let these workers never end their window."""
        self._due = [each for each in self._due if each[2] not in workers]
        heapq.heapify(self._due)

    def run(self, windows: int) -> None:
        """Go on until so many windows are done, of all workers together."""
        for _ in range(windows):
            self.now_s, _, worker = heapq.heappop(self._due)
            worker.window(worker.steps or self.steps, self.lr(self.windows))
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
        in_flight: int = 0,
        bend: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._digits = digits
        options = OptimizerConfig(momentum=momentum)
        model = build()
        weights, self.first_buffers = Layout(model).flatten(model.state_dict())
        self.ps = Ps(weights, self.first_buffers, workers=len(speeds), codec=codec, gain=gain)
        batches = digits.batches()
        self.workers = [
            Worker(
                self.ps,
                Replica(build(), options, CPU),
                batches,
                step_s=step_s,
                in_flight=in_flight,
                bend=bend,
            )
            for step_s in speeds
        ]
        self._evaluator = Replica(model, options, CPU)

    def run(self, *, steps: int = STEPS, windows: int = WINDOWS, lr: float = 0.3) -> None:
        clock = Clock(steps, lambda _: lr)
        clock.start(self.workers)
        clock.run(windows)

    def recalibrated(self) -> Tensor:
        """Return BatchNorm buffers measured at the ps's weights, lease by lease."""
        self._evaluator.set_weights(self.ps.parameters.snapshot()[0])
        leases = self._digits.images.split(256)
        parts = [self._evaluator.batch_statistics(lease.split(128)) for lease in leases]
        return combine_statistics(parts)

    def accuracy(self, buffers: Tensor) -> float:
        """Return the ps's weights' accuracy with these buffers, in percent."""
        self._evaluator.load(self.ps.parameters.snapshot()[0], buffers)
        judged = (self._digits.judged_images, self._digits.judged_labels)
        correct, _ = self._evaluator.evaluate(*judged)
        return 100 * correct / len(self._digits.judged_labels)


class ServerMomentum:
    """The classic mistake: Nesterov momentum at the ps, over everybody's pushes."""

    def __init__(self) -> None:
        self._velocity: Tensor | float = 0.0

    def __call__(self, moved: Tensor) -> Tensor:
        self._velocity = 0.9 * self._velocity + moved
        return moved + 0.9 * self._velocity
