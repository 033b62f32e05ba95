"""Mode sync and mode safe with real processes: rounds, late pushes, a killed worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.harness import Cluster, Event, cluster, wait_until
from cluster.steps import FREE, Steps

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRAIN, EPOCHS, WORKERS = 1442, 6, 3
RANKS = range(1, WORKERS + 1)
SLOW_S = 0.2
"""What a step of the slow one takes: many times as long as one of the others."""


def start_together(lan: Cluster, *flags: str, **steps: Steps) -> None:
    """Start a ps and workers, whose first step begins when all have joined."""
    together = lan.folder / "together"
    lan.start_ps(*flags, world_size=WORKERS + 1)
    for rank in RANKS:
        chosen = steps.get(f"worker{rank}", FREE)
        lan.start_worker(rank, entry=chosen.gated(0, together).entry)
    lan.joined(*RANKS)
    together.touch()


def run(lan: Cluster, *flags: str, last_step_s: float = 0.0) -> list[Event]:
    """Train to the end; return the pushes without the first and the last ones.

    The last worker's steps may take longer than the others'.
    """
    start_together(lan, *flags, worker3=Steps(last_step_s))
    assert lan.finish("ps", 200) == 0, lan.log("ps")
    for rank in RANKS:
        assert lan.finish(f"worker{rank}") == 0
    assert lan.audit(TRAIN, EPOCHS).exact
    pushes = [event for event in lan.events() if event["kind"] == "push"]
    return [push for push in pushes if push["samples_done"] < (EPOCHS - 1) * TRAIN][WORKERS:]


def pushes_of(lan: Cluster, rank: int) -> int:
    """Return how many pushes of a worker counted so far."""
    return len([each for each in lan.events() if each["kind"] == "push" and each["rank"] == rank])


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
    """The control of the test above."""
    with cluster(tmp_path, digits, train__epochs=EPOCHS) as lan:
        pushes = run(lan, last_step_s=SLOW_S)
    assert not in_rounds(pushes)


def test_in_mode_safe_a_round_is_of_all_but_one_in_bf16(tmp_path: Path, digits: Path) -> None:
    with cluster(tmp_path, digits, train__epochs=EPOCHS) as lan:
        pushes = run(lan, "--exchange.mode=safe", last_step_s=SLOW_S)
        settings = json.loads((lan.run / "config.json").read_text())["settings"]
    assert in_rounds(pushes, WORKERS - 1)
    assert not in_rounds(pushes, WORKERS), "control: the late one is not waited for"
    assert settings["exchange"]["codec"] == "bf16"


def test_a_worker_killed_while_others_wait_for_it_holds_nobody_up(
    tmp_path: Path, digits: Path
) -> None:
    stuck_at = 21
    with cluster(tmp_path, digits, train__epochs=EPOCHS) as lan:
        stuck = Steps(gates={stuck_at: lan.folder / "never"})
        start_together(lan, "--exchange.mode=sync", worker2=stuck)
        for rank in (1, 3):  # one push more than worker 2, which is in the middle of its window
            wait_until(lambda rank=rank: pushes_of(lan, rank) == 1 + stuck_at // 2, "the round")
        assert pushes_of(lan, 2) == stuck_at // 2
        lan.kill("worker2")
        lan.wait_for("worker_lost", rank=2)
        assert lan.finish("ps", 200) == 0
        assert lan.audit(TRAIN, EPOCHS).exact
