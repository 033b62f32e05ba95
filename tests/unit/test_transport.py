"""Identity, preamble, frames, store and forwarder, each over real sockets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from minga.errors import Refused, UsageError
from minga.messages import Admission, Nonce
from minga.transport import dial, rpc
from minga.transport import stream as streams
from minga.transport.forwarder import PortForwarder, forward
from minga.transport.identity import Identity, Secret, client_context
from minga.transport.store import SessionStore, StoreTimeout, WorkerStore, serve

SHORT = timedelta(milliseconds=50)
WAIT_S = 60.0


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.load_or_create(tmp_path / "state")


def test_the_secret_survives_being_copied(identity: Identity) -> None:
    text = str(identity.secret)
    assert Secret.parse(f"  {text}\n") == identity.secret
    assert text not in repr(identity.secret)
    assert len(text) == 63


@pytest.mark.parametrize("text", ["", "abc", "x" * 62, "é" * 63, "x" * 64])
def test_what_is_no_secret_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        Secret.parse(text)
    assert error.value.code == "token-malformed"


def test_an_identity_is_kept_private_and_found_again(identity: Identity, tmp_path: Path) -> None:
    assert Identity.load_or_create(tmp_path / "state").secret == identity.secret
    for file in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    pem = ssl.PEM_cert_to_DER_cert(identity.certificate.read_text())
    assert hashlib.sha256(pem).digest() == identity.secret.pin


def test_a_token_of_another_certificate_is_noticed(identity: Identity, tmp_path: Path) -> None:
    other = Identity.load_or_create(tmp_path / "other")
    (tmp_path / "state" / "token").write_text(str(other.secret))
    with pytest.raises(Refused) as error:
        Identity.load_or_create(tmp_path / "state")
    assert error.value.code == "identity-mixed"


def test_a_preamble_says_join_or_session() -> None:
    assert streams.read_preamble(streams.preamble(None)) is None
    assert streams.read_preamble(streams.preamble("0123456789abcdef")) == "0123456789abcdef"


@pytest.mark.parametrize(
    "raw",
    [b"", b"GET / HTTP/1.1\r\n".ljust(32), b"minga/1 ".ljust(32), b"minga/1 ../../etc".ljust(32)],
)
def test_anything_else_is_no_preamble(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a minga stream|malformed session id"):
        streams.read_preamble(raw)


def test_frames_cross_a_socket_and_large_ones_are_refused() -> None:
    one, other = socket.socketpair()
    with one, other:
        streams.send(one, Nonce(nonce="0a"))
        assert streams.receive(other, Nonce) == Nonce(nonce="0a")
        streams.send(one, {"noise": "x" * 5000})
        with pytest.raises(ValueError, match="at most 4096"):
            streams.receive(other, Nonce, limit=4096)
        one.close()
        other.recv(1 << 20)
        with pytest.raises(streams.StreamClosed):
            streams.receive(other, Nonce)


@pytest.fixture
def stores() -> Iterator[tuple[SessionStore, WorkerStore, list[str]]]:
    """A session's store, the worker's view of it, and what the worker hears of a loss."""
    here, there = socket.socketpair()
    session, lost = SessionStore(), []
    in_thread(lambda: _serve_quietly(session, here))
    worker = WorkerStore(there, lost.append)
    yield session, worker, lost
    worker.close()
    here.close()


def _serve_quietly(session: SessionStore, stream: socket.socket) -> None:
    with contextlib.suppress(OSError):  # how it ends when either side closes
        serve(session, stream)


def test_both_sides_of_a_store_see_the_same(
    stores: tuple[SessionStore, WorkerStore, list[str]],
) -> None:
    session, worker, _ = stores
    session.set("rpc_prefix_0/names/0", "ps")
    assert worker.get("rpc_prefix_7/names/0") == b"ps", "counters of reconnects do not matter"
    every_byte = bytes(range(256))
    worker.set("raw", every_byte)
    assert session.get("raw") == every_byte
    assert worker.add("count", 2) == 2
    assert session.add("count", 3) == 5
    assert worker.compare_set("token", "", "mine") == b"mine"
    assert worker.compare_set("token", "", "yours") == b"mine"
    assert worker.check(["raw", "token"])
    assert not worker.check(["raw", "absent"])
    assert worker.delete_key("raw")
    assert not worker.delete_key("raw")


def test_a_worker_waits_for_a_key_but_not_for_ever(
    stores: tuple[SessionStore, WorkerStore, list[str]],
) -> None:
    session, worker, _ = stores
    setter = threading.Timer(0.05, session.set, ("late", "now"))
    setter.start()
    assert worker.get("late") == b"now"
    for store in (session, worker):
        store.set_timeout(SHORT)
        with pytest.raises(StoreTimeout):
            store.get("never")
        with pytest.raises(StoreTimeout):
            store.wait(["never"], SHORT)


def tls_pair(identity: Identity) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Return the two ends of a TLS stream."""
    here, there = socket.socketpair()
    ends: list[ssl.SSLSocket] = []
    context = identity.server_context()
    handshake = in_thread(lambda: ends.append(context.wrap_socket(here, server_side=True)))
    client = client_context().wrap_socket(there)
    handshake.join()
    return ends[0], client


def test_a_forwarder_carries_both_directions_at_once_through_tls(identity: Identity) -> None:
    server, client = tls_pair(identity)
    near, near_end = socket.socketpair()
    far, far_end = socket.socketpair()
    ended = threading.Semaphore(0)
    forward(near_end, client, ended.release)
    forward(server, far_end, ended.release)
    up, down = os.urandom(8_000_000), os.urandom(8_000_000)
    received: dict[str, bytes] = {}

    def take(name: str, source: socket.socket, count: int) -> None:
        parts = bytearray()
        while len(parts) < count:
            parts += source.recv(1 << 20)
        received[name] = bytes(parts)

    workers = [
        in_thread(lambda: near.sendall(up)),
        in_thread(lambda: far.sendall(down)),
        in_thread(lambda: take("up", far, len(up))),
        in_thread(lambda: take("down", near, len(down))),
    ]
    for each in workers:
        each.join(WAIT_S)
    assert received["up"] == up
    assert received["down"] == down
    near.close()
    assert far.recv(1) == b"", "one end closed: the other hears of it"
    assert ended.acquire(timeout=WAIT_S)
    assert ended.acquire(timeout=WAIT_S)
    far.close()


def test_a_port_forwarder_opens_a_stream_per_connection_and_frees_its_port() -> None:
    opened: queue.Queue[socket.socket] = queue.Queue()

    def open_stream() -> socket.socket:
        ours, theirs = socket.socketpair()
        opened.put(theirs)
        return ours

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forwarder = PortForwarder(port, open_stream)
    with pytest.raises(OSError, match="in use"):
        PortForwarder(port, open_stream)
    with socket.create_connection(("127.0.0.1", port)) as first:
        first.sendall(b"hello")
        with socket.create_connection(("127.0.0.1", port)) as second:
            second.sendall(b"again")
            for sent in (b"hello", b"again"):
                with opened.get(timeout=WAIT_S) as end:
                    assert end.recv(5) == sent
    forwarder.close()
    PortForwarder(port, open_stream).close()


def test_a_group_that_is_not_formed_is_a_broken_link_and_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch, identity: Identity
) -> None:
    """torch says RuntimeError; the worker joins again as after any other loss."""

    def never_formed(name: str, store: object) -> None:
        raise RuntimeError("timed out\nand more")

    near, far = socket.socketpair()
    monkeypatch.setattr(dial, "dial", lambda *_: near)
    monkeypatch.setattr(rpc, "start", never_formed)
    session = Admission(id="a" * 16, key="ab", port=1, here=True, sequence=0)
    with pytest.raises(ConnectionError, match=r"no session: timed out$"):
        dial.Link(("ps", 1), identity.secret, session, threading.Event(), lambda _: None)
    assert near.fileno() == -1
    far.close()
