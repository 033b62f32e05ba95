"""What a session's process asks of its coordinator, and the replies.

Strict like :mod:`minga.messages`: a session decodes what any peer sends, so it is not trusted.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from minga.messages import (
    Answer,
    Count,
    Number,
    Port,
    Problem,
    Push,
    Result,
    Seconds,
    Strict,
    Text,
    Words,
    decode_any,
)

STATISTICS_CHARS = 64 * 1024 * 1024
"""Of a calibration's sums in base64: four million BatchNorm buffers."""


class Grant(Strict, frozen=True, tag_field="is", tag="grant"):
    """A push may be applied."""

    push: Number
    median_norm: float | None
    own_staleness: float


class NotYet(Strict, frozen=True, tag_field="is", tag="not yet"):
    """The round is still open."""


class Ready(Strict, frozen=True, tag_field="ask", tag="ready"):
    """The RPC agent listens."""

    port: Port


class Admit(Strict, frozen=True, tag_field="ask", tag="admit"):
    """A push has arrived."""

    push: Push


class Applied(Strict, frozen=True, tag_field="ask", tag="applied"):
    """The granted push is in the weights."""

    staleness: Count
    norm: float
    apply_cpu_s: Seconds
    reply_cpu_s: Seconds
    session_cpu_s: Seconds


class Refuse(Strict, frozen=True, tag_field="ask", tag="refused"):
    """The granted push is refused for its content."""

    reason: Text
    staleness: Count
    norm: float | None
    """None if it is not finite."""


class Drifted(Strict, frozen=True, tag_field="ask", tag="drifted"):
    """The worker's reference is not the session's: the push is refused."""

    push: Push


class Evaluated(Strict, frozen=True, tag_field="ask", tag="result"):
    """The result of a lease; ``statistics`` is base64 of the calibration's tensor."""

    result: Result
    statistics: Annotated[str, Meta(max_length=STATISTICS_CHARS)] = ""


class AskWork(Strict, frozen=True, tag_field="ask", tag="work"):
    """The worker asks for work: from its first question on the session is in use."""


class Renew(Strict, frozen=True, tag_field="ask", tag="progress"):
    """The worker is at work."""


class Left(Strict, frozen=True, tag_field="ask", tag="leave"):
    """The worker leaves."""

    failed: Problem | None = None


class AskRound(Strict, frozen=True, tag_field="ask", tag="round"):
    """Is this round closed?"""

    number: Count


class Misfit(Strict, frozen=True, tag_field="ask", tag="misfit"):
    """The worker sent something malformed."""

    what: Words


class Lost(Strict, frozen=True, tag_field="ask", tag="lost"):
    """The worker is gone."""

    reason: Words


class ForbiddenName(Strict, frozen=True, tag_field="ask", tag="forbidden name"):
    """A call named something that no worker names."""

    name: Words


Request = (
    Ready
    | Admit
    | Applied
    | Refuse
    | Drifted
    | Evaluated
    | AskWork
    | Renew
    | Left
    | AskRound
    | Misfit
    | Lost
    | ForbiddenName
)
Reply = Answer | Grant | NotYet


def decode_request(raw: bytes) -> Request:
    """Return the request in ``raw``. Raises Malformed."""
    decoded: Request = decode_any(raw, Request)
    return decoded


def decode_reply(raw: bytes) -> Reply:
    """Return the coordinator's reply in ``raw``. Raises Malformed."""
    decoded: Reply = decode_any(raw, Reply)
    return decoded
