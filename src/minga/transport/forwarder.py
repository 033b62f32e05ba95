"""Carry the bytes of a torch RPC connection between loopback and a TLS stream."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import ssl
import threading
from collections.abc import Callable

from minga.transport.reply_turns import ASK_AGAIN_S, Turn
from minga.transport.stream import close, wake

_BUFFER_BYTES = 256 * 1024


class _Direction:
    """Bytes in transit from one socket to another; reads again only when all are written.

    Attributes:
        held_back: whether its bytes wait for their turn.
    """

    def __init__(self, source: socket.socket, sink: socket.socket, turn: Turn | None) -> None:
        self.source = source
        self.sink = sink
        self.held_back = False
        self._turn = turn
        self._run_bytes = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._pending = self._buffer[:0]

    def advance(self, readable: set[socket.socket], writable: set[socket.socket]) -> bool:
        """Move available bytes; else record what to wait for. Raises OSError at the end."""
        waits_on = self.sink if self._pending else self.source
        try:
            if self._pending:
                self.held_back = not self._may_send()
                if self.held_back:
                    return False
                self._pending = self._pending[self.sink.send(self._pending) :]
                return True
            count = self._fill()
        except ssl.SSLWantReadError:
            readable.add(waits_on)
        except ssl.SSLWantWriteError:
            writable.add(waits_on)
        except BlockingIOError:
            if not self._pending:
                self._run_over()
            (writable if self._pending else readable).add(waits_on)
        else:
            if not count:
                raise ConnectionResetError("end of stream")
            self._pending = self._buffer[:count]
            self._run_bytes += count
            return True
        return False

    def _fill(self) -> int:
        """Read available bytes: a TLS stream gives 16 KiB at a time, too little to forward each."""
        filled = self.source.recv_into(self._buffer)
        if isinstance(self.source, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                while more := self.source.recv_into(self._buffer[filled:]):
                    filled += more
        return filled

    def _may_send(self) -> bool:
        """A transfer that fills the buffer without a pause is large; small ones need no turn."""
        return self._turn is None or self._run_bytes < len(self._buffer) or self._turn.mine()

    def _run_over(self) -> None:
        """Mark the end of available bytes."""
        self._run_bytes = 0
        if self._turn is not None:
            self._turn.over()


def forward(
    one: socket.socket,
    other: socket.socket,
    ended: Callable[[], None],
    turn: Turn | None = None,
) -> None:
    """Copy bytes both ways in one thread; when either side ends, close both, call ``ended``.

    One thread, because a TLS socket must not be read and written by two at a time.

    Args:
        one: a connected socket.
        other: another.
        ended: called from that thread.
        turn: large transfers from ``other`` to ``one`` wait for it.
    """
    threading.Thread(
        target=_forward, args=(one, other, ended, turn), name="forwarder", daemon=True
    ).start()


def _forward(
    one: socket.socket, other: socket.socket, ended: Callable[[], None], turn: Turn | None
) -> None:
    with contextlib.suppress(OSError, ValueError):  # either side ended
        one.setblocking(False)
        other.setblocking(False)
        there, back = _Direction(one, other, None), _Direction(other, one, turn)
        while True:
            readable: set[socket.socket] = set()
            writable: set[socket.socket] = set()
            moved = there.advance(readable, writable)
            moved = back.advance(readable, writable) or moved
            if not moved:
                _wait(readable, writable, ASK_AGAIN_S if back.held_back else None)
    if turn is not None:
        turn.over()
    close(one)
    close(other)
    ended()


def _wait(
    readable: set[socket.socket], writable: set[socket.socket], limit_s: float | None
) -> None:
    poller = select.poll()  # select() itself fails above descriptor 1023
    for stream in readable | writable:
        events = (select.POLLIN if stream in readable else 0) | (
            select.POLLOUT if stream in writable else 0
        )
        poller.register(stream, events)
    poller.poll(None if limit_s is None else 1000 * limit_s)


class PortForwarder:
    """Listen on a loopback port and carry each connection through its own stream.

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
            wake(stream)

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
