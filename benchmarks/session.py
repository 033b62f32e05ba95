"""What one session costs: time to join, per exchange with and without TLS, memory at the ps.

A real ps and a stand-in for a worker (real join and session, real int8 payloads of a
ResNet-18/200, no training) on two network namespaces, unshaped. Three ways in one run:

    tls      as shipped: forwarders and TLS
    plain    the same forwarders without TLS: what encryption costs
    direct   both on one loopback, no forwarder: what the tunnel costs

    sudo .venv/bin/python benchmarks/session.py      # writes benchmarks/results/session.json
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cluster.harness import wait_until  # noqa: E402  (the tests' folder is on no path before)
from cluster.netns import VirtualPc, virtual_lan  # noqa: E402
from minga.algorithm.codec import apply_delta, encode_push, make_codec  # noqa: E402
from minga.data.facts import DataFacts  # noqa: E402
from minga.messages import GetWeights, Hello, Leave, Push  # noqa: E402
from minga.protocol import PROTOCOL_VERSION, loopback_id  # noqa: E402
from minga.transport import dial  # noqa: E402
from minga.transport.identity import Identity, Secret  # noqa: E402
from minga.transport.stream import preamble, tune  # noqa: E402

PORT, JOINS, EXCHANGES, ROUNDS = 30005, 10, 30, 3
FACTS = DataFacts(train=100_000, val=10_000, classes=200, class_hash="x", image_size=64)
PLAIN_SESSIONS = (  # read by every Python at its start, the ps's session processes too
    "import ssl\n"
    "secured = ssl.SSLContext.wrap_socket\n"
    "def wrap_socket(self, sock, server_side=False, **kw):\n"
    "    return sock if server_side else secured(self, sock, **kw)\n"
    "ssl.SSLContext.wrap_socket = wrap_socket\n"
)


def worker(address: str, token: str, plain: bool) -> None:
    """Join JOINS times, exchange in the last session; print the seconds as JSON."""
    secret = Secret.parse(token)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        uuid="b" * 32,
        loopback=loopback_id(),
        rank=1,
        torch=str(torch.__version__),
    )
    if plain:
        dial.dial = functools.partial(without_tls, dial.dial)
    dial.wait_for_ps((address, PORT), 60, lambda reason, left_s: None)
    join_s, exchange_s = [], []
    for number in range(JOINS):
        lost = threading.Event()
        started_s = time.perf_counter()
        with dial.Join((address, PORT), secret, hello) as join:
            session = join.report_data(FACTS)
            with dial.Link((address, PORT), secret, session, lost, print) as link:
                answer, (weights, buffers) = link.call(GetWeights())
                join_s.append(time.perf_counter() - started_s)
                if number == JOINS - 1:
                    exchange_s = exchange(link, answer.version, weights, buffers)
                    print("exchanged", flush=True)
                    time.sleep(2)  # the session's memory is read now
                link.call(Leave())
    print(json.dumps({"join_s": join_s[1:], "exchange_s": exchange_s[3:]}), flush=True)


def without_tls(
    secured: Callable[..., socket.socket],
    address: tuple[str, int],
    secret: Secret,
    name: str | None,
    timeout_s: float = 30.0,
) -> socket.socket:
    """Open a session's stream as minga does, but for TLS; a join stays as it is."""
    if name is None:
        return secured(address, secret, None)
    raw = socket.create_connection(address, timeout=timeout_s)
    tune(raw)
    raw.sendall(preamble(name))
    return raw


def exchange(link: dial.Link, version: int, weights: Tensor, buffers: Tensor) -> list[float]:
    """Push EXCHANGES times what a window might have moved; return the seconds of each."""
    codec = make_codec("int8", weights.numel())
    payload = torch.empty(codec.nbytes, dtype=torch.uint8)
    base, residual = weights.clone(), torch.zeros_like(weights)
    seconds = []
    for sequence in range(1, EXCHANGES + 1):
        local = base + 1e-3 * torch.randn_like(base)
        started_s = time.perf_counter()
        encode_push(codec, base, local, residual, payload)
        push = Push(sequence=sequence, progress=[], base_version=version)
        answer, (reply, _) = link.call(push, (payload, buffers))
        apply_delta(codec, reply, base)
        seconds.append(time.perf_counter() - started_s)
        version = answer.version
    return seconds


def session_memory(server: subprocess.Popen[bytes]) -> dict[str, int]:
    """Return the largest memory of a session process: resident, and its own share of it."""
    found = {"rss": 0, "pss": 0}
    for fork_server in psutil.Process(server.pid).children():
        for session in fork_server.children():
            with contextlib.suppress(psutil.Error):
                full = session.memory_full_info()
                if full.rss > found["rss"]:
                    found = {"rss": full.rss, "pss": full.pss}
    return found


def measure(way: str, pcs: list[VirtualPc], folder: Path) -> dict[str, float]:
    """Run one ps and one stand-in; return seconds and bytes."""
    folder.mkdir(parents=True)
    identity = Identity.load_or_create(folder / "state")
    (folder / "sitecustomize.py").write_text(PLAIN_SESSIONS if way == "plain" else "")
    path = {"PYTHONPATH": f"{folder}:{ROOT / 'src'}"}
    flags = ["--config=none", f"--state={folder / 'state'}", f"--runs={folder / 'runs'}"]
    ps = [sys.executable, "-m", "minga", "ps", f"--port={PORT}", "--train.epochs=1", *flags]
    server = pcs[0].start(ps, folder / "ps.log", folder, **path)
    host = pcs[0] if way == "direct" else pcs[1]
    arguments = [pcs[0].address, str(identity.secret), way]
    log = folder / "worker.log"
    client = host.start([sys.executable, __file__, *arguments], log, folder, **path)
    memory = {"rss": 0, "pss": 0}

    def ended() -> bool:
        if client.poll() is None and b"exchanged" not in log.read_bytes():
            return False
        memory.update(session_memory(server))
        return client.wait(30) is not None

    wait_until(ended, f"the {way} session", timeout_s=180)
    server.kill()
    server.wait()
    assert client.returncode == 0, log.read_text() + (folder / "ps.log").read_text()
    times = json.loads(log.read_text().splitlines()[-1])
    return {
        "join_s": statistics.median(times["join_s"]),
        "exchange_s": statistics.median(times["exchange_s"]),
        "session_rss_bytes": memory["rss"],
        "session_pss_bytes": memory["pss"],
    }


def main() -> None:
    """Measure all three ways ROUNDS times, interleaved; write and print the medians."""
    rounds: dict[str, list[dict[str, float]]] = {"tls": [], "plain": [], "direct": []}
    with tempfile.TemporaryDirectory() as name:
        for number in range(ROUNDS):
            for way, found in rounds.items():
                folder = Path(name) / f"{way}{number}"
                folder.mkdir()
                with virtual_lan(folder, 2) as pcs:
                    found.append(measure(way, pcs, folder / "run"))
    rows = [
        {"way": way, **{key: statistics.median(each[key] for each in found) for key in found[0]}}
        for way, found in rounds.items()
    ]
    out = Path(__file__).parent / "results" / "session.json"
    out.parent.mkdir(exist_ok=True)
    about = {"model": "resnet18/200", "codec": "int8", "cpus": os.cpu_count(), "rounds": ROUNDS}
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['way']:8} join {1e3 * row['join_s']:6.0f} ms   "
            f"exchange {1e3 * row['exchange_s']:6.0f} ms   "
            f"session {row['session_rss_bytes'] / 1e6:.0f} MB resident, "
            f"{row['session_pss_bytes'] / 1e6:.0f} MB its own"
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        worker(sys.argv[1], sys.argv[2], sys.argv[3] == "plain")
    else:
        main()
