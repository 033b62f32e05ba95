"""The ps's process for one worker: decode its pushes, apply them, encode the replies.

The coordinator forks it from a server that has torch loaded, gives it the shared parameters
and two sockets, and decides on its reports; tensors never pass through the coordinator.
It may be killed at any time: a half-applied push is completed by the next lock holder, and
unreported samples return to the ledger.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import math
import os
import signal
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

import torch
from msgspec.structs import replace

from minga import messages
from minga.algorithm import codec as codecs
from minga.algorithm import localsgd
from minga.messages import Answer, Malformed, Push
from minga.ps import requests
from minga.ps.parameters import TURN_BYTE, SharedParameters, Update
from minga.timing import CONTROL_S, SILENCE_S, STREAM_S
from minga.transport import rpc, sandbox, store
from minga.transport.forwarder import forward
from minga.transport.identity import Identity
from minga.transport.reply_turns import Turn
from minga.transport.stream import (
    HELLO_LIMIT_BYTES,
    close,
    receive,
    receive_frame,
    send,
)

_COPIES = 8
_BESIDE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """The start parameters of a session process."""

    id: str
    key: str
    slot: int
    host: str
    codec: str
    gain: float
    max_staleness: int | None
    weights: int
    buffers: int
    identity: Identity


class Control:
    """The session's side of its line to the coordinator: one request at a time."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._lock = threading.Lock()
        line.settimeout(CONTROL_S)

    def ask(self, request: requests.Request) -> requests.Reply:
        """Return the coordinator's reply. Raises OSError when it is gone."""
        with self._lock:
            send(self._line, request)
            return requests.decode_reply(receive_frame(self._line))

    def answer(self, request: requests.Request) -> Answer:
        """Return the coordinator's reply to a request that has an answer."""
        reply = self.ask(request)
        assert isinstance(reply, Answer), reply
        return reply


class Session:
    """Answers one worker's calls; holds ``ref``, this worker's weights."""

    def __init__(self, spec: SessionSpec, parameters: SharedParameters, control: Control) -> None:
        self._spec = spec
        self._parameters = parameters
        self._control = control
        self._codec = codecs.make_codec(spec.codec, spec.weights)
        self._reference = torch.zeros(spec.weights)
        self._payload = torch.empty(self._codec.nbytes, dtype=torch.uint8)
        """Of the last reply, which the worker has by its next push."""
        self._one_call = threading.Lock()
        self._cpu_from_s = time.process_time()
        self._reply_cpu_s = 0.0  # of the previous reply, reported with the next push

    def handle(self, body: str, tensors: rpc.Tensors) -> tuple[Answer, rpc.Tensors]:
        """Answer one call, a :class:`Signed` as JSON; runs on an RPC thread.

        Raises:
            PermissionError: the call does not have the session's key: another process on this
                PC's loopback made it.
            Malformed: the message or its tensors are not what they should be; counted against
                the worker.
        """
        if not hmac.compare_digest(messages.decode(body, messages.Signature).key, self._spec.key):
            raise PermissionError("a call without this session's key")
        with self._one_call:
            try:
                return self._handle(messages.decode(body, messages.Signed).call, tensors)
            except Malformed as error:
                self._control.ask(requests.Misfit(what=str(error)[: messages.WORDS_CHARS]))
                raise

    def _handle(self, call: messages.Call, tensors: rpc.Tensors) -> tuple[Answer, rpc.Tensors]:
        match call:
            case Push():
                return self._push(call, *self._checked(tensors))
            case messages.GetWeights():
                return self._weights()
            case messages.GetSnapshot():
                return self._snapshot(with_weights=call.weights)
            case messages.Result():
                return self._control.answer(self._evaluated(call, tensors)), ()
            case messages.NextWork():
                return self._control.answer(requests.AskWork()), ()
            case messages.Progress():
                return self._control.answer(requests.Renew()), ()
            case messages.Leave():
                return self._control.answer(requests.Left(failed=call.failed)), ()

    def _weights(self) -> tuple[Answer, rpc.Tensors]:
        weights, buffers, version = self._parameters.snapshot()
        self._reference.copy_(weights)
        answer = replace(self._control.answer(requests.AskWork()), version=version)
        return answer, (weights, buffers)

    def _snapshot(self, *, with_weights: bool) -> tuple[Answer, rpc.Tensors]:
        weights = self._parameters.frozen_weights().clone() if with_weights else torch.empty(0)
        return Answer(), (weights, self._parameters.frozen_buffers().clone())

    def _evaluated(self, result: messages.Result, tensors: rpc.Tensors) -> requests.Evaluated:
        if result.kind == "validate":
            return requests.Evaluated(result=result)
        length = 1 + 2 * self._spec.buffers
        shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if shapes != [((length,), torch.float64)]:
            raise Malformed(f"result: statistics of {shapes}, not fp64 [{length}]")
        return requests.Evaluated(
            result=result, statistics=base64.b64encode(tensors[0].numpy().tobytes()).decode()
        )

    def _push(
        self, push: Push, payload: torch.Tensor, buffers: torch.Tensor
    ) -> tuple[Answer, rpc.Tensors]:
        if push.base_version > self._parameters.version:
            raise Malformed(f"push: base_version {push.base_version} is not reached yet")
        crc = push.reference_crc  # of few pushes: it costs a pass over the weights
        if crc is not None and crc != codecs.crc(self._reference):
            return self._control.answer(requests.Drifted(push=push)), ()
        started_s = time.thread_time()
        norm = codecs.payload_norm(self._codec, payload)
        if not bool(torch.isfinite(buffers).all()):
            norm = float("nan")
        reply = self._control.ask(requests.Admit(push=push))
        if isinstance(reply, requests.Grant):
            reply = self._apply(push, payload, buffers, norm, reply, started_s)
        assert isinstance(reply, Answer), reply
        if reply.verdict != "applied":
            return reply, ()
        return self._reply(self._when_the_round_is_over(reply))

    def _apply(
        self,
        push: Push,
        payload: torch.Tensor,
        buffers: torch.Tensor,
        norm: float,
        grant: requests.Grant,
        started_s: float,
    ) -> Answer:
        """Check and apply under one lock, so that the staleness is exact.

        ``started_s`` is this thread's CPU clock when work on the push began.
        """
        parameters = self._parameters
        with parameters.locked():
            active = max(1, parameters.active_workers)
            staleness = parameters.version - push.base_version
            limit = localsgd.staleness_limit(active, self._spec.max_staleness, grant.own_staleness)
            reason = localsgd.refusal(norm, staleness, limit, grant.median_norm)
            if reason is None:
                update = Update(
                    payload=payload,
                    codec=self._spec.codec,
                    scale=localsgd.push_scale(self._spec.gain, active, staleness),
                    buffers=buffers,
                    buffer_weight=localsgd.moving_average_weight(active),
                )
                parameters.apply(update, push_id=grant.push, slot=self._spec.slot)
        if reason is not None:
            finite = norm if math.isfinite(norm) else None
            return self._control.answer(
                requests.Refuse(reason=reason, staleness=staleness, norm=finite)
            )
        cpu_s, self._cpu_from_s = time.process_time() - self._cpu_from_s, time.process_time()
        applied = requests.Applied(
            staleness=staleness,
            norm=norm,
            apply_cpu_s=time.thread_time() - started_s,
            reply_cpu_s=self._reply_cpu_s,
            session_cpu_s=cpu_s,
        )
        return self._control.answer(applied)

    def _when_the_round_is_over(self, answer: Answer) -> Answer:
        """Delay the reply until the round is closed, if the run has rounds."""
        if answer.round is None:
            return answer
        held_from_s = time.monotonic()
        asked = requests.AskRound(number=answer.round)
        while isinstance(closed := self._control.ask(asked), requests.NotYet):
            pass  # the coordinator answers within a second
        assert isinstance(closed, Answer), closed
        return replace(answer, work=closed.work, held_s=time.monotonic() - held_from_s)

    def _reply(self, answer: Answer) -> tuple[Answer, rpc.Tensors]:
        started_s = time.thread_time()
        version = self._parameters.version
        payload = self._payload
        codecs.encode_reply(self._codec, self._parameters.ahead, self._reference, payload)
        buffers = self._parameters.read_buffers()
        self._reply_cpu_s = time.thread_time() - started_s
        return replace(answer, version=version), (payload, buffers)

    def _checked(self, tensors: rpc.Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a push's payload and buffers. Raises Malformed for any other tensors."""
        wanted = [((self._codec.nbytes,), torch.uint8), ((self._spec.buffers,), torch.float32)]
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
        if found != wanted:
            raise Malformed(f"push: tensors of {found}, not {wanted}")
        payload, buffers = tensors
        return payload, buffers


class _Streams:
    """Receives the worker's raw connections from the coordinator and serves them."""

    def __init__(
        self,
        spec: SessionSpec,
        rendezvous: store.SessionStore,
        port: int,
        parameters: SharedParameters,
        context: ssl.SSLContext,
    ) -> None:
        self._spec = spec
        self._parameters = parameters
        self._context = context
        self._store = rendezvous
        self._port = port

    def receive_all(self, descriptors: socket.socket) -> None:
        """Serve until the coordinator is gone."""
        while True:
            _, received, _, _ = socket.recv_fds(descriptors, 1, 1)
            if not received:
                leave("the coordinator is gone")
            raw = socket.socket(fileno=received[0])
            threading.Thread(target=self._serve, args=(raw,), name="stream", daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(STREAM_S)
        stream = raw
        try:
            stream = self._context.wrap_socket(raw, server_side=True)  # owns the descriptor now
            hello = receive(stream, messages.StreamHello, HELLO_LIMIT_BYTES)
            if not hmac.compare_digest(hello.key, self._spec.key):
                raise ValueError("wrong session key")
        except (OSError, ValueError):
            close(stream)
            return
        if hello.role == "rpc":
            agent = socket.create_connection(("127.0.0.1", self._port))
            turn = Turn(self._parameters.fileno(), TURN_BYTE)
            forward(stream, agent, lambda: None, turn)
            return
        with contextlib.suppress(ValueError):
            try:
                store.serve(self._store, stream)
            except TimeoutError:
                leave(f"no heartbeat for {SILENCE_S:g} s")
            except (OSError, ssl.SSLError):
                leave("the worker closed the connection")
        leave("the worker broke the protocol")


_control: Control | None = None


def leave(reason: str) -> NoReturn:
    """Report the reason and end this process; it needs no clean-up."""
    if _control is not None:
        with contextlib.suppress(OSError, ValueError):
            _control.ask(requests.Lost(reason=reason))
    os._exit(0)


def main(
    spec: SessionSpec,
    parameters: SharedParameters,
    line: socket.socket,
    descriptors: socket.socket,
) -> None:
    """Run a session; the entry point of its process."""
    global _control
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    _control = control = Control(line)
    session = Session(spec, parameters, control)
    rendezvous = store.SessionStore()

    def report(name: str) -> None:
        control.ask(requests.ForbiddenName(name=name[: messages.WORDS_CHARS]))

    rpc.on_refused(report)
    context = spec.identity.server_context()  # its key cannot be read any more afterwards
    sandbox.limit_memory(_memory_bytes(spec))
    sandbox.restrict()
    rpc.start(rpc.PS, rendezvous, handler=session.handle)
    port = rpc.own_port(rendezvous, rpc.PS)
    control.ask(requests.Ready(port=port))
    _Streams(spec, rendezvous, port, parameters, context).receive_all(descriptors)


def _memory_bytes(spec: SessionSpec) -> int:
    """Return what a session may allocate: copies of the parameters, payloads, threads."""
    return _COPIES * 4 * (spec.weights + spec.buffers) + _BESIDE_BYTES
