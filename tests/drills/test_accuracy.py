"""Five kills in a run cost no accuracy: paired seeds, 2 000 images to judge by.

``SEEDS=5`` (the default) takes six minutes; CI runs fewer.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
from drills.training import Faulty, complete, kill_and_restart, start_together

from cluster.harness import Cluster, cluster
from cluster.steps import FREE, Steps
from minga.data.generated import generate

SEEDS = int(os.environ.get("SEEDS", "5"))
CLASSES, PER_CLASS, VAL_PER_CLASS, EPOCHS = 40, 50, 50, 10
TRAIN = CLASSES * PER_CLASS
KILLS = ("worker1", "session", "ps", "worker2", "session")
STEP_S = 0.08
MOST_POINTS_LOST = 0.01

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240 * (SEEDS + 1))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(
        tmp_path_factory.mktemp("data") / "generated",
        classes=CLASSES,
        train_per_class=PER_CLASS,
        val_per_class=VAL_PER_CLASS,
        size=16,
        difficulty=0.4,
    )


def kill_all_along(lan: Cluster) -> None:
    """Kill each of KILLS at its time."""
    for number, victim in enumerate(KILLS, 1):
        due = number * EPOCHS * TRAIN // (len(KILLS) + 1)
        lan.wait_for("push", samples_done=lambda done, due=due: done > due)
        kill_and_restart(lan, victim)


def accuracy_of(
    folder: Path, data: Path, seed: int, faulty: Faulty, *, kills: bool = False, mischief: str = ""
) -> float:
    """Train two workers; return the last validation's accuracy."""
    chosen = {
        "train__seed": seed,
        "train__epochs": EPOCHS,
        "evaluation__every_epochs": EPOCHS,
        "exchange__local_steps": 4,
        "checkpoint__every_s": 1,
    }
    # while one of them starts again, the other is not to come to the end
    steps = Steps(STEP_S) if kills else FREE
    with cluster(folder, data, entry=steps.entry, **chosen) as lan:
        faulty(lambda: start_together(lan, 1, 2, steps=steps), mischief=mischief)
        if kills:
            kill_all_along(lan)
        complete(lan, 1, 2, samples=TRAIN, epochs=EPOCHS, seed=seed)
        found = lan.summary()
    print(f"seed {seed}, kills {kills}, mischief {mischief!r}: {found['best_val_accuracy']:.2%}")
    return float(found["best_val_accuracy"])


def test_five_kills_in_a_run_cost_less_than_a_point(
    tmp_path: Path, data: Path, faulty: Faulty
) -> None:
    without, with_kills = (
        [
            accuracy_of(tmp_path / f"{seed}-{kills}", data, seed, faulty, kills=kills)
            for seed in range(SEEDS)
        ]
        for kills in (False, True)
    )
    mean = statistics.fmean(without)
    assert abs(mean - statistics.fmean(with_kills)) < MOST_POINTS_LOST, (without, with_kills)
    # control: pushes that are lost would show
    lossy = accuracy_of(tmp_path / "lossy", data, 0, faulty, mischief="lost")
    assert mean - lossy > MOST_POINTS_LOST
