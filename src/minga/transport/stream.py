"""Streams to the ps: the preamble with their destination, TLS, and frames of JSON.

Every connection to the ps begins with a preamble of 32 bytes in clear text: whether it wants
to join or which session it belongs to. A session id alone grants nothing: TLS and a
proof follow. It lets the coordinator pass the raw descriptor on to the session's own process,
which TLS state would not survive.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

from minga.messages import Message, decode, encode
from minga.timing import HANDSHAKE_S
from minga.transport.identity import Secret, check_pin, client_context

PREAMBLE_BYTES = 32
HELLO_LIMIT_BYTES = 4096
FRAME_LIMIT_BYTES = 64 * 1024 * 1024
SESSION_ID_CHARS = 16

_MAGIC = b"minga/1 "
_JOIN = "join"
_LENGTH = struct.Struct("!I")


class StreamClosed(ConnectionError):
    """The peer is gone."""


def preamble(session: str | None) -> bytes:
    """Return the first bytes of a connection: a join, or a stream of ``session``."""
    return (_MAGIC + (session or _JOIN).encode()).ljust(PREAMBLE_BYTES)


def read_preamble(raw: bytes) -> str | None:
    """Return the session id, or None for a join. Raises ValueError on anything else."""
    word = raw[len(_MAGIC) :].rstrip(b" ")
    if len(raw) != PREAMBLE_BYTES or not raw.startswith(_MAGIC):
        raise ValueError("not a minga stream")
    if word == _JOIN.encode():
        return None
    if len(word) != SESSION_ID_CHARS or not word.isalnum():
        raise ValueError("malformed session id")
    return word.decode()


def encode_frame(message: object) -> bytes:
    """Return a length prefix (4 bytes, big endian) and the message as JSON."""
    body = encode(message)
    return _LENGTH.pack(len(body)) + body


def frame_length(prefix: bytes, limit: int = FRAME_LIMIT_BYTES) -> int:
    """Return the length in a prefix. Raises ValueError above ``limit``."""
    length = int(_LENGTH.unpack(prefix)[0])
    if length > limit:
        raise ValueError(f"a frame of {length} bytes, at most {limit} are taken")
    return length


async def read_frame(reader: asyncio.StreamReader, limit: int = FRAME_LIMIT_BYTES) -> bytes:
    """Receive the body of one frame. Raises EOFError when the peer is gone, ValueError."""
    length = frame_length(await reader.readexactly(_LENGTH.size), limit)
    return await reader.readexactly(length)


def send(stream: socket.socket, message: object) -> None:
    """Send one frame."""
    stream.sendall(encode_frame(message))


def receive(stream: socket.socket, kind: type[Message], limit: int = FRAME_LIMIT_BYTES) -> Message:
    """Receive one message. Raises StreamClosed, TimeoutError (the socket's own), ValueError."""
    return decode(receive_frame(stream, limit), kind)


def receive_frame(stream: socket.socket, limit: int = FRAME_LIMIT_BYTES) -> bytes:
    """Receive the body of one frame. Raises like :func:`receive`."""
    length = frame_length(_exactly(stream, _LENGTH.size), limit)
    return _exactly(stream, length)


def dial(
    address: tuple[str, int], secret: Secret, session: str | None, timeout_s: float = HANDSHAKE_S
) -> ssl.SSLSocket:
    """Open a TLS stream to the ps and check its certificate.

    Raises OSError when nothing answers, Refused when the certificate is not the pinned one.
    """
    raw = socket.create_connection(address, timeout=timeout_s)
    try:
        tune(raw)
        raw.sendall(preamble(session))
        stream = client_context().wrap_socket(raw)
    except BaseException:
        raw.close()
        raise
    try:
        check_pin(stream, secret)
    except BaseException:
        stream.close()
        raise
    return stream


def tune(raw: socket.socket) -> None:
    """Disable Nagle's delay; enable keep-alive, so that the kernel notices a powered-off peer."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def wake(stream: socket.socket) -> None:
    """Shut down a connection that another thread owns; that thread closes it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(stream, socket.SHUT_RDWR)  # the owner keeps the TLS state


def close(stream: socket.socket) -> None:
    """Shut a socket down, which wakes blocked threads, and close it."""
    wake(stream)
    with contextlib.suppress(OSError):
        stream.close()


def _exactly(stream: socket.socket, count: int) -> bytes:
    parts = bytearray(count)
    view, filled = memoryview(parts), 0
    while filled < count:
        got = stream.recv_into(view[filled:])
        if not got:
            raise StreamClosed("the peer closed the stream")
        filled += got
    return bytes(parts)
