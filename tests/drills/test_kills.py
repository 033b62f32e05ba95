"""Kill anything, at any point: the run completes, and every sample counts once per epoch.

The payload is a ResNet-18's (11 MB). A fault strikes inside the process (see faults/), once; what
is killed is started again, as Compose would.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.harness import Cluster, cluster, wait_until
from minga.ps.journal import audit

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRAIN, EPOCHS = 1442, 6
FAULTS = Path(__file__).parent / "faults"
SETTINGS = {
    "model.name": "resnet18",
    "train.epochs": EPOCHS,
    "exchange.local_steps": 4,
    "checkpoint.every_s": 2,
    "ledger.lease_s": 15,
}
WORKER = ("join", "compute", "push", "reply", "validation")
PS = ("checkpoint", "join", "validation")
SESSION = ("apply", "reply")

Faulty = Callable[..., None]


@pytest.fixture
def lan(tmp_path: Path, digits: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, digits, **{k.replace(".", "__"): v for k, v in SETTINGS.items()}) as lan:
        yield lan


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faulty:
    """Start something that strikes at these points."""
    folder = tmp_path / "struck"
    folder.mkdir()

    def prepare(start: Callable[[], None], *names: str) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("FAULTS", ",".join(names))
            patch.setenv("FAULTS_FOLDER", str(folder))
            patch.setenv(
                "PYTHONPATH", os.pathsep.join([str(FAULTS), os.environ.get("PYTHONPATH", "")])
            )
            start()

    return prepare


def died(lan: Cluster, process: str, name: str) -> None:
    """Wait until a process has killed itself at this point."""
    started = lan.processes[process]
    wait_until(lambda: started.poll() is not None, f"{name} to strike", timeout_s=200)
    assert started.returncode == -signal.SIGKILL, lan.log(process)


def complete(lan: Cluster, *workers: int) -> None:
    """Wait for everybody's end; audit what counted."""
    assert lan.finish("ps", 300) == 0, lan.log("ps")
    for rank in workers:
        assert lan.finish(f"worker{rank}") == 0, lan.log(f"worker{rank}")
    found = lan.audit(TRAIN, EPOCHS)
    assert found.exact, found.problems
    assert lan.summary()["samples"] == EPOCHS * TRAIN


def test_a_worker_killed_at_each_point_comes_back(lan: Cluster, faulty: Faulty) -> None:
    names = [f"worker-in-{point}" for point in WORKER]
    lan.start_ps(world_size=3)
    lan.start_worker(2)
    for name in names:
        faulty(lambda: lan.start_worker(1), *names)
        died(lan, "worker1", name)
    lan.start_worker(1)
    complete(lan, 1, 2)
    (first, _) = sorted(lan.summary()["workers"], key=lambda each: each["rank"])
    assert first["joins"] >= len(names)
    lost = [event for event in lan.events() if event["kind"] == "worker_lost"]
    assert {event["rank"] for event in lost} == {1}, "nobody else was disturbed"


def test_a_session_killed_in_mid_push_applies_it_once_or_not_at_all(
    lan: Cluster, faulty: Faulty
) -> None:
    names = [f"session-in-{point}" for point in SESSION]
    faulty(lambda: lan.start_ps(world_size=3), *names)
    for rank in (1, 2):
        lan.start_worker(rank)
    for name in names:
        wait_until(lambda n=name: (lan.folder / "struck" / n).exists(), name)
    complete(lan, 1, 2)
    lost = [event for event in lan.events() if event["kind"] == "worker_lost"]
    assert len(lost) == len(names)
    pushes = [event for event in lan.events() if event["kind"] == "push"]
    assert lan.summary()["version"] == len(pushes), "what was applied was counted"


def test_a_ps_killed_at_each_point_goes_on_where_its_checkpoint_was(
    lan: Cluster, faulty: Faulty
) -> None:
    names = [f"ps-in-{point}" for point in PS]
    for rank in (1, 2):
        lan.start_worker(rank)
    for name in names:
        faulty(lambda: lan.start_ps(world_size=3), *names)
        died(lan, "ps", name)
    lan.start_ps(world_size=3)
    complete(lan, 1, 2)
    assert len([*lan.runs.glob("*/journal.jsonl")]) <= 2, "one run, but for a start without a push"


def test_ps_and_all_workers_killed_at_once_go_on(lan: Cluster) -> None:
    def start() -> None:
        lan.start_ps(world_size=3)
        for rank in (1, 2):
            lan.start_worker(rank)

    start()
    lan.wait_for("checkpoint", samples_done=lambda done: done > TRAIN)
    for name in ("ps", "worker1", "worker2"):
        lan.kill(name)
    start()
    complete(lan, 1, 2)
    assert lan.summary()["resumed_from"] > 0


def test_a_worker_frozen_for_longer_than_its_lease_comes_back(lan: Cluster) -> None:
    lan.start_ps(world_size=3)
    for rank in (1, 2):
        lan.start_worker(rank)
    for rank in (1, 2):
        lan.wait_for("push", rank=rank)
    lan.kill("worker1", signal.SIGSTOP)
    lan.wait_for("worker_lost", rank=1)
    before = lan.wait_for("push", rank=2)["version"]
    lan.wait_for("push", rank=2, version=lambda version: version > before + 4)
    lan.kill("worker1", signal.SIGCONT)
    lan.wait_for("worker_join", rank=1, generation=lambda number: number > 2)
    complete(lan, 1, 2)


def test_a_control_without_the_ledger_would_be_seen(lan: Cluster) -> None:
    """A planted fault: a journal that lacks a push, or has one twice, is not exact."""
    lan.start_ps(world_size=2)
    lan.start_worker(1)
    complete(lan, 1)
    lines: list[Any] = lan.journal()
    for wrong in (lines[:3] + lines[4:], [*lines, lines[3]]):
        assert not audit(wrong, seed=0, samples=TRAIN, epochs=EPOCHS).exact
