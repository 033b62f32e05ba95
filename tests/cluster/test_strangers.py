"""While a run trains, strangers get nothing and disturb nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.harness import Cluster, cluster, wait_until
from cluster.steps import Steps
from minga.errors import Refused
from minga.messages import Hello
from minga.transport.dial import Join
from minga.transport.identity import Identity, Secret
from minga.transport.stream import PREAMBLE_BYTES, preamble

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
]

NOBODY = Hello(protocol=0, uuid="")
ATTACK = """
import os, sys
import torch
from torch.distributed import rpc
from torch.distributed.rpc import backend_registry
from minga.transport import rpc as ours
from minga.transport.store import SessionStore
whom, port, secret, user = sys.argv[1:]
store = SessionStore()
for key, value in {
    "names/0": whom,
    "names/_ALL_WORKER_INFOS": f"{whom}-0,",
    f"addrs/{whom}": f"uv://127.0.0.1:{port}",
    "rpcIsStaticGroup": "false",
}.items():
    store.set(key, value)
backend_registry._set_devices_and_reverse_device_map = lambda agent: None  # no join: just call
os.setuid(int(user))
ours.start("intruder", store)
print(os.getpid())
for function, arguments in ((os.getpid, ()), (ours._handle, ('{"key": ""}', ()))):
    try:
        print("result", rpc.rpc_sync(whom, function, args=arguments, timeout=10))
    except Exception as error:
        print("error", " ".join(str(error).split()))
read = {"shared": False, "size": 4, "dtype": torch.uint8}
try:
    got = rpc.rpc_sync(whom, torch.from_file, args=(secret,), kwargs=read, timeout=10)
    print("read", bytes(got))
except Exception as error:
    print("unread", " ".join(str(error).split()))
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Cluster]:
    """A run in full swing, which all strangers visit: a ps on every address, one worker."""
    settings = {"train__epochs": 10_000, "evaluation__every_epochs": 10_000}
    with cluster(tmp_path_factory.mktemp("training"), digits, **settings) as lan:
        lan.start_ps(host="none", world_size=2)
        lan.start_worker(1, entry=Steps(0.02).entry)
        lan.wait_for("push")
        yield lan


def listeners(lan: Cluster) -> list[tuple[str, int, int]]:
    """Return (address, port, pid) of all that the run's processes listen on."""
    processes = [psutil.Process(each.pid) for each in lan.processes.values()]
    family = {child.pid for each in processes for child in each.children(recursive=True)}
    family |= {each.pid for each in processes}
    return [
        (each.laddr.ip, each.laddr.port, each.pid)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.pid in family
    ]


def still_trains(lan: Cluster) -> None:
    """Assert that pushes go on, without a worker lost."""
    version = max(event.get("version") or 0 for event in lan.events())
    lan.wait_for("push", version=lambda now: now > version + 1)  # it began after the visit
    assert lan.processes["ps"].poll() is None
    assert not [event for event in lan.events() if event["kind"] == "worker_lost"]


def test_only_the_one_port_is_open_to_the_lan(training: Cluster) -> None:
    found = listeners(training)
    outside = {port for address, port, _ in found if address not in ("127.0.0.1", "::1")}
    assert outside == {training.port}
    assert len(found) >= 3, "the agents' loopback listeners are seen too (control)"


def test_a_wrong_token_is_refused_by_name(training: Cluster) -> None:
    right = training.identity.secret
    wrong = Secret(bytes(len(right.token)), right.pin)
    with pytest.raises(Refused) as refused, Join(("127.0.0.1", training.port), wrong, NOBODY):
        pass
    assert refused.value.code == "token-wrong"
    training.wait_for("turned_away", reason="wrong token")
    still_trains(training)


def test_a_worker_does_not_talk_to_another_certificate(training: Cluster, tmp_path: Path) -> None:
    other = Identity.load_or_create(tmp_path / "other").secret
    with pytest.raises(Refused) as refused, Join(("127.0.0.1", training.port), other, NOBODY):
        pass
    assert refused.value.code == "certificate-differs"
    still_trains(training)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: ps\r\n\r\n".ljust(PREAMBLE_BYTES),
        os.urandom(1_000_000),
        preamble(None) + os.urandom(1_000_000),
        preamble("0123456789abcdef") + os.urandom(1_000_000),
    ],
    ids=["http", "a megabyte of noise", "noise for TLS", "noise for a session"],
)
def test_garbage_is_turned_away(training: Cluster, sent: bytes) -> None:
    before = len([event for event in training.events() if event["kind"] == "turned_away"])
    with socket.create_connection(("127.0.0.1", training.port), timeout=20) as stranger:
        with contextlib.suppress(OSError):
            stranger.sendall(sent)
        with contextlib.suppress(ConnectionError):
            while stranger.recv(4096):  # at most a TLS alert, then the end
                pass
    wait_until(
        lambda: (
            len([event for event in training.events() if event["kind"] == "turned_away"]) > before
        ),
        "a line about the stranger",
    )
    still_trains(training)


def test_hundreds_of_silent_visitors_keep_nobody_out(training: Cluster) -> None:
    address = ("127.0.0.1", training.port)
    with contextlib.ExitStack() as silent:
        for number in range(400):
            visitor = silent.enter_context(socket.create_connection(address, timeout=20))
            if number % 2:
                visitor.sendall(preamble(None))  # half of them stop in the middle of TLS
        training.start_worker(2)
        training.wait_for("worker_join", rank=2)
        training.wait_for("push", rank=2)
    training.kill("worker2", signal.SIGINT)
    assert training.finish("worker2") == 130
    training.wait_for("worker_left", rank=2)
    del training.processes["worker2"]
    still_trains(training)


def session_port(lan: Cluster, whose: str) -> int:
    """Return the port of the RPC agent of the ps's one session, or of its worker."""
    worker = lan.processes["worker1"].pid
    (port,) = {
        port
        for address, port, pid in listeners(lan)
        if address == "127.0.0.1" and port != lan.port and (pid == worker) == (whose == "worker")
    }
    return port


def attacked(lan: Cluster, whose: str, user: int = 0) -> subprocess.CompletedProcess[str]:
    """Attack an agent from another process, which reads the ps's key through it."""
    key = str(lan.identity.key)
    return subprocess.run(
        [sys.executable, "-c", ATTACK, whose, str(session_port(lan, whose)), key, str(user)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.parametrize("user", [0, 65534], ids=["root", "nobody"])
@pytest.mark.parametrize("whose", ["ps", "worker"])
def test_no_file_is_read_through_an_agent(training: Cluster, whose: str, user: int) -> None:
    """torch's own operators need neither the key nor a name on the list (guard.md, G1)."""
    found = attacked(training, whose, user).stdout
    assert "unread" in found
    assert "Permission denied" in found
    still_trains(training)


def test_without_the_sandbox_every_file_is_read(tmp_path: Path, digits: Path) -> None:
    """The control of the test above."""
    entry = (str(Path(__file__).with_name("unguarded.py")),)
    settings = {"train__epochs": 10_000, "evaluation__every_epochs": 10_000}
    with cluster(tmp_path, digits, **settings) as lan:
        lan.start_ps(world_size=2, entry=entry)
        lan.start_worker(1, entry=entry)
        lan.wait_for("push")
        for whose in ("ps", "worker"):
            assert "read b'----'" in attacked(lan, whose, 65534).stdout
        assert "cannot close torch RPC off" in lan.log("ps")
        assert "cannot close torch RPC off" in lan.log("worker1")


def test_a_function_off_the_list_is_refused_on_the_session_port_too(training: Cluster) -> None:
    attack = attacked(training, "ps")
    assert not [line for line in attack.stdout.splitlines() if line.startswith("result")]
    assert "posix.getpid is not allowed" in attack.stdout
    assert "without this session's key" in attack.stdout, "what is on the list needs the key"
    intruder = attack.stdout.split()[0]
    by_name = f"process {intruder}"
    training.wait_for("rpc_refused", name="posix.getpid", peers=lambda peers: by_name in peers)
    still_trains(training)
