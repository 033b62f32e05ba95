"""The worker's connection: find the ps, prove the token, join, open a session."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

from msgspec.structs import replace

from minga.data.facts import DataFacts
from minga.errors import Hint, MingaError, Refused, Unreachable, UsageError
from minga.messages import (
    Admission,
    Answer,
    Call,
    Hello,
    Malformed,
    Message,
    Nonce,
    Preparation,
    Problem,
    Refusal,
    Signed,
    StreamHello,
    Terms,
    Welcome,
    decode,
)
from minga.timing import PROBE_S, RETRY_S, SESSION_UP_S, STREAM_S
from minga.transport import rpc
from minga.transport.forwarder import PortForwarder
from minga.transport.identity import Secret
from minga.transport.store import WorkerStore
from minga.transport.stream import StreamClosed, dial, receive_frame, send

Address = tuple[str, int]


def wait_for_ps(address: Address, limit_s: float, waiting: Callable[[str, float], None]) -> None:
    """Wait until a process listens at ``address``.

    torch itself is silent for minutes; this tries a plain connection every RETRY_S and calls
    ``waiting(reason, seconds_left)`` after each failure.

    Raises:
        UsageError: ``address-unknown``, the name does not resolve.
        Unreachable: ``ps-unreachable``, nothing answered within ``limit_s``.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection(address, timeout=PROBE_S).close()
            return
        except socket.gaierror as error:
            raise UsageError(
                f"{address[0]} cannot be resolved by this PC ({error.strerror})",
                code="address-unknown",
                hints=(Hint("use the ps's IP address", "the ps's terminal shows it"),),
            ) from error
        except OSError as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _unreachable(address, error, limit_s) from error
            waiting(error.strerror or str(error) or type(error).__name__, left_s)
            time.sleep(min(RETRY_S, left_s))


def _unreachable(address: Address, error: OSError, limit_s: float) -> Unreachable:
    host, port = address
    return Unreachable(
        f"no parameter server at {host}:{port} ({error.strerror or error}, tried {limit_s:g} s)",
        code="ps-unreachable",
        hints=(
            Hint("is it running?", f"on {host}: ./start_ps.sh"),
            Hint("is the port open?", f"on {host}: sudo ufw allow {port}/tcp"),
            Hint("from here?", f"telnet {host} {port}"),
        ),
    )


class NoAnswer(ConnectionError):
    """The address accepts connections, but does not answer like a ps.

    Attributes:
        other: it answered, but not like a ps: waiting will not help. Else it was silent or closed,
            like an overloaded or ending ps.
    """

    def __init__(self, reason: str, *, other: bool) -> None:
        super().__init__(reason)
        self.other = other


def not_a_ps(address: Address, error: NoAnswer) -> Unreachable:
    """Return the error for an address where another program listens."""
    host, port = address
    return Unreachable(
        f"the program at {host}:{port} does not answer like a parameter server ({error})",
        code="not-a-ps",
        hints=(
            Hint("which address and port?", "the ps's terminal shows them"),
            Hint("which program listens there?", f"on {host}: ss -ltnp 'sport = :{port}'"),
        ),
    )


class Join:
    """One join dialogue: hello, welcome, data report, session. A context manager.

    Raises on entry:
        Refused: wrong token, another version, a held rank, another certificate.
        NoAnswer: it is not a ps, or it closed the connection without an answer.
        OSError: the ps went away.
    """

    def __init__(self, address: Address, secret: Secret, hello: Hello) -> None:
        self._address = address
        self._secret = secret
        self._hello = hello
        self._stream: ssl.SSLSocket

    def __enter__(self) -> Join:
        """Dial and prove the token; ``terms`` are the ps's afterwards."""
        self._stream = self._dial()
        try:
            self._stream.settimeout(SESSION_UP_S)
            nonce = bytes.fromhex(self._receive(Nonce).nonce)
            proof = self._secret.proof(nonce).hex()
            send(self._stream, replace(self._hello, token=self._secret.id, proof=proof))
            self.terms: Terms = self._receive(Welcome).welcome
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the stream."""
        self._stream.close()

    def report_data(self, facts: DataFacts) -> Admission:
        """Report this worker's data; return the session that the ps created."""
        send(self._stream, Preparation(data=facts))
        return self._receive(Admission)

    def keep(self) -> None:
        """Send a keepalive while this worker prepares (opening data may take a while)."""
        send(self._stream, Preparation(preparing=True))

    def fail(self, error: MingaError) -> None:
        """Report to the ps why this worker cannot train."""
        send(self._stream, Preparation(failed=Problem(code=error.code, what=error.what)))

    def _dial(self) -> ssl.SSLSocket:
        try:
            return dial(self._address, self._secret, None)
        except ssl.SSLEOFError as error:
            raise NoAnswer("it closed the connection", other=False) from error
        except ssl.SSLError as error:
            reason = f"{error.reason or error}".lower().replace("_", " ")
            raise NoAnswer(f"it does not speak TLS: {reason}", other=True) from error
        except TimeoutError as error:
            raise NoAnswer("it is silent", other=False) from error
        except ConnectionResetError as error:
            raise NoAnswer("it closed the connection", other=False) from error

    def _receive(self, kind: type[Message]) -> Message:
        try:
            frame = receive_frame(self._stream)
        except StreamClosed as closed:
            raise StreamClosed("the ps closed the join") from closed
        with contextlib.suppress(Malformed):
            refused = decode(frame, Refusal).refused
            hints = tuple(Hint(*pair) for pair in refused.hints)
            raise Refused(refused.what, code=refused.code, hints=hints)
        return decode(frame, kind)


class PortTaken(ConnectionError):
    """The session's loopback port is taken on this PC; another session gets another port."""


class Link(AbstractContextManager["Link"]):
    """One session's connection: store stream, heartbeat, forwarder, RPC agent.

    Args:
        address: the ps.
        secret: token and certificate hash.
        session: result of :meth:`Join.report_data`.
        lost: set when the ps is gone; aborts calls in progress.
        on_lost: called then, from another thread, with the reason.

    Raises:
        PortTaken: ask the ps for another session.
        OSError: the session could not be set up; another join may succeed.
    """

    def __init__(
        self,
        address: Address,
        secret: Secret,
        session: Admission,
        lost: threading.Event,
        on_lost: Callable[[str], None],
    ) -> None:
        self._address = address
        self._secret = secret
        self._session = session
        self._lost = lost
        self._forwarder: PortForwarder | None = None
        self._store: WorkerStore | None = None
        if not session.here:
            try:
                self._forwarder = PortForwarder(session.port, lambda: self._open_stream("rpc"))
            except OSError as error:
                raise PortTaken(f"port {session.port} is taken on this PC") from error
        try:
            self._store = WorkerStore(self._open_stream("store"), on_lost)
            rpc.start_restricted(rpc.WORKER, self._store)
        except RuntimeError as error:  # torch raises it for a group that was not formed in time
            self.close()
            raise rpc.broken_link(error, "no session: ") from error
        except BaseException:
            self.close()
            raise

    def start(
        self, call: Call, tensors: rpc.Tensors = (), *, timeout_s: float = 60.0
    ) -> rpc.Pending:
        """Call the session without waiting. Raises ConnectionError if the link is broken."""
        signed = Signed(key=self._session.key, call=call)
        return rpc.start_call(signed, tensors, timeout_s, self._lost)

    def call(
        self, call: Call, tensors: rpc.Tensors = (), *, timeout_s: float = 60.0
    ) -> tuple[Answer, rpc.Tensors]:
        """Call the session. Raises ConnectionError if the link is broken or too slow."""
        return self.start(call, tensors, timeout_s=timeout_s).result()

    def close(self) -> None:
        """End the agent and every stream of this session."""
        rpc.stop()
        if self._forwarder is not None:
            self._forwarder.close()
        if self._store is not None:
            self._store.close()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _open_stream(self, role: Literal["store", "rpc"]) -> ssl.SSLSocket:
        stream = dial(self._address, self._secret, self._session.id, STREAM_S)
        send(stream, StreamHello(key=self._session.key, role=role))
        return stream
