"""What is planned: PCs, links, the model's size, and what an exchange costs in CPU time."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Self

from minga.errors import Hint, UsageError
from minga.settings.schema import Codec, InFlight

PAYLOAD_SHARE = 0.94
"""Of a link's nominal rate: what Ethernet, IP, TCP and TLS leave, 117 MB/s of 1 Gbit/s."""
MOST_PCS = 512

_BYTES = {"int8": 1 + 1 / 256, "bf16": 2.0, "none": 4.0}
"""Of a parameter; int8 has a scale for each 256."""
_BUFFER_BYTES = 4
_CAST_SHARE = 0.5
"""Of int8's time: what encoding takes where a value is only cast or copied (measured)."""
_ITEM = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)(?:@(\d+(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Pcs:
    """Some equal PCs, each with one worker.

    Args:
        count: how many.
        images_per_s: what one of them trains when it exchanges nothing.
        link_mbits: rate of each one's link, each way.
    """

    count: int
    images_per_s: float
    link_mbits: float


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU time of one exchange, on one core.

    The defaults are ResNet-50's (25.6 million parameters) in int8: encode 50 ms, rebase 45 ms,
    decode and apply 40 ms, reply 50 ms. ``benchmarks/codec.py`` measures another machine.
    """

    hold_ns: float = 0.5
    """Of a parameter, on the worker: the weights are copied, for a push of them."""
    encode_ns: float = 2.0
    """Of a parameter, on the worker, while training goes on: the copy becomes a push."""
    rebase_ns: float = 1.8
    """Of a parameter, on the worker: a reply is decoded and taken."""
    apply_ns: float = 1.6
    """Of a parameter, at the ps: a push is decoded, judged and applied; one at a time."""
    reply_ns: float = 2.0
    """Of a parameter, at the ps: the reply is encoded."""
    forward_ns: float = 2.0
    """Of a byte, at each side: TLS and the way through loopback, while bytes travel."""
    call_s: float = 0.003
    """Of an exchange: questions to the coordinator, and the way there and back."""

    @classmethod
    def of(cls, codec: Codec) -> Self:
        """Return the defaults for a codec."""
        costs = cls()
        if codec == "int8":
            return costs
        return replace(
            costs,
            encode_ns=_CAST_SHARE * costs.encode_ns,
            reply_ns=_CAST_SHARE * costs.reply_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A run to be simulated.

    Args:
        pcs: the workers' PCs, by kind.
        parameters: of the model.
        buffers: floating-point values of its BatchNorm statistics; fp32 both ways.
        train_images: size of the training set.
        batch_size: images of a local step.
        codec: of pushes and replies.
        in_flight: what a worker does while a push is on its way.
        local_steps: H; none balances it as the ps does.
        ps_link_mbits: rate of the ps's link, each way.
        ps_cores: of the ps's PC.
        costs: CPU time.
        jitter: how far a window's step time may be off, as a share. PCs that are equal to the
            last digit would push in step for ever, as no real ones do.
    """

    pcs: tuple[Pcs, ...]
    parameters: int
    buffers: int
    train_images: int
    batch_size: int = 128
    codec: Codec = "int8"
    in_flight: InFlight = "train"
    local_steps: int | None = None
    ps_link_mbits: float = 1000.0
    ps_cores: int = 4
    costs: Costs = field(default_factory=Costs)
    jitter: float = 0.02

    @property
    def workers(self) -> int:
        """How many PCs train."""
        return sum(kind.count for kind in self.pcs)

    @property
    def ideal_per_s(self) -> float:
        """Samples per second of all PCs if exchanging were free."""
        return sum(kind.count * kind.images_per_s for kind in self.pcs)

    @property
    def exchange_bytes(self) -> float:
        """Bytes of a push, and of a reply."""
        return self.parameters * _BYTES[self.codec] + self.buffers * _BUFFER_BYTES

    @property
    def forward_s(self) -> float:
        """CPU seconds in which one side forwards a push or a reply."""
        return self.costs.forward_ns * 1e-9 * self.exchange_bytes


def link_bytes_per_s(mbits: float) -> float:
    """Return the payload that a link of so many Mbit/s carries, each way."""
    return mbits * 1e6 / 8 * PAYLOAD_SHARE


def parse_pcs(items: tuple[str, ...], link_mbits: float) -> tuple[Pcs, ...]:
    """Read ``8x1000`` (8 PCs, 1000 images/s each) and ``300@20`` (one, on a 20 Mbit/s link).

    Args:
        items: one or several, also with commas in them.
        link_mbits: of a PC whose item does not say.

    Raises:
        UsageError: ``plan-pcs``.
    """
    kinds = []
    for item in (each.strip() for text in items for each in text.split(",")):
        found = _ITEM.fullmatch(item)
        if found is None:
            raise _pcs_error(f"{item!r} names no PCs")
        count, rate, link = found.groups()
        kind = Pcs(int(count or 1), float(rate), float(link or link_mbits))
        if not (kind.count and kind.images_per_s and kind.link_mbits):
            raise _pcs_error(f"{item!r} names no PCs that train: a number in it is 0")
        kinds.append(kind)
    count_pcs(sum(kind.count for kind in kinds))
    return tuple(kinds)


def parse_counts(text: str) -> list[int]:
    """Read ``4,8,16``. Raises UsageError ``plan-pcs``."""
    counts = [each.strip() for each in text.split(",")]
    if not all(each.isdecimal() for each in counts):
        raise _pcs_error(f"{text!r} is no list of numbers of PCs, like 4,8,16")
    return [count_pcs(int(each)) for each in counts]


def count_pcs(count: int) -> int:
    """Return the number of PCs. Raises UsageError ``plan-pcs`` if there are none or too many."""
    if not 1 <= count <= MOST_PCS:
        raise _pcs_error(f"{count} PCs; a plan is for 1 to {MOST_PCS}")
    return count


def _pcs_error(what: str) -> UsageError:
    return UsageError(
        what,
        code="plan-pcs",
        hints=(
            Hint("8 PCs, 1000 images/s each?", "minga plan --pcs 8x1000"),
            Hint("one more on 20 Mbit/s?", "minga plan --pcs 8x1000 --pcs 1x300@20"),
        ),
    )
