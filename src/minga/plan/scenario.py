"""A scenario: PCs, links, the model's size, CPU costs of an exchange."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Self

from minga.errors import Hint, UsageError
from minga.settings.schema import Codec, InFlight

PAYLOAD_SHARE = 0.94
"""Payload share of a link's nominal rate, after Ethernet, IP, TCP and TLS: 117 MB/s of 1 Gbit/s."""
MOST_PCS = 512

_BYTES = {"int8": 1 + 1 / 256, "bf16": 2.0, "none": 4.0}
"""Bytes per parameter; int8 has one scale per 256."""
_BUFFER_BYTES = 4
_CAST_SHARE = 0.5
"""Encoding time relative to int8's, measured."""
_ITEM = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)(?:@(\d+(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Pcs:
    """Some equal PCs, each with one worker.

    Args:
        count: how many.
        images_per_s: rate of one PC without exchanges.
        link_mbits: link rate of each PC, each way.
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
    """ns per parameter on the worker: copying the weights for a push."""
    encode_ns: float = 2.0
    """ns per parameter on the worker, beside training: encoding the copy."""
    rebase_ns: float = 1.8
    """ns per parameter on the worker: decoding and applying a reply."""
    apply_ns: float = 1.6
    """ns per parameter at the ps: decoding, checking and applying a push; one at a time."""
    reply_ns: float = 2.0
    """ns per parameter at the ps: encoding the reply."""
    forward_ns: float = 2.0
    """ns per byte on each side: TLS and loopback, during the transfer."""
    call_s: float = 0.003
    """Seconds per exchange: requests to the coordinator, round trips."""

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
    """A run to simulate.

    Args:
        pcs: the workers' PCs, by kind.
        parameters: number of the model's parameters.
        buffers: floating-point values of its BatchNorm statistics; fp32 both ways.
        train_images: size of the training set.
        batch_size: images per local step.
        codec: of pushes and replies.
        in_flight: whether a worker trains or waits while a push is in flight.
        local_steps: H; none balances it as the ps does.
        ps_link_mbits: rate of the ps's link, each way.
        ps_cores: of the ps's PC.
        costs: CPU time.
        jitter: relative spread of a window's step time. Exactly equal PCs would
            push in lockstep forever, unlike real ones.
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
        """Number of PCs that train."""
        return sum(kind.count for kind in self.pcs)

    @property
    def ideal_per_s(self) -> float:
        """Samples per second of all PCs with free exchanges."""
        return sum(kind.count * kind.images_per_s for kind in self.pcs)

    @property
    def exchange_bytes(self) -> float:
        """Bytes of a push, and of a reply."""
        return self.parameters * _BYTES[self.codec] + self.buffers * _BUFFER_BYTES

    @property
    def forward_s(self) -> float:
        """CPU seconds for one side to forward a push or a reply."""
        return self.costs.forward_ns * 1e-9 * self.exchange_bytes


def link_bytes_per_s(mbits: float) -> float:
    """Return the payload that a link of so many Mbit/s carries, each way."""
    return mbits * 1e6 / 8 * PAYLOAD_SHARE


def parse_pcs(items: tuple[str, ...], link_mbits: float) -> tuple[Pcs, ...]:
    """Read ``8x1000`` (8 PCs, 1000 images/s each) and ``300@20`` (one, on a 20 Mbit/s link).

    Args:
        items: each one or several, separated by commas.
        link_mbits: of PCs without ``@``.

    Raises:
        UsageError: ``plan-pcs``.
    """
    kinds = []
    for item in (each.strip() for text in items for each in text.split(",")):
        found = _ITEM.fullmatch(item)
        if found is None:
            raise _pcs_error(f"{item!r} is not a list of PCs")
        count, rate, link = found.groups()
        kind = Pcs(int(count or 1), float(rate), float(link or link_mbits))
        if not (kind.count and kind.images_per_s and kind.link_mbits):
            raise _pcs_error(f"{item!r} contains a 0: these PCs would not train")
        kinds.append(kind)
    count_pcs(sum(kind.count for kind in kinds))
    return tuple(kinds)


def parse_counts(text: str) -> list[int]:
    """Read ``4,8,16``. Raises UsageError ``plan-pcs``."""
    counts = [each.strip() for each in text.split(",")]
    if not all(each.isdecimal() for each in counts):
        raise _pcs_error(f"{text!r} is not a list of numbers of PCs, like 4,8,16")
    return [count_pcs(int(each)) for each in counts]


def count_pcs(count: int) -> int:
    """Return the number of PCs. Raises UsageError ``plan-pcs`` for zero or too many."""
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
