"""The claims of one-port, between network namespaces: one port, loopback agents, reconnecting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.harness import wait_until
from cluster.netns import VirtualPc, virtual_lan
from minga.transport.identity import Identity
from support import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.netns, pytest.mark.timeout(600)]

PORT = 30005
JOINS = 100
LEFT = ("descriptors", "threads", "native_threads", "memory")
RESNET18 = {"classes": 200, "image_size": 64}

# A worker's way in and out, again and again in one process: what it opens, and what it leaves.
JOINER = """
import json, sys, threading, time
import psutil
import torch
from minga.data.facts import DataFacts
from minga.messages import GetWeights, Hello, Leave
from minga.protocol import PROTOCOL_VERSION, loopback_id
from minga.transport.dial import Join, Link, wait_for_ps
from minga.transport.identity import Secret

address, port, token, joins = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
secret, me = Secret.parse(token), psutil.Process()
hello = Hello(protocol=PROTOCOL_VERSION, uuid="a" * 32, loopback=loopback_id(), rank=1,
              torch=str(torch.__version__))
facts = DataFacts(train=1000, val=100, classes=%(classes)d, class_hash="x",
                  image_size=%(image_size)d)
wait_for_ps((address, port), 60, lambda reason, left_s: None)

def once():
    started_s = time.monotonic()
    with Join((address, port), secret, hello) as join:
        session = join.report_data(facts)
        lost = threading.Event()
        with Link((address, port), secret, session, lost, lambda reason: lost.set()) as link:
            answer, (weights, buffers) = link.call(GetWeights())
            took_s = time.monotonic() - started_s
            known = {(c.raddr.ip, c.raddr.port) for c in me.net_connections("tcp") if c.raddr}
            listening = {c.laddr.ip for c in me.net_connections("tcp") if c.status == "LISTEN"}
            link.call(Leave())
    return {"join_s": took_s, "dialled": sorted(known), "listening": sorted(listening),
            "weights": weights.numel(), "here": session.here}

for number in range(joins):
    seen = once()
    seen.update(threads=threading.active_count(), native_threads=me.num_threads(),
                descriptors=me.num_fds(), memory=me.memory_info().rss)
    print(json.dumps(seen), flush=True)
"""


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[list[VirtualPc]]:
    with virtual_lan(tmp_path, 2) as pcs:
        yield pcs


def joined(pcs: list[VirtualPc], folder: Path, joins: int) -> list[dict]:
    """Have a process on the second PC join the ps on the first one so often."""
    ps, worker = pcs
    identity = Identity.load_or_create(folder / "state")
    flags = ["--config=none", f"--state={folder / 'state'}", f"--runs={folder / 'runs'}"]
    command = ["-m", "minga", "ps", f"--port={PORT}", *flags]
    server = ps.start(command, folder / "ps.log", folder, PYTHONPATH=str(ROOT / "src"))
    script = folder / "joiner.py"
    script.write_text(JOINER % RESNET18)
    command = [str(script), ps.address, str(PORT), str(identity.secret), str(joins)]
    log = folder / "joiner.log"
    process = worker.start(command, log, folder, PYTHONPATH=str(ROOT / "src"))
    wait_until(lambda: process.poll() is not None, "the joins", timeout_s=240)
    assert process.returncode == 0, log.read_text() + (folder / "ps.log").read_text()
    assert server.poll() is None
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert len(lines) == joins
    return lines


def test_a_session_between_two_pcs_uses_one_port_and_no_address_but_loopback(
    lan: list[VirtualPc], tmp_path: Path
) -> None:
    (seen,) = joined(lan, tmp_path, 1)
    assert seen["weights"] > 11_000_000, "the whole model came through"
    assert not seen["here"]
    away = {tuple(each) for each in seen["dialled"] if each[0] != "127.0.0.1"}
    assert away == {(lan[0].address, PORT)}
    assert seen["listening"] == ["127.0.0.1"]


def test_a_hundred_reconnects_of_one_process_leave_nothing_behind(
    lan: list[VirtualPc], tmp_path: Path
) -> None:
    lines = joined(lan, tmp_path, JOINS)
    settled = lines[9]
    # what is left behind stays; a thread that is about to end is not there after each join
    least = {key: min(line[key] for line in lines[-10:]) for key in LEFT}
    assert least["descriptors"] <= settled["descriptors"] + 4
    assert least["threads"] <= settled["threads"] + 2
    assert least["native_threads"] <= settled["native_threads"] + 4
    assert least["memory"] - settled["memory"] < 45_000_000, "less than one copy of the weights"
    wait_until(
        lambda: lan[0].listening() <= {("*", PORT), ("0.0.0.0", PORT), ("::", PORT)},
        "the ended sessions' listeners to be gone",
    )
