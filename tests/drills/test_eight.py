"""Eight PCs, the slowest eight times slower than the fastest: none is refused for its age."""

from __future__ import annotations

from pathlib import Path

import pytest
from drills.training import TRAIN

from cluster.harness import cluster
from cluster.steps import Steps

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

STEP_S, TIMES = 0.05, (1, 1, 1, 1, 2, 2, 4, 8)
EPOCHS = 25


def test_eight_unequal_workers_train_without_a_push_refused_for_its_age(
    tmp_path: Path, digits: Path
) -> None:
    chosen = {"train__epochs": EPOCHS, "exchange__local_steps": "none"}
    with cluster(tmp_path, digits, **chosen) as lan:
        lan.start_ps(world_size=1 + len(TIMES))
        together = tmp_path / "together"
        for rank, times in enumerate(TIMES, 1):
            lan.start_worker(rank, entry=Steps(STEP_S * times, gates={0: together}).entry)
        lan.joined(*range(1, 1 + len(TIMES)))
        together.touch()
        assert lan.finish("ps", 300) == 0, lan.log("ps")
        for rank in range(1, 1 + len(TIMES)):
            assert lan.finish(f"worker{rank}") == 0
        found = lan.audit(TRAIN, EPOCHS)
        assert found.exact, found.problems
    refused = [event["reason"] for event in lan.events() if event["kind"] == "refused"]
    assert "too old" not in refused
    pushes = [event for event in lan.events() if event["kind"] == "push"]
    assert {event["rank"] for event in pushes} == set(range(1, 1 + len(TIMES)))
    assert max(event["staleness"] for event in pushes) > len(TIMES), "control: some were old"
