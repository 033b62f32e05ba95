"""Mode sync and mode safe with real processes: rounds, late pushes, a killed worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.harness import Cluster, Event, cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TRAIN, EPOCHS, WORKERS = 1442, 6, 3


def run(lan: Cluster, *flags: str) -> list[Event]:
    """Train to the end; return the pushes from when all were there until the last samples."""
    lan.start_ps(*flags, world_size=WORKERS + 1)
    ranks = range(1, WORKERS + 1)
    for rank in ranks:
        lan.start_worker(rank)
    assert lan.finish("ps", 200) == 0, lan.log("ps")
    for rank in ranks:
        assert lan.finish(f"worker{rank}") == 0
    assert lan.audit(TRAIN, EPOCHS).exact
    events = lan.events()
    joined = [n for n, event in enumerate(events) if event["kind"] == "worker_join"]
    together = events[joined[WORKERS - 1] :]
    pushes = [event for event in together if event["kind"] == "push"]
    return [push for push in pushes if push["samples_done"] < (EPOCHS - 1) * TRAIN][WORKERS:]


def in_rounds(pushes: list[Event], size: int = WORKERS) -> bool:
    """Whether every few pushes in a row are of as many workers."""
    ranks = [push["rank"] for push in pushes]
    ends = len(ranks) - size + 1
    return any(
        all(len({*ranks[n : n + size]}) == size for n in range(at, ends, size))
        for at in range(size)
    )


def test_in_mode_sync_each_round_has_one_push_of_each(tmp_path: Path, digits: Path) -> None:
    with cluster(tmp_path, digits, train__epochs=EPOCHS) as lan:
        pushes = run(lan, "--exchange.mode=sync")
    assert len(pushes) > 5 * WORKERS
    assert in_rounds(pushes)
    assert max(push["staleness"] for push in pushes) <= WORKERS - 1


def test_in_mode_async_a_fast_worker_pushes_more_often(tmp_path: Path, digits: Path) -> None:
    """The control of the test above: its workers are not equally fast."""
    with cluster(tmp_path, digits, train__epochs=EPOCHS) as lan:
        pushes = run(lan)
    assert not in_rounds(pushes)


def test_in_mode_safe_a_round_is_of_all_but_one_in_bf16(tmp_path: Path, digits: Path) -> None:
    with cluster(tmp_path, digits, train__epochs=EPOCHS) as lan:
        pushes = run(lan, "--exchange.mode=safe")
        settings = json.loads((lan.run / "config.json").read_text())["settings"]
    assert in_rounds(pushes, WORKERS - 1)
    assert not in_rounds(pushes, WORKERS), "control: the late one is not waited for"
    assert settings["exchange"]["codec"] == "bf16"


def test_a_worker_killed_while_others_wait_for_it_holds_nobody_up(
    tmp_path: Path, digits: Path
) -> None:
    with cluster(tmp_path, digits, train__epochs=EPOCHS) as lan:
        lan.start_ps("--exchange.mode=sync", world_size=WORKERS + 1)
        for rank in range(1, WORKERS + 1):
            lan.start_worker(rank)
        for rank in range(1, WORKERS + 1):
            lan.wait_for("push", rank=rank)
        lan.kill("worker2")
        lan.wait_for("worker_lost", rank=2)
        assert lan.finish("ps", 200) == 0
        assert lan.audit(TRAIN, EPOCHS).exact
