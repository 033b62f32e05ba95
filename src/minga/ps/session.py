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
import os
import signal
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from minga.algorithm import codec as codecs
from minga.algorithm import localsgd
from minga.ps.parameters import TURN_BYTE, SharedParameters, Update
from minga.timing import CONTROL_S, SILENCE_S, STREAM_S
from minga.transport import rpc, store
from minga.transport.forwarder import forward
from minga.transport.identity import Identity
from minga.transport.reply_turns import Turn
from minga.transport.stream import (
    HELLO_LIMIT_BYTES,
    Message,
    close,
    receive,
    send,
)


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

    def ask(self, do: str, **fields: Any) -> Message:
        """Return the coordinator's answer. Raises OSError when it is gone."""
        with self._lock:
            send(self._line, {"do": do, **fields})
            return receive(self._line)


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

    def handle(self, message: Message, tensors: rpc.Tensors) -> tuple[Message, rpc.Tensors]:
        """Answer one call; runs on an RPC thread.

        Raises:
            PermissionError: the call does not have the session's key: another process on this
                PC's loopback made it.
        """
        if not hmac.compare_digest(str(message.pop("key", "")), self._spec.key):
            raise PermissionError("a call without this session's key")
        with self._one_call:
            match message["do"]:
                case "push":
                    return self._push(message, *tensors)
                case "weights":
                    return self._weights()
                case "snapshot":
                    return self._snapshot(with_weights=bool(message["weights"]))
                case "result":
                    vector = base64.b64encode(tensors[0].numpy().tobytes()) if tensors else b""
                    return self._control.ask("result", message=message, vector=vector.decode()), ()
                case "work" | "progress" | "leave" as do:
                    return self._control.ask(do, message=message), ()
                case other:
                    raise ValueError(f"unknown call {other!r}")

    def _weights(self) -> tuple[Message, rpc.Tensors]:
        weights, buffers, version = self._parameters.snapshot()
        self._reference.copy_(weights)
        return {"version": version, **self._control.ask("work", message={})}, (weights, buffers)

    def _snapshot(self, *, with_weights: bool) -> tuple[Message, rpc.Tensors]:
        weights = self._parameters.frozen_weights().clone() if with_weights else torch.empty(0)
        return {}, (weights, self._parameters.frozen_buffers().clone())

    def _push(
        self, message: Message, payload: torch.Tensor, buffers: torch.Tensor
    ) -> tuple[Message, rpc.Tensors]:
        self._check_shapes(payload, buffers)
        crc = message.get("reference_crc")
        if crc is not None and crc != codecs.crc(self._reference):
            return self._control.ask("drifted", message=message), ()
        started_s = time.thread_time()
        norm = codecs.payload_norm(self._codec, payload)
        if not bool(torch.isfinite(buffers).all()):
            norm = float("nan")
        verdict = self._control.ask("admit", message=message)
        if verdict["verdict"] == "granted":
            verdict = self._apply(message, payload, buffers, norm, verdict, started_s)
        if verdict["verdict"] != "applied":
            return verdict, ()
        return self._reply(self._when_the_round_is_over(verdict))

    def _apply(
        self,
        message: Message,
        payload: torch.Tensor,
        buffers: torch.Tensor,
        norm: float,
        grant: Message,
        started_s: float,
    ) -> Message:
        """Check and apply under one lock, so that the staleness is exact.

        ``started_s`` is this thread's CPU clock when work on the push began.
        """
        parameters = self._parameters
        with parameters.locked():
            active = max(1, parameters.active_workers)
            staleness = parameters.version - int(message["base_version"])
            own = float(grant["own_staleness"])
            limit = localsgd.staleness_limit(active, self._spec.max_staleness, own)
            reason = localsgd.refusal(norm, staleness, limit, grant["median_norm"])
            if reason is None:
                update = Update(
                    payload=payload,
                    codec=self._spec.codec,
                    scale=localsgd.push_scale(self._spec.gain, active, staleness),
                    buffers=buffers,
                    buffer_weight=localsgd.moving_average_weight(active),
                )
                parameters.apply(update, push_id=grant["push"], slot=self._spec.slot)
        facts = {"push": grant["push"], "staleness": staleness, "message": message}
        if reason is not None:
            return self._control.ask("refused", reason=reason, norm=norm, **facts)
        cpu_s, self._cpu_from_s = time.process_time() - self._cpu_from_s, time.process_time()
        cost = {
            "apply_cpu_s": time.thread_time() - started_s,
            "reply_cpu_s": self._reply_cpu_s,
            "session_cpu_s": cpu_s,
        }
        return self._control.ask("applied", norm=norm, **facts, **cost)

    def _when_the_round_is_over(self, answer: Message) -> Message:
        """Delay the reply until the round is closed, if the run has rounds."""
        number = answer.pop("round", None)
        if number is None:
            return answer
        held_from_s = time.monotonic()
        while not (work := self._control.ask("round", number=number)).pop("closed"):
            pass  # the coordinator answers within a second
        return {**answer, **work, "held_s": time.monotonic() - held_from_s}

    def _reply(self, answer: Message) -> tuple[Message, rpc.Tensors]:
        started_s = time.thread_time()
        version = self._parameters.version
        payload = self._payload
        codecs.encode_reply(self._codec, self._parameters.ahead, self._reference, payload)
        buffers = self._parameters.read_buffers()
        self._reply_cpu_s = time.thread_time() - started_s
        return {"version": version, **answer}, (payload, buffers)

    def _check_shapes(self, payload: torch.Tensor, buffers: torch.Tensor) -> None:
        if payload.shape != (self._codec.nbytes,) or payload.dtype != torch.uint8:
            raise ValueError(f"a push of {tuple(payload.shape)} {payload.dtype}")
        if buffers.shape != (self._spec.buffers,) or buffers.dtype != torch.float32:
            raise ValueError(f"buffers of {tuple(buffers.shape)} {buffers.dtype}")


class _Streams:
    """Receives the worker's raw connections from the coordinator and serves them."""

    def __init__(
        self,
        spec: SessionSpec,
        rendezvous: store.SessionStore,
        port: int,
        parameters: SharedParameters,
    ) -> None:
        self._spec = spec
        self._parameters = parameters
        self._context = spec.identity.server_context()
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
            hello = receive(stream, HELLO_LIMIT_BYTES)
            if not hmac.compare_digest(str(hello.get("key")), self._spec.key):
                raise ValueError("wrong session key")
        except (OSError, ValueError):
            close(stream)
            return
        if hello.get("role") == "rpc":
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
            _control.ask("lost", reason=reason)
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
        control.ask("stranger", name=name, peers=_peers())

    rpc.on_refused(report)
    rpc.start(rpc.PS, rendezvous, handler=session.handle)
    port = rpc.own_port(rendezvous, rpc.PS)
    control.ask("ready", port=port)
    _Streams(spec, rendezvous, port, parameters).receive_all(descriptors)


def _peers() -> list[str]:
    """Return the peers of this process's RPC port on loopback (one of them made the call)."""
    import psutil

    found = []
    with contextlib.suppress(psutil.Error, OSError):
        own = {c.laddr.port for c in psutil.Process().net_connections("tcp") if not c.raddr}
        for each in psutil.net_connections("tcp"):
            if each.raddr and each.raddr.port in own and each.pid != os.getpid():
                found.append(f"process {each.pid or 'of another user'}")
    return sorted(set(found))
