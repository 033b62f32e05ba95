"""A cable that is out for half a minute: the others go on, and the PC comes back by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.harness import wait_until
from cluster.netns import VirtualPc, virtual_lan
from cluster.started import StartedLan
from minga.data.generated import generate
from minga.ps.journal import audit

pytestmark = [pytest.mark.cluster, pytest.mark.netns, pytest.mark.timeout(600)]

CLASSES, PER_CLASS, EPOCHS, OUT_S = 5, 80, 40, 30


@pytest.fixture
def started(tmp_path: Path) -> Iterator[StartedLan]:
    data = generate(
        tmp_path / "tiny", classes=CLASSES, train_per_class=PER_CLASS, val_per_class=20, size=32
    )
    with virtual_lan(tmp_path, 3) as pcs:
        yield StartedLan(pcs, data, tmp_path, model="resnet18", epochs=EPOCHS)


def plug(pc: VirtualPc, state: str) -> None:
    """Pull a PC's cable (``down``) or put it in again (``up``)."""
    pc.run(f"ip link set eth0 {state}")


def test_a_cable_out_for_half_a_minute_costs_its_own_pc_alone(started: StartedLan) -> None:
    def events(kind: str, rank: int) -> list[dict]:
        lines = (started.run_folder() / "events.jsonl").read_text().splitlines()
        return [e for e in map(json.loads, lines) if (e["kind"], e.get("rank")) == (kind, rank)]

    for rank in (1, 2):
        wait_until(lambda n=rank: events("push", n), f"a push of worker {rank}")
    plug(started.pcs[1], "down")
    out_until = time.monotonic() + OUT_S
    wait_until(lambda: events("worker_lost", 1) or events("worker_lost", 2), "the loss to show")
    (cut,) = [rank for rank in (1, 2) if events("worker_lost", rank)]
    others = len(events("push", 3 - cut))
    wait_until(lambda: len(events("push", 3 - cut)) > others + 3, "the other one to go on")
    wait_until(lambda: time.monotonic() > out_until, "half a minute to be over")
    plug(started.pcs[1], "up")
    wait_until(lambda: len(events("worker_join", cut)) == 2, "the worker to come back")
    started.finish(450)
    lines = (started.run_folder() / "journal.jsonl").read_text().splitlines()
    assert audit(lines, seed=0, samples=CLASSES * PER_CLASS, epochs=EPOCHS).exact
