"""The door's sockets: a visitor who is turned away takes nobody else's connection along."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from minga.errors import Refused
from minga.messages import Hello, Nonce, Proof, Refusal, Terms, Welcome
from minga.protocol import PROTOCOL_VERSION
from minga.transport import door as module
from minga.transport.dial import Join
from minga.transport.door import Door, JoinStream, listen
from minga.transport.identity import Identity, Secret, client_context
from minga.transport.stream import preamble, receive, send

TIMES = 20
HELLO = Hello(protocol=PROTOCOL_VERSION, uuid="ab")
TERMS = Terms(run_id="run", rank=1, name="in", generation=1, world_size=2, settings={})


class Rooms:
    """A door in a thread of its own, as the ps has one, with a coordinator that welcomes."""

    def __init__(self, identity: Identity) -> None:
        self.secret = identity.secret
        self.refused: list[tuple[str, str]] = []
        self._identity = identity
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        """Close the door and wait until its thread has ended."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def join(self, secret: Secret) -> Terms:
        """Join once; return the welcome."""
        with Join(("127.0.0.1", self.port), secret, HELLO) as join:
            return join.terms

    async def _serve(self) -> None:
        async def joined(join: JoinStream) -> None:
            await join.send(Welcome(welcome=TERMS))

        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        door = Door(self._identity, joined, lambda *_: False, lambda *who: self.refused.append(who))
        self.port = door.open(listen("127.0.0.1", 0))
        self._started.set()
        await self._over.wait()
        await door.close()


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    made = Rooms(Identity.load_or_create(tmp_path / "state"))
    yield made
    made.close()


def wrong(secret: Secret) -> Secret:
    return Secret(bytes(len(secret.token)), secret.pin)


def right_joins_after_wrong_ones(rooms: Rooms) -> int:
    """Return how many right joins were welcomed, each at once after a wrong one."""
    welcomed = 0
    for _ in range(TIMES):
        with contextlib.suppress(OSError, Refused):
            rooms.join(wrong(rooms.secret))
        with contextlib.suppress(OSError):
            welcomed += rooms.join(rooms.secret) == TERMS
    return welcomed


def test_a_right_join_at_once_after_a_wrong_token_is_welcomed(rooms: Rooms) -> None:
    assert right_joins_after_wrong_ones(rooms) == TIMES
    assert [reason for _, reason in rooms.refused] == ["wrong token"] * TIMES


def test_a_descriptor_with_two_owners_would_drop_right_joins(tmp_path: Path) -> None:
    """The control of the test above, in a process of its own: its loop is left in disorder."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(_joins_with_two_owners, tmp_path / "state").result() < TIMES


def _joins_with_two_owners(state: Path) -> int:
    """Return the welcomed joins where the socket is closed although the transport has it."""
    identify = Door._identify

    async def refuse_at_once(self: Door, join: JoinStream) -> None:
        await join.send(Refusal(refused=module._WRONG_TOKEN))
        join.close()
        raise ValueError("wrong token")

    async def identify_and_close(self: Door, raw: socket.socket, host: str) -> JoinStream:
        try:
            return await identify(self, raw, host)
        except BaseException:
            raw.close()
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Door, "_refuse", refuse_at_once)
        patch.setattr(Door, "_identify", identify_and_close)
        patch.setattr(JoinStream, "abort", lambda self: None)
        patch.setattr(module, "HANDSHAKE_S", 0.2)
        return right_joins_after_wrong_ones(Rooms(Identity.load_or_create(state)))


def test_every_visitor_leaves_its_descriptor(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.2)
    before = len(os.listdir("/dev/fd"))
    visitors = [
        b"",  # a probe, once it is closed
        b"GET / HTTP/1.1\r\n".ljust(40),
        preamble(None) + b"no TLS".ljust(400),
        preamble(None),  # silent in the middle of TLS
        preamble("0123456789abcdef"),
    ]
    for sent in visitors:
        with socket.create_connection(("127.0.0.1", rooms.port), timeout=20) as visitor:
            if sent:
                visitor.sendall(sent)
                with contextlib.suppress(ConnectionError):
                    while visitor.recv(4096):
                        pass
    stays_after_the_refusal(rooms)
    rooms.close()
    assert len(os.listdir("/dev/fd")) < before, "the listener is closed, too"
    assert [reason for _, reason in rooms.refused[-2:]] == ["no such session", "wrong token"]


def stays_after_the_refusal(rooms: Rooms) -> None:
    """Join with a wrong token and stay until the door hangs up."""
    raw = socket.create_connection(("127.0.0.1", rooms.port), timeout=20)
    raw.sendall(preamble(None))
    with client_context().wrap_socket(raw) as visitor:
        receive(visitor, Nonce)
        send(visitor, Proof(proof="00" * 32))
        assert receive(visitor, Refusal).refused.code == "token-wrong"
        with contextlib.suppress(ConnectionError):
            while visitor.recv(4096):
                pass
