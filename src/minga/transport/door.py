"""The ps's one open port: authenticates connections and passes them on.

Before it proves the token, a client gets bounded resources: 32 bytes of preamble, one frame of
4 KiB, 5 seconds, and a place in a waiting room (see :mod:`minga.transport.waiting_room`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hmac
import secrets
import socket
import time
from collections.abc import Awaitable, Callable

from minga.errors import Hint, UsageError
from minga.messages import Message, Nonce, Problem, Proof, Refusal, decode
from minga.timing import HANDSHAKE_S
from minga.transport.identity import Identity
from minga.transport.stream import (
    HELLO_LIMIT_BYTES,
    PREAMBLE_BYTES,
    encode_frame,
    read_frame,
    read_preamble,
    tune,
)
from minga.transport.tokens import Token, Tokens
from minga.transport.waiting_room import WaitingRoom

WAITING_ROOM = 256
_BACKLOG = 512
_WRONG_TOKEN = Problem(
    code="token-wrong",
    what="the join token is not one of this ps's: another ps's, or revoked",
    hints=[
        ("copy it again", "the ps's terminal shows it, after MINGA_TOKEN="),
        ("a PC's own was revoked? on the ps's PC", "minga token new NAME"),
    ],
)


class _Probe(Exception):
    """A connection that ended silently."""


class JoinStream:
    """The coordinator's side of a join, after the proof of the token.

    Attributes:
        host: the worker's address.
        token: what it proved.
        hello: the frame with the worker's proof and its description of itself.
    """

    def __init__(
        self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.host = host
        self.token: Token
        self.hello = b""
        self._reader = reader
        self._writer = writer

    async def send(self, message: object) -> None:
        """Send one frame. Raises OSError when the worker is gone."""
        self._writer.write(encode_frame(message))
        await self._writer.drain()

    async def receive(self, kind: type[Message], timeout_s: float) -> Message:
        """Receive one message. Raises TimeoutError, OSError, EOFError or ValueError."""
        return decode(await self.receive_frame(timeout_s), kind)

    async def receive_frame(self, timeout_s: float) -> bytes:
        """Receive the body of one frame. Raises like :meth:`receive`."""
        async with asyncio.timeout(timeout_s):
            return await read_frame(self._reader, HELLO_LIMIT_BYTES)

    async def ended(self) -> None:
        """Return when the worker has closed its side, or its process ended."""
        with contextlib.suppress(OSError):
            while await self._reader.read(HELLO_LIMIT_BYTES):
                pass

    def close(self) -> None:
        """Close the stream."""
        self._writer.close()

    async def closed(self) -> None:
        """Close the stream; return when its descriptor is free."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Close the stream without a message to the worker."""
        self._writer.transport.abort()


class Door:
    """Listen on one port; pass joins and session streams on to their owners.

    Args:
        identity: certificate and tokens.
        joined: called with each authenticated join.
        streamed: called with (session id, raw socket, host); it then owns the socket. It
            returns False for an unknown session.
        refused: called with (host, reason) for each refused connection.
    """

    def __init__(
        self,
        identity: Identity,
        joined: Callable[[JoinStream], Awaitable[None]],
        streamed: Callable[[str, socket.socket, str], bool],
        refused: Callable[[str, str], None],
    ) -> None:
        self.tokens = Tokens(identity)
        self._context = identity.server_context()
        self._joined = joined
        self._streamed = streamed
        self._refused = refused
        self._waiting: WaitingRoom[asyncio.Task[None]] = WaitingRoom(WAITING_ROOM)
        self._inside: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def open(self, listener: socket.socket) -> int:
        """Accept connections of a listener, which is closed with the door; return its port."""
        self._listener = listener
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listener))
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop connections that are not authenticated yet."""
        tasks = [*self._waiting.visitors(), *self._inside]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                raw, address = await loop.sock_accept(listener)
            except OSError:  # out of descriptors: waiting clients will free some
                await asyncio.sleep(0.1)
                continue
            host = _plain_host(address[0])
            task = loop.create_task(self._admit(raw, host))
            task.add_done_callback(functools.partial(self._waiting.leave, address=host))
            for dropped in self._waiting.enter(task, host, time.monotonic()):
                dropped.cancel()
            await asyncio.sleep(0)  # with a full backlog, accepting alone never lets others run

    async def _admit(self, raw: socket.socket, host: str) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                join = await self._hand_over(raw, host)
        except _Probe:
            pass  # a probe of the port
        except TimeoutError:
            self._fail(host, f"silent for {HANDSHAKE_S:g} s")
        except asyncio.CancelledError:
            self._fail(host, "waiting room full")
        except (OSError, EOFError, ValueError) as error:
            self._fail(host, str(error) or type(error).__name__)
        else:
            if join is not None:
                self._let_in(join)

    def _fail(self, host: str, reason: str) -> None:
        self._waiting.failed(host, time.monotonic())
        self._refused(host, reason)

    async def _hand_over(self, raw: socket.socket, host: str) -> JoinStream | None:
        """Pass the socket to its session, or return an authenticated join.

        A descriptor has one owner, and only the owner closes it: this method, until a session
        or the TLS transport takes it. A socket that is closed although a transport has it leaves
        the transport on the loop, in the way of the next connection with the same number.
        """
        with contextlib.ExitStack() as ours:
            ours.callback(raw.close)
            raw.setblocking(False)
            session = read_preamble(await _receive_preamble(raw))
            tune(raw)
            if session is not None:
                if not self._streamed(session, raw, host):
                    raise ValueError("no such session")
                ours.pop_all()
                return None
            ours.pop_all()
        return await self._identify(raw, host)

    async def _identify(self, raw: socket.socket, host: str) -> JoinStream:
        """TLS, then the token; owns the socket. Raises ValueError for a wrong proof."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=HELLO_LIMIT_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            raw,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=HANDSHAKE_S,
        )
        join = JoinStream(host, reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        try:
            nonce = secrets.token_bytes(32)
            await join.send(Nonce(nonce=nonce.hex()))
            join.hello = await join.receive_frame(HANDSHAKE_S)
            said = decode(join.hello, Proof)
            token = self.tokens.find(said.token)
            if token is None or not hmac.compare_digest(
                bytes.fromhex(said.proof), token.secret.proof(nonce)
            ):
                await self._refuse(join)
            else:
                join.token = token
        except BaseException:
            join.abort()
            raise
        return join

    async def _refuse(self, join: JoinStream) -> None:
        """Answer a wrong proof; the client's limits hold until it is gone."""
        try:
            await join.send(Refusal(refused=_WRONG_TOKEN))
            await join.closed()
        finally:  # even if it stays: this is the reason
            raise ValueError("wrong token")

    def _let_in(self, join: JoinStream) -> None:
        async def meet() -> None:
            try:
                await self._joined(join)
            finally:
                join.close()

        task = asyncio.get_running_loop().create_task(meet())
        self._inside.add(task)
        task.add_done_callback(self._inside.discard)


async def _receive_preamble(raw: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < PREAMBLE_BYTES:
        part = await loop.sock_recv(raw, PREAMBLE_BYTES - len(received))
        if not part:
            raise _Probe
        received += part
    return received


def listen(host: str | None, port: int) -> socket.socket:
    """Listen on the one port (None: every address, v4 and v6).

    Raises:
        UsageError: ``port-unavailable``, with the process that holds it.
    """
    try:
        if host is not None:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        elif socket.has_dualstack_ipv6():
            listener = socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
            )
        else:
            listener = socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise UsageError(
            f"cannot listen on {host or 'every address'}, port {port}: {error.strerror}"
            f"{_holder(port) if taken else ''}",
            code="port-unavailable",
            hints=(
                Hint("which process holds it?", f"ss -ltnp 'sport = :{port}'"),
                Hint("another port, on all PCs?", f"MASTER_PORT={port + 1} ./start_ps.sh"),
            )
            if taken
            else (Hint("which addresses does this PC have?", "ip -4 addr"),),
        ) from error
    listener.setblocking(False)
    return listener


def _holder(port: int) -> str:
    """Return the process that listens on the port, if this user can see it."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port:
                name = psutil.Process(connection.pid).name() if connection.pid else "another user's"
                return f" (held by {name}, process {connection.pid or 'unknown'})"
    return ""


def _plain_host(host: str) -> str:
    """Return a v4 address in its usual form, not mapped into v6."""
    return host.removeprefix("::ffff:")
