"""Kill anything, at any point: the run completes, and every sample counts once per epoch.

The payload is a ResNet-18's (11 MB). A fault strikes inside the process (see faults/), once; what
is killed is started again, as Compose would.
"""

from __future__ import annotations

import random
import signal
import statistics
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from drills.training import TRAIN, Faulty, complete, died, kill_and_restart, start

from cluster.harness import Cluster, cluster, wait_until
from minga.ps.audit import audit

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

WORKER = ("join", "compute", "push", "reply", "validation")
JOINS_EPOCHS = 4
"""As long as the joins of a worker that dies five times."""
FREEZE_EPOCHS = 3
PS = ("checkpoint", "epoch", "join", "validation")
SESSION = ("apply", "reply")
KILLS = 5
FROZEN_S = 20
MOST_WAIT_S = 1.0


def utc(time: str) -> float:
    """Return an event's time in seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


@pytest.mark.parametrize("lan", [{"train__epochs": JOINS_EPOCHS}], indirect=True)
def test_a_worker_killed_at_each_point_comes_back(lan: Cluster, faulty: Faulty) -> None:
    names = [f"worker-in-{point}" for point in WORKER]
    lan.start_ps(world_size=3)
    lan.start_worker(2)
    for name in names:
        faulty(lambda: lan.start_worker(1), *names)
        died(lan, "worker1", name)
    lan.start_worker(1)
    complete(lan, 1, 2, epochs=JOINS_EPOCHS)
    (first, _) = sorted(lan.summary()["workers"], key=lambda each: each["rank"])
    assert first["joins"] >= len(names)
    lost = [event for event in lan.events() if event["kind"] == "worker_lost"]
    assert {event["rank"] for event in lost} == {1}, "nobody else was disturbed"


@pytest.mark.parametrize("point", SESSION)
def test_a_session_killed_in_mid_push_applies_it_once_or_not_at_all(
    lan: Cluster, faulty: Faulty, point: str
) -> None:
    name = f"session-in-{point}"
    faulty(lambda: start(lan, 1, 2), name)
    complete(lan, 1, 2)
    struck = (lan.folder / "struck" / name).stat().st_mtime
    (lost,) = [event for event in lan.events() if event["kind"] == "worker_lost"]
    pushes = [event for event in lan.events() if event["kind"] == "push"]
    assert lan.summary()["version"] == len(pushes), "what was applied was counted"
    others = [push for push in pushes if push["rank"] != lost["rank"] and push["exchange_s"]]
    # a push tells what the one before took
    then = [push["exchange_s"] for push in others if utc(push["time"]) > struck][:3]
    usual_s = statistics.median(push["exchange_s"] for push in others)
    assert max(then) < usual_s + MOST_WAIT_S, "nobody else waited"


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
    start(lan, 1, 2)
    lan.wait_for("checkpoint", samples_done=lambda done: done > TRAIN // 2)
    for name in ("ps", "worker1", "worker2"):
        lan.kill(name)
    start(lan, 1, 2)
    complete(lan, 1, 2)
    assert lan.summary()["resumed_from"] > 0


@pytest.mark.parametrize(
    "lan", [{"ledger__lease_s": s, "train__epochs": FREEZE_EPOCHS} for s in (60, 15)], indirect=True
)
def test_a_worker_frozen_for_a_while_comes_back(lan: Cluster) -> None:
    """Once for less than its lease, once for longer."""
    start(lan, 1, 2)
    for rank in (1, 2):
        lan.wait_for("push", rank=rank)
    lan.kill("worker1", signal.SIGSTOP)
    frozen_until_s = time.monotonic() + FROZEN_S
    lan.wait_for("worker_lost", rank=1)
    before = lan.wait_for("push", rank=2)["version"]
    lan.wait_for("push", rank=2, version=lambda version: version > before + 4)
    wait_until(lambda: time.monotonic() > frozen_until_s, "the frost to be over")
    lan.kill("worker1", signal.SIGCONT)
    lan.wait_for("worker_join", rank=1, generation=lambda number: number > 2)
    complete(lan, 1, 2, epochs=FREEZE_EPOCHS)


@pytest.mark.parametrize("lan", [{"train__epochs": JOINS_EPOCHS}], indirect=True)
def test_five_kills_at_random_in_one_run(lan: Cluster) -> None:
    seed = random.SystemRandom().randrange(1000)
    print(f"the kills of seed {seed}")
    chance = random.Random(seed)
    start(lan, 1, 2)
    pushes = 0
    for _ in range(KILLS):
        # "version" goes back with a ps that is killed: events are counted instead
        pushes += chance.randint(2, 8)
        wait_until(
            lambda n=pushes: sum(event["kind"] == "push" for event in lan.events()) > n, "pushes"
        )
        kill_and_restart(lan, chance.choice(["ps", "worker1", "worker2", "session"]))
        pushes = sum(event["kind"] == "push" for event in lan.events())
    complete(lan, 1, 2, epochs=JOINS_EPOCHS)


def test_a_control_without_the_ledger_would_be_seen(tmp_path: Path, digits: Path) -> None:
    """A planted fault: a journal that lacks a push, or has one twice, is not exact."""
    with cluster(tmp_path, digits, train__epochs=2) as lan:
        start(lan, 1)
        complete(lan, 1, epochs=2)
    lines: list[Any] = lan.journal()
    for wrong in (lines[:3] + lines[4:], [*lines, lines[3]]):
        assert not audit(wrong, seed=0, samples=TRAIN, epochs=2).exact
