"""Kill anything, at any point: the run completes, and every sample counts once per epoch.

The payload is a ResNet-18's (11 MB). A fault strikes inside the process (see faults/), once; what
is killed is started again, as Compose would.
"""

from __future__ import annotations

import random
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from drills.training import (
    STEP_S,
    TRAIN,
    Faulty,
    complete,
    died,
    kill_and_restart,
    start,
    start_together,
)

from cluster.harness import Cluster, cluster, wait_until
from cluster.steps import Steps
from minga.ps.audit import audit
from minga.timing import SILENCE_S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

WORKER = ("join", "compute", "push", "reply", "validation")
LONGER_EPOCHS = 3
SLOW_S = 3.0
"""Of a worker that goes on alone, so that the run is not over before what it is to see."""
PS = ("checkpoint", "epoch", "join", "validation")
SESSION = ("apply", "reply")
KILLS = 5
KILLS_EPOCHS = 3
MOST_WAIT_S = SILENCE_S / 2
"""The faults that it looks for (a lock that its dead holder keeps) take SILENCE_S or longer."""


def utc(time: str) -> float:
    """Return an event's time in seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


@pytest.mark.parametrize("lan", [{"train__epochs": LONGER_EPOCHS}], indirect=True)
def test_a_worker_killed_at_each_point_comes_back(lan: Cluster, faulty: Faulty) -> None:
    names, killed = [f"worker-in-{point}" for point in WORKER], lan.folder / "killed"
    lan.start_ps(world_size=3)
    lan.start_worker(2, entry=Steps(SLOW_S, until=killed).entry)
    for name in names:
        faulty(lambda: lan.start_worker(1), *names)
        died(lan, "worker1", name)
    lan.start_worker(1)
    lan.wait_for("worker_join", rank=1, generation=lambda number: number > 1 + len(names))
    killed.touch()
    complete(lan, 1, 2, epochs=LONGER_EPOCHS)
    (first, _) = sorted(lan.summary()["workers"], key=lambda each: each["rank"])
    assert first["joins"] >= len(names)
    lost = [event for event in lan.events() if event["kind"] == "worker_lost"]
    assert {event["rank"] for event in lost} == {1}, "nobody else was disturbed"


@pytest.mark.parametrize("point", SESSION)
def test_a_session_killed_in_mid_push_applies_it_once_or_not_at_all(
    lan: Cluster, faulty: Faulty, point: str
) -> None:
    name = f"session-in-{point}"
    faulty(lambda: start_together(lan, 1, 2, steps=Steps(STEP_S)), name)
    complete(lan, 1, 2)
    struck = (lan.folder / "struck" / name).stat().st_mtime
    (lost,) = [event for event in lan.events() if event["kind"] == "worker_lost"]
    pushes = [event for event in lan.events() if event["kind"] == "push"]
    assert lan.summary()["version"] == len(pushes), "what was applied was counted"
    others = [push for push in pushes if push["rank"] != lost["rank"] and push["exchange_s"]]
    # a push tells what the one before took
    first = next(n for n, push in enumerate(others) if utc(push["time"]) > struck)
    then, usual = others[first : first + 3], others[:first] + others[first + 3 :]
    assert len(usual) > 5
    most_s = max(push["exchange_s"] for push in usual) + MOST_WAIT_S
    assert max(push["exchange_s"] for push in then) < most_s, "nobody else waited"


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
    steps = Steps(STEP_S, gates={17: lan.folder / "never"})  # of 23 each
    start(lan, 1, 2, steps=steps)
    lan.wait_for("checkpoint", samples_done=lambda done: done > TRAIN // 2)
    for name in ("ps", "worker1", "worker2"):
        lan.kill(name)
    start(lan, 1, 2)
    complete(lan, 1, 2)
    assert lan.summary()["resumed_from"] > 0


@pytest.mark.parametrize(
    "lan", [{"ledger__lease_s": s, "train__epochs": LONGER_EPOCHS} for s in (60, 5)], indirect=True
)
def test_a_worker_frozen_for_a_while_comes_back(
    lan: Cluster, request: pytest.FixtureRequest
) -> None:
    """Once for less than its lease, once for longer; both times its session is given up."""
    thawed = lan.folder / "thawed"
    start(lan, 1, 2, steps=Steps(2 * STEP_S, until=thawed))
    for rank in (1, 2):
        lan.wait_for("push", rank=rank)
    lan.kill("worker1", signal.SIGSTOP)
    if request.node.callspec.params["lan"]["ledger__lease_s"] < SILENCE_S:
        lan.wait_for("lease_expired")
    lan.wait_for("worker_lost", rank=1)
    before = lan.wait_for("push", rank=2)["version"]
    lan.wait_for("push", rank=2, version=lambda version: version > before + 4)
    lan.kill("worker1", signal.SIGCONT)
    lan.wait_for("worker_join", rank=1, generation=lambda number: number > 2)
    thawed.touch()
    complete(lan, 1, 2, epochs=LONGER_EPOCHS)


@pytest.mark.parametrize("lan", [{"train__epochs": KILLS_EPOCHS}], indirect=True)
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
    complete(lan, 1, 2, epochs=KILLS_EPOCHS)


def test_a_control_without_the_ledger_would_be_seen(tmp_path: Path, digits: Path) -> None:
    """A planted fault: a journal that lacks a push, or has one twice, is not exact."""
    with cluster(tmp_path, digits, train__epochs=2) as lan:
        start(lan, 1)
        complete(lan, 1, epochs=2)
    lines: list[Any] = lan.journal()
    for wrong in (lines[:3] + lines[4:], [*lines, lines[3]]):
        assert not audit(wrong, seed=0, samples=TRAIN, epochs=2).exact
