"""Large replies take turns: one at a time, for no longer than bounded, whoever dies."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from subprocess import PIPE, Popen

import pytest

from minga.transport import reply_turns as turns
from minga.transport.forwarder import forward
from minga.transport.reply_turns import Turn

WAIT_S = 60.0

HOLDER = """
import sys, time
from minga.transport.reply_turns import Turn
turn = Turn(int(sys.argv[1]), 1)
print(turn.mine(), flush=True)
sys.stdin.readline()
turn.over()
print("over", flush=True)
time.sleep(600)
"""


@pytest.fixture
def descriptor() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


@pytest.fixture
def other(descriptor: int) -> Iterator[Popen[str]]:
    """Another session's process, which has the turn."""
    with Popen(
        [sys.executable, "-c", HOLDER, str(descriptor)],
        stdin=PIPE,
        stdout=PIPE,
        text=True,
        pass_fds=[descriptor],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_one_at_a_time(descriptor: int, other: Popen[str]) -> None:
    turn = Turn(descriptor, 1)
    assert not turn.mine()
    assert Turn(descriptor, 2).mine(), "control: another byte is another turn"
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "over\n"
    assert turn.mine()


def test_the_turn_of_a_killed_process_is_free(descriptor: int, other: Popen[str]) -> None:
    turn = Turn(descriptor, 1)
    assert not turn.mine()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert turn.mine()


def test_nobody_waits_for_ever_and_the_next_reply_waits_anew(
    descriptor: int, other: Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = Turn(descriptor, 1)
    assert not turn.mine()
    monkeypatch.setattr(turns, "WAIT_S", 0.0)
    assert turn.mine(), "it goes without a turn"
    turn.over()
    monkeypatch.undo()
    assert not turn.mine()


def test_a_slow_link_gives_the_turn_up_and_goes_on(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = Turn(descriptor, 1)
    assert turn.mine()
    monkeypatch.setattr(turns, "HOLD_S", 0.0)
    assert turn.mine()
    ask = f"from minga.transport.reply_turns import Turn; print(Turn({descriptor}, 1).mine())"
    with Popen(
        [sys.executable, "-c", ask],
        stdout=PIPE,
        text=True,
        pass_fds=[descriptor],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    ) as next_one:
        assert next_one.communicate()[0] == "True\n"


class Held(Turn):
    """A turn that comes when the test says so."""

    def __init__(self) -> None:
        self.given = threading.Event()
        self.asked = threading.Event()
        self.ended = threading.Event()

    def mine(self) -> bool:
        self.asked.set()
        return self.given.is_set()

    def over(self) -> None:
        self.ended.set()


def test_what_is_large_waits_for_its_turn_what_is_small_and_the_way_back_do_not() -> None:
    near, near_end = socket.socketpair()
    far_end, far = socket.socketpair()
    turn, large = Held(), os.urandom(2_000_000)
    for stream in (near, far):
        stream.settimeout(WAIT_S)
    forward(near_end, far_end, lambda: None, turn)
    far.sendall(b"small")
    assert near.recv(100) == b"small"
    assert not turn.asked.is_set()

    received = bytearray()

    def take() -> None:
        while len(received) < len(large):
            received.extend(near.recv(1 << 20))

    threads = [threading.Thread(target=far.sendall, args=(large,)), threading.Thread(target=take)]
    for thread in threads:
        thread.start()
    assert turn.asked.wait(WAIT_S)
    near.sendall(b"back")
    assert far.recv(100) == b"back"
    assert len(received) < len(large) / 2, "it is held back"
    turn.given.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert bytes(received) == large
    assert turn.ended.wait(WAIT_S)
    near.close()
    far.close()
