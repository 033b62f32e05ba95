"""A PC that is slower than a lease lasts takes part all the same."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from cluster.harness import cluster, wait_until
from cluster.steps import Steps

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRAIN, EPOCHS, LEASE_S = 1442, 2, 3.0
STEPS, STEP_S = 60, 0.1  # a window of twice a lease, however fast this machine is


def test_windows_longer_than_a_lease_are_not_refused(tmp_path: Path, digits: Path) -> None:
    settings = {
        "train__epochs": EPOCHS,
        "exchange__local_steps": STEPS,
        "ledger__lease_s": LEASE_S,
        "evaluation__every_epochs": EPOCHS,
    }
    with cluster(tmp_path, digits, **settings) as lan:
        lan.start_ps(world_size=2)
        lan.start_worker(1, entry=Steps(STEP_S).entry)
        assert lan.finish("ps", 200) == 0
        assert lan.finish("worker1") == 0
    pushes = [event for event in lan.events() if event["kind"] == "push"]
    assert max(push["compute_s"] for push in pushes) > 1.5 * LEASE_S, "control: they are longer"
    assert not [event for event in lan.events() if event["kind"] in ("refused", "lease_expired")]
    assert lan.audit(TRAIN, EPOCHS).exact


def test_a_frozen_worker_still_loses_its_lease(tmp_path: Path, digits: Path) -> None:
    """The control: what is said on the way is said by who works, not by a heartbeat."""
    with cluster(tmp_path, digits, train__epochs=2000, ledger__lease_s=LEASE_S) as lan:
        lan.start_ps(world_size=3)
        lan.start_worker(1, entry=Steps(STEP_S).entry)
        lan.wait_for("push", rank=1)
        lan.kill("worker1", signal.SIGSTOP)
        lan.wait_for("lease_expired")


def test_a_worker_says_where_it_stands(tmp_path: Path, digits: Path) -> None:
    opened = tmp_path / "opened"
    stuck = Steps(gates={3: opened}, constants={"minga.worker.run._STILL_S": 1.0})
    with cluster(tmp_path / "lan", digits, train__epochs=1) as lan:
        lan.start_ps(world_size=2)
        lan.start_worker(1, entry=stuck.entry)
        place = 'still_in="Trainer._train_window (worker/trainer.py:'
        wait_until(lambda: place in lan.log("worker1"), "it to say so")
        opened.touch()
        assert lan.finish("worker1") == 0
