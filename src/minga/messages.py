"""Every message between ps, sessions and workers: its fields, their types and ranges.

What arrives is decoded strictly: an unknown field, another type or a number out of its range is
:class:`Malformed`, with the name of the field. Non-finite numbers are ``null`` on the wire.

A join (frames on TLS)::

    ps      Nonce
    worker  Hello                        its ``proof`` is checked before anything else of it is read
    ps      Welcome                      or Refusal
    worker  Preparation ...              until one has ``data`` or ``failed``
    ps      Admission                    or Refusal

In a session a worker sends :class:`Call` and tensors, and gets :class:`Answer` and tensors. What
the session's process and the coordinator say to each other is in :mod:`minga.ps.requests`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from minga.data.facts import DataFacts
from minga.data.leases import Lease, Span

MOST_SPANS = 16_384
"""Spans in one push: a worker's window ends there."""
TEXT_CHARS, WORDS_CHARS = 256, 4096
STORE_VALUE_CHARS = 64 * 1024

MOST_S = 1e7
"""Four months: no time that a worker reports is longer."""
_HUGE = 1e300  # a loss that diverges is honest
_EXACT = 2**53  # beyond it JSON's readers differ
_ONE_LINE = r"\A[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\Z"

Count = Annotated[int, Meta(ge=0, le=_EXACT)]
Number = Annotated[int, Meta(ge=1, le=_EXACT)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(ge=0, le=MOST_S)]
Text = Annotated[str, Meta(max_length=TEXT_CHARS, pattern=_ONE_LINE)]
"""One line without control characters: it is shown, and written to logs."""
Words = Annotated[str, Meta(max_length=WORDS_CHARS)]
Hex = Annotated[str, Meta(max_length=64, pattern=r"\A[0-9a-f]*\Z")]

Task = Literal["train", "wait", "done", "stopped"]

Message = TypeVar("Message")


class Malformed(ValueError):
    """A message that is not what it should be; the text names the field."""


def encode(message: object) -> bytes:
    """Return a message as JSON."""
    return msgspec.json.encode(message)


def decode(raw: bytes | str, kind: type[Message]) -> Message:
    """Return the message in ``raw``. Raises Malformed."""
    decoded: Message = decode_any(raw, kind)
    return decoded


def decode_any(raw: bytes | str, kind: Any) -> Any:
    """Return the same for a kind that is a union. Raises Malformed."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise Malformed(f"{_name(kind)}: {error}") from error


def _name(kind: object) -> str:
    return getattr(kind, "__name__", "message").lower()


class Strict(Struct, frozen=True, forbid_unknown_fields=True):
    """A message without unknown fields."""


# -- the join


class Problem(Strict, frozen=True):
    """An error of minga, as the other side shows it."""

    code: Text
    what: Words
    hints: Annotated[list[tuple[Words, Words]], Meta(max_length=16)] = []


class Nonce(Strict, frozen=True):
    """The ps's challenge."""

    nonce: Hex


class Proof(Struct, frozen=True):
    """The part of a :class:`Hello` that is read before the proof is checked."""

    proof: Hex
    token: Hex = ""


class Version(Struct, frozen=True):
    """The part of a :class:`Hello` that every version of minga sends."""

    protocol: Count
    minga: Text = "unknown"
    torch: Text = "unknown"


class Hello(Strict, frozen=True):
    """A worker's proof of the token, and its description of itself."""

    protocol: Count
    uuid: Hex
    proof: Hex = ""
    """HMAC of the ps's nonce; :class:`minga.transport.dial.Join` fills it in."""
    token: Hex = ""
    """The id of the token that it proves; filled in likewise."""
    minga: Text = "unknown"
    torch: Text = "unknown"
    machine: Text = ""
    loopback: Text = ""
    """See :func:`minga.protocol.loopback_id`."""
    rank: Annotated[int, Meta(ge=-_EXACT, le=_EXACT)] | None = None
    name: Text | None = None
    hostname: Text = ""
    device: Text = ""
    batch_size: Annotated[int, Meta(ge=1, le=2**20)] | None = None


class Terms(Strict, frozen=True):
    """The ps's terms for a worker."""

    run_id: Text
    rank: Number
    name: Text
    generation: Number
    world_size: Count
    settings: dict[str, Any]


class Welcome(Strict, frozen=True):
    """A worker has its rank."""

    welcome: Terms


class Refusal(Strict, frozen=True):
    """The ps's refusal of a join."""

    refused: Problem


class Preparation(Strict, frozen=True):
    """A worker opens its data (``preparing``), has opened them, or could not."""

    preparing: bool = False
    data: DataFacts | None = None
    failed: Problem | None = None


class Admission(Strict, frozen=True):
    """The session that the ps created for a worker."""

    id: Hex
    key: Hex
    port: Port
    """Of the session's RPC agent, on loopback."""
    here: bool
    """Whether the worker shares the ps's loopback."""
    sequence: Count
    """Of this worker's last push that counted."""


class StreamHello(Strict, frozen=True):
    """The first frame of a session's stream."""

    key: Hex
    role: Literal["store", "rpc"]


class StoreCall(Strict, frozen=True):
    """A worker's operation on its session's rendezvous store, or its heartbeat."""

    do: Literal["beat", "get", "set", "add", "compare_set", "check", "delete"]
    key: Text = ""
    keys: Annotated[list[Text], Meta(max_length=64)] = []
    value: Annotated[str, Meta(max_length=STORE_VALUE_CHARS)] = ""
    expected: Annotated[str, Meta(max_length=STORE_VALUE_CHARS)] = ""
    amount: Annotated[int, Meta(ge=-_EXACT, le=_EXACT)] = 0


class StoreAnswer(Strict, frozen=True):
    """The answer to a :class:`StoreCall`."""

    value: str | None = None
    total: int = 0
    there: bool = False


# -- a session


class Push(Strict, frozen=True, tag_field="do", tag="push"):
    """Training since the last push; its tensors are the payload and the BatchNorm buffers."""

    sequence: Number
    base_version: Count
    progress: Annotated[list[Span], Meta(max_length=MOST_SPANS)]
    steps: Annotated[int, Meta(ge=1, le=2**24)] = 1
    loss: Annotated[float, Meta(ge=-_HUGE, le=_HUGE)] | None = None
    """Mean over the window; None if it is not finite."""
    lr: Annotated[float, Meta(ge=0, le=_HUGE)] = 0.0
    compute_s: Seconds = 0.0
    wait_s: Seconds = 0.0
    """This and the next four are those of the push before."""
    exchange_s: Seconds = 0.0
    overhead_s: Seconds = 0.0
    encode_cpu_s: Seconds = 0.0
    bytes_in: Count = 0
    bytes_out: Count = 0
    reference_crc: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None

    @property
    def samples(self) -> int:
        """The positions of all its spans."""
        return sum(span.samples for span in self.progress)

    @property
    def round_s(self) -> float:
        """Seconds that a push takes at its worker's own speed."""
        return self.compute_s + self.wait_s + self.exchange_s


class GetWeights(Strict, frozen=True, tag_field="do", tag="weights"):
    """Ask for the full fp32 weights and BatchNorm buffers; sets the reference."""


class GetSnapshot(Strict, frozen=True, tag_field="do", tag="snapshot"):
    """Ask for the frozen buffers of the current validation, and its weights."""

    weights: bool


class Result(Strict, frozen=True, tag_field="do", tag="result"):
    """The result of a validation or calibration lease.

    The statistics of a calibration are the call's tensor: fp64 [1 + 2 * buffers].
    """

    kind: Literal["validate", "calibrate"]
    lease: Number
    start: Count
    stop: Count
    correct: Count = 0
    loss_sum: Annotated[float, Meta(ge=-_HUGE, le=_HUGE)] | None = None
    """Sum over the images; None if it is not finite."""


class NextWork(Strict, frozen=True, tag_field="do", tag="work"):
    """Ask for the next work only."""


class Progress(Strict, frozen=True, tag_field="do", tag="progress"):
    """Renew this worker's leases."""


class Leave(Strict, frozen=True, tag_field="do", tag="leave"):
    """Give back this worker's leases; ``failed`` is the reason."""

    failed: Problem | None = None


Call = Push | GetWeights | GetSnapshot | Result | NextWork | Progress | Leave


class Signature(Struct, frozen=True):
    """The part of :class:`Signed` that is read first."""

    key: Hex


class Signed(Strict, frozen=True):
    """A call with the key of its session."""

    key: Hex
    call: Call


class Work(Strict, frozen=True):
    """The next work of a worker."""

    task: Task
    """``train``; ``wait`` (nothing free now); ``done`` (the run is over); ``stopped``."""
    lr: float = 0.0
    steps: Annotated[int, Meta(ge=1)] = 1
    """Local optimizer steps of the next window (H)."""
    leases: list[Lease] = []
    """New ones, of training and of validation."""
    snapshot: Count = 0
    """Number of the frozen snapshot that validation leases refer to."""
    samples_done: Count = 0
    """Samples counted so far, all workers together."""


class Answer(Strict, frozen=True, tag_field="is", tag="answer"):
    """The answer to a call; an applied push has a payload and the BatchNorm buffers as tensors."""

    work: Work | None = None
    verdict: Literal["applied", "refused", "duplicate"] | None = None
    """Of a push."""
    reason: Text = ""
    """Why it was refused."""
    version: Count = 0
    """Of the weights that this answer brings."""
    round: Count | None = None
    """Number of the push's round; the session waits until it is closed."""
    held_s: Seconds = 0.0
    """Seconds that the push waited for the others of its round."""
