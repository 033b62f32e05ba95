"""Pushes that arrive twice, out of order or late change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from drills.training import SETTINGS, TRAIN, Faulty, complete, start

from cluster.harness import Cluster, cluster
from minga.ps import checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SMALL = {"model__name": "small-cnn", "model__stem": "auto"}
"""What counts here is which pushes come, not their size."""
ALONE = {
    **SETTINGS,
    **SMALL,
    "train__epochs": 1,
    "train__batch_size": 64,
    "exchange__in_flight": "wait",  # with training in flight, what a rebase meets is chance
    "evaluation__every_epochs": 1,
}


def weights_after(folder: Path, digits: Path, faulty: Faulty, mischief: str) -> dict[str, Any]:
    """Train one worker; return the last weights, and the audit's verdict as ``exact``."""
    with cluster(folder, digits, **ALONE) as lan:
        faulty(lambda: start(lan, 1), mischief=mischief)
        assert lan.finish("ps", 200) == 0, lan.log("ps")
        assert lan.finish("worker1") == 0, lan.log("worker1")
        kept = checkpoint.read(lan.run / "checkpoints" / "last.pth")["model"]
        return {"weights": kept, "exact": lan.audit(TRAIN, 1).exact}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs ended with the same bits."""
    return all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


def test_pushes_again_old_and_late_leave_the_weights_as_they_would_be(
    tmp_path: Path, digits: Path, faulty: Faulty
) -> None:
    plain = weights_after(tmp_path / "plain", digits, faulty, "")
    disturbed = weights_after(tmp_path / "disturbed", digits, faulty, "again,old,late")
    assert plain["exact"]
    assert disturbed["exact"]
    assert same(plain, disturbed)
    # control: a ps that takes whatever comes counts some twice, and that shows in both
    credulous = weights_after(tmp_path / "credulous", digits, faulty, "again,old,taken")
    assert not credulous["exact"]
    assert not same(plain, credulous)


@pytest.mark.parametrize("lan", [{**SMALL, "ledger__lease_s": 3}], indirect=True)
def test_of_pushes_that_arrive_twice_at_once_or_after_their_lease_each_counts_once(
    lan: Cluster, faulty: Faulty
) -> None:
    faulty(lambda: start(lan, 1, 2), mischief="beside,old,expired")
    complete(lan, 1, 2, epochs=2)
    pushes = [event for event in lan.events() if event["kind"] == "push"]
    assert lan.summary()["version"] == len(pushes)
    assert any(event["kind"] == "lease_expired" for event in lan.events()), "some were too late"
