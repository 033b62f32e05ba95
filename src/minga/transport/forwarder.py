"""Carry the bytes of a torch RPC connection between loopback and a TLS stream."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import ssl
import threading
from collections.abc import Callable

from minga.transport.stream import close

_BUFFER_BYTES = 256 * 1024


class _Direction:
    """Bytes on their way from one socket to another; read again only when all are written."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._pending = self._buffer[:0]

    def advance(self, readable: set[socket.socket], writable: set[socket.socket]) -> bool:
        """Move what can be moved now; else note what to wait for. Raises OSError at the end."""
        waits_on = self.sink if self._pending else self.source
        try:
            if self._pending:
                self._pending = self._pending[self.sink.send(self._pending) :]
                return True
            count = self._fill()
        except ssl.SSLWantReadError:
            readable.add(waits_on)
        except ssl.SSLWantWriteError:
            writable.add(waits_on)
        except BlockingIOError:
            (writable if self._pending else readable).add(waits_on)
        else:
            if not count:
                raise ConnectionResetError("end of stream")
            self._pending = self._buffer[:count]
            return True
        return False

    def _fill(self) -> int:
        """Read what is there: a TLS stream gives 16 KiB at a time, and to pass each on is dear."""
        filled = self.source.recv_into(self._buffer)
        if isinstance(self.source, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                while more := self.source.recv_into(self._buffer[filled:]):
                    filled += more
        return filled


def forward(one: socket.socket, other: socket.socket, ended: Callable[[], None]) -> None:
    """Copy bytes both ways in one thread; when either side ends, close both, call ``ended``.

    One thread, because a TLS socket must not be read and written by two at a time.
    """
    threading.Thread(
        target=_forward, args=(one, other, ended), name="forwarder", daemon=True
    ).start()


def _forward(one: socket.socket, other: socket.socket, ended: Callable[[], None]) -> None:
    with contextlib.suppress(OSError, ValueError):  # either side ended: that is the way out
        one.setblocking(False)
        other.setblocking(False)
        there, back = _Direction(one, other), _Direction(other, one)
        while True:
            readable: set[socket.socket] = set()
            writable: set[socket.socket] = set()
            moved = there.advance(readable, writable)
            moved = back.advance(readable, writable) or moved
            if not moved:
                _wait(readable, writable)
    close(one)
    close(other)
    ended()


def _wait(readable: set[socket.socket], writable: set[socket.socket]) -> None:
    poller = select.poll()  # select() itself fails above descriptor 1023
    for stream in readable | writable:
        events = (select.POLLIN if stream in readable else 0) | (
            select.POLLOUT if stream in writable else 0
        )
        poller.register(stream, events)
    poller.poll()


class PortForwarder:
    """Listen on a loopback port and carry each connection through a stream of its own.

    Args:
        port: the port of the session's RPC agent, taken on this side's loopback as well,
            because TensorPipe repeats its own address inside the pipe.
        open_stream: opens one authenticated stream to the session.

    Raises:
        OSError: the port is taken on this PC.
    """

    def __init__(self, port: int, open_stream: Callable[[], socket.socket]) -> None:
        self._open_stream = open_stream
        self._listener = socket.create_server(("127.0.0.1", port))
        self._streams: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="port-forwarder", daemon=True).start()

    def close(self) -> None:
        """Close the port and every connection that it carries."""
        close(self._listener)
        for stream in tuple(self._streams):
            close(stream)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                local, _ = self._listener.accept()
                try:
                    remote = self._open_stream()
                except OSError:
                    close(local)  # torch RPC reports the broken connection to the caller
                    continue
                self._streams.add(remote)
                forward(local, remote, functools.partial(self._streams.discard, remote))
