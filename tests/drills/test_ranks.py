"""A live holder keeps its rank, a dead one's is taken over; and two runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from drills.training import complete, start

from cluster.harness import Cluster, cluster, wait_until
from cluster.netns import VirtualPc, virtual_lan
from cluster.started import StartedLan
from cluster.steps import Steps
from minga.data.generated import generate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CLASSES, PER_CLASS = 5, 80
LONGER_EPOCHS = 3
REFUSED = 5
OTHER_PORT = 30105


@pytest.mark.parametrize("lan", [{"train__epochs": LONGER_EPOCHS}], indirect=True)
def test_a_rank_is_its_live_holders_and_its_heirs_when_he_is_dead(
    lan: Cluster, tmp_path: Path
) -> None:
    inherited = tmp_path / "inherited"
    start(lan, 1, 2, steps=Steps(3.0, until=inherited))  # the run is not over before
    for rank in (1, 2):
        lan.wait_for("push", rank=rank)
    hasty = Steps(constants={"minga.worker.run.RANK_HELD_S": 3.0})
    lan.start_worker(1, name="intruder", entry=hasty.entry)
    assert lan.finish("intruder") == REFUSED
    assert "rank 1 is held by worker-01 on 127.0.0.1, which is alive" in lan.log("intruder")
    del lan.processes["intruder"]
    lan.kill("worker1")
    lan.start_worker(1, name="heir")
    lan.wait_for("worker_join", rank=1, generation=lambda number: number > 2)
    inherited.touch()
    complete(lan, 2, epochs=LONGER_EPOCHS)
    assert lan.finish("heir") == 0


def test_two_runs_on_two_ports_beside_each_other(tmp_path: Path, digits: Path) -> None:
    with (
        cluster(tmp_path / "one", digits, train__epochs=6) as one,
        cluster(tmp_path / "other", digits, train__epochs=6) as other,
    ):
        for each in (one, other):
            start(each, 1)
        complete(one, 1, epochs=6)
        complete(other, 1, epochs=6)
        for each in (one, other):
            joins = [event for event in each.events() if event["kind"] == "worker_join"]
            assert len(joins) == 1, "nobody else's worker"


@pytest.fixture
def pcs(tmp_path: Path) -> Iterator[list[VirtualPc]]:
    with virtual_lan(tmp_path, 4) as pcs:
        yield pcs


@pytest.mark.netns
def test_a_rank_between_pcs_and_a_port_of_ones_own(pcs: list[VirtualPc], tmp_path: Path) -> None:
    """The holder's cable is cut: nothing says goodbye, and silence alone makes it dead."""
    data = generate(tmp_path / "tiny", classes=CLASSES, train_per_class=PER_CLASS, size=32)
    inherited = tmp_path / "inherited"
    started = StartedLan(
        pcs[:3],
        data,
        tmp_path,
        model="resnet18",
        epochs=6,
        steps=Steps(2.0, until=inherited),  # the run is not over before
        MASTER_PORT=str(OTHER_PORT),
    )
    events = started.events

    for rank in (1, 2):
        wait_until(lambda n=rank: events("push", rank=n), f"a push of worker {rank}")
    outside = {port for address, port in pcs[0].listening() if not address.startswith("127.")}
    assert outside == {OTHER_PORT}
    holder = pcs[1]
    (held,) = [join["rank"] for join in events("worker_join") if join["host"] == holder.address]
    intruder = started.join(pcs[3], WORKER_RANK=str(held))
    assert intruder.wait(100) == REFUSED
    told = started.logs[-1].read_text()
    assert f"rank {held} is held by worker-0{held} on {holder.address}, which is alive" in told
    holder.run("ip link set eth0 down")
    heir = started.join(pcs[3], WORKER_RANK=str(held))
    wait_until(lambda: len(events("worker_join", rank=held)) == 2, "the rank's new holder")
    inherited.touch()
    for process in (started.processes[0], started.processes[2], heir):
        assert process.wait(300) == 0, [log.read_text() for log in started.logs]
    found = started.audit(CLASSES * PER_CLASS)
    assert found.exact, found.problems
