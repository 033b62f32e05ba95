"""A cable that is out for half a minute: the others go on, and the PC comes back by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.harness import wait_until
from cluster.netns import VirtualPc, virtual_lan
from cluster.started import StartedLan
from cluster.steps import Steps
from minga.data.generated import generate

pytestmark = [pytest.mark.cluster, pytest.mark.netns, pytest.mark.timeout(600)]

CLASSES, PER_CLASS, EPOCHS, OUT_S = 5, 80, 5, 30
RATE = "200mbit"
"""A push of 11 MB is on its way for half a second."""


@pytest.fixture
def pcs(tmp_path: Path) -> Iterator[list[VirtualPc]]:
    with virtual_lan(tmp_path, 3, RATE) as pcs:
        yield pcs


def out_for_a_while(pc: VirtualPc, meanwhile: Callable[[], None]) -> None:
    """Pull a PC's cable and put it in again half a minute later."""
    pc.run("ip link set eth0 down")
    back_s = time.monotonic() + OUT_S
    meanwhile()
    wait_until(lambda: time.monotonic() > back_s, "half a minute to be over")
    pc.run("ip link set eth0 up")


def test_a_cable_out_while_joining_and_in_mid_push_costs_its_own_pc_alone(
    pcs: list[VirtualPc], tmp_path: Path, faults: Callable[..., dict[str, str]]
) -> None:
    data = generate(tmp_path / "tiny", classes=CLASSES, train_per_class=PER_CLASS, size=32)
    back = tmp_path / "back"
    steps = Steps(2.0, until=back)  # the run is not over before
    started = StartedLan(pcs[:2], data, tmp_path, model="resnet18", epochs=EPOCHS, steps=steps)
    events = started.events

    def the_other_goes_on() -> None:
        before = len(events("push", rank=1))
        wait_until(lambda: len(events("push", rank=1)) > before + 3, "the other one to go on")

    def cut(name: str) -> None:
        wait_until(lambda: (tmp_path / "struck" / name).exists(), name)
        out_for_a_while(pcs[2], the_other_goes_on)

    wait_until(lambda: events("push", rank=1), "a push of the first worker")
    points = ("at-worker-in-join", "at-worker-in-push")
    started.processes.append(started.join(pcs[2], **faults(*points)))
    cut(points[0])
    wait_until(lambda: events("push", rank=2), "the worker to come in all the same")
    cut(points[1])
    wait_until(lambda: len(events("worker_join", rank=2)) >= 2, "the worker to come back")
    assert events("worker_lost", rank=2), "the second time it had been in"
    assert not events("worker_lost", rank=1)
    back.touch()
    started.finish(450)
    assert started.audit(CLASSES * PER_CLASS).exact
