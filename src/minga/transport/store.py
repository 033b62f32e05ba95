"""The rendezvous store of one session, and the heartbeat that shares its stream.

The ps side holds a dict; the worker side accesses it through the session's first stream. No
TCPStore exists, so nothing unauthenticated listens. ``init_rpc`` prefixes keys with a counter
per process; sides with a different number of reconnects would not match, so the
prefix is dropped here.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import Store

from minga.messages import StoreAnswer, StoreCall
from minga.timing import BEAT_S, SILENCE_S
from minga.transport.stream import receive, send, wake

STORE_FRAME_BYTES = 256 * 1024
STORE_KEYS = 256
"""A session stores about ten keys of some hundred bytes."""

_POLL_S = 0.02
_DEFAULT_WAIT_S = 30.0


class StoreTimeout(RuntimeError):
    """A key did not appear in time."""


def _plain(key: str) -> str:
    return key.rpartition("/rpc_prefix_")[2].partition("/")[2] if "rpc_prefix_" in key else key


class SessionStore(Store):
    """The ps's side: a dict with a condition. Safe to use from several threads."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._timeout_s = _DEFAULT_WAIT_S

    def set(self, key: str, value: str | bytes) -> None:
        """Store a value and wake waiting threads."""
        with self._changed:
            self._put(key, _raw(value))
            self._changed.notify_all()

    def _put(self, key: str, value: bytes) -> None:
        """Store a value. Raises ValueError above STORE_KEYS keys."""
        if _plain(key) not in self._values and len(self._values) >= STORE_KEYS:
            raise ValueError(f"more than {STORE_KEYS} keys in a session's store")
        self._values[_plain(key)] = value

    def peek(self, key: str) -> bytes | None:
        """Return the value, or None."""
        with self._changed:
            return self._values.get(_plain(key))

    def get(self, key: str) -> bytes:
        """Return the value; wait for it. Raises StoreTimeout."""
        with self._changed:
            if not self._changed.wait_for(lambda: _plain(key) in self._values, self._timeout_s):
                raise StoreTimeout(f"no key {key} within {self._timeout_s:g} s")
            return self._values[_plain(key)]

    def add(self, key: str, amount: int) -> int:
        """Add to a decimal counter that begins at 0."""
        with self._changed:
            total = int(self._values.get(_plain(key), b"0")) + amount
            self._put(key, str(total).encode())
            self._changed.notify_all()
            return total

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Set if the value is ``expected`` (an absent key counts as empty); return the value."""
        with self._changed:
            if self._values.get(_plain(key), b"") == _raw(expected):
                self._put(key, _raw(desired))
                self._changed.notify_all()
            return self._values.get(_plain(key), b"")

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys exist."""
        with self._changed:
            return all(_plain(key) in self._values for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait for all keys. Raises StoreTimeout."""
        limit_s = timeout.total_seconds() if timeout else self._timeout_s
        with self._changed:
            if not self._changed.wait_for(
                lambda: all(_plain(key) in self._values for key in keys), limit_s
            ):
                raise StoreTimeout(f"no keys {keys} within {limit_s:g} s")

    def delete_key(self, key: str) -> bool:
        """Delete a key; return whether it existed."""
        with self._changed:
            return self._values.pop(_plain(key), None) is not None

    def num_keys(self) -> int:
        """Return the number of keys."""
        with self._changed:
            return len(self._values)

    def set_timeout(self, timeout: timedelta) -> None:
        """Set the timeout of later waits."""
        self._timeout_s = timeout.total_seconds()


def serve(store: SessionStore, stream: socket.socket) -> None:
    """Answer a worker's store calls and heartbeats until the stream ends.

    Raises:
        OSError: the stream closed, or nothing came for SILENCE_S (a worker beats every BEAT_S).
        ValueError: a malformed frame.
    """
    stream.settimeout(SILENCE_S)
    while True:
        send(stream, _answer(store, receive(stream, StoreCall, STORE_FRAME_BYTES)))


def _answer(store: SessionStore, asked: StoreCall) -> StoreAnswer:
    key = asked.key
    match asked.do:
        case "beat":
            return StoreAnswer()
        case "get":
            value = store.peek(key)
            return StoreAnswer(value=None if value is None else value.decode("latin-1"))
        case "set":
            store.set(key, asked.value)
            return StoreAnswer()
        case "add":
            return StoreAnswer(total=store.add(key, asked.amount))
        case "compare_set":
            now = store.compare_set(key, asked.expected, asked.value)
            return StoreAnswer(value=now.decode("latin-1"))
        case "check":
            return StoreAnswer(there=store.check(asked.keys))
        case "delete":
            return StoreAnswer(there=store.delete_key(key))


class WorkerStore(Store):
    """The worker's side: each call is one exchange on the session's first stream."""

    def __init__(self, stream: socket.socket, lost: Callable[[str], None]) -> None:
        super().__init__()
        self._stream = stream
        self._lost = lost
        self._lock = threading.Lock()  # one exchange at a time: a TLS socket has one user
        self._timeout_s = _DEFAULT_WAIT_S
        self._closed = threading.Event()
        stream.settimeout(SILENCE_S)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def close(self) -> None:
        """Stop the heartbeat and close the stream."""
        self._closed.set()
        wake(self._stream)
        with self._lock:  # no exchange is in progress
            self._stream.close()

    def set(self, key: str, value: str | bytes) -> None:
        """Store a value."""
        self._ask(StoreCall(do="set", key=_plain(key), value=_text(value)))

    def get(self, key: str) -> bytes:
        """Return the value; poll until it exists. Raises StoreTimeout."""
        deadline = time.monotonic() + self._timeout_s
        asked = StoreCall(do="get", key=_plain(key))
        while (value := self._ask(asked).value) is None:
            self._pause(deadline, [key])
        return _raw(value)

    def add(self, key: str, amount: int) -> int:
        """Add to a decimal counter that begins at 0."""
        return self._ask(StoreCall(do="add", key=_plain(key), amount=amount)).total

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Set if the value is ``expected``; return the value."""
        asked = StoreCall(
            do="compare_set", key=_plain(key), expected=_text(expected), value=_text(desired)
        )
        return _raw(self._ask(asked).value or "")

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys exist."""
        return self._ask(StoreCall(do="check", keys=[_plain(key) for key in keys])).there

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait for all keys. Raises StoreTimeout."""
        deadline = time.monotonic() + (timeout.total_seconds() if timeout else self._timeout_s)
        while not self.check(keys):
            self._pause(deadline, keys)

    def delete_key(self, key: str) -> bool:
        """Delete a key; return whether it existed."""
        return self._ask(StoreCall(do="delete", key=_plain(key))).there

    def set_timeout(self, timeout: timedelta) -> None:
        """Set the timeout of later waits."""
        self._timeout_s = timeout.total_seconds()

    def _ask(self, asked: StoreCall) -> StoreAnswer:
        with self._lock:
            send(self._stream, asked)
            return receive(self._stream, StoreAnswer, STORE_FRAME_BYTES)

    def _pause(self, deadline: float, keys: list[str]) -> None:
        if time.monotonic() > deadline:
            raise StoreTimeout(f"the session never published {keys}")
        self._closed.wait(_POLL_S)

    def _beat(self) -> None:
        reason = "closed"
        with contextlib.suppress(ValueError):
            try:
                while not self._closed.wait(BEAT_S):
                    self._ask(StoreCall(do="beat"))
            except TimeoutError:
                reason = f"no heartbeat from the ps for {SILENCE_S:g} s"
            except OSError as error:
                reason = f"the connection ended ({error})"
        if not self._closed.is_set():
            self._lost(reason)


def _raw(value: str | bytes) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else bytes(value)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else bytes(value).decode("latin-1")
