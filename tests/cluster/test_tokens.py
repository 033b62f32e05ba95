"""A token per PC: what a running ps does when one is revoked, and when one is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.harness import Cluster, cluster
from cluster.steps import Steps
from minga.transport import tokens

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TRAIN, EPOCHS, REFUSED = 1442, 2, 5
STEP_S = 0.3


def complete(lan: Cluster, *workers: str) -> None:
    assert lan.finish("ps") == 0, lan.log("ps")
    for name in workers:
        assert lan.finish(name) == 0, lan.log(name)
    assert lan.audit(TRAIN, EPOCHS).exact


def test_a_revoked_token_ends_its_session_and_nobody_elses(tmp_path: Path, digits: Path) -> None:
    revoked = tmp_path / "revoked"
    entry = Steps(STEP_S, until=revoked).entry  # the run is not over before
    with cluster(tmp_path / "lan", digits, entry=entry, train__epochs=EPOCHS) as lan:
        lan.tokens["worker1"] = str(tokens.create(lan.identity, "desk-1").secret)
        lan.start_ps()
        for rank in (1, 2):
            lan.start_worker(rank)
        for rank, name in ((1, "desk-1"), (2, tokens.SHARED)):
            assert lan.wait_for("worker_join", rank=rank)["token"] == name
            lan.wait_for("push", rank=rank)
        tokens.revoke(lan.identity, "desk-1")
        assert lan.finish("worker1") == REFUSED
        assert "error[token-wrong]" in lan.log("worker1")
        del lan.processes["worker1"]
        reason = lan.wait_for("session_lost", rank=1)["reason"]
        assert reason == "the token of desk-1 was revoked"
        assert lan.wait_for("worker_lost", rank=1)["samples_back"] > 0
        revoked.touch()
        complete(lan, "worker2")
        assert not [each for each in lan.events() if each["kind"] == "worker_lost"][1:]


def test_a_worker_takes_the_new_token_from_its_file(tmp_path: Path, digits: Path) -> None:
    rotated = tmp_path / "rotated"
    entry = Steps(STEP_S, until=rotated).entry
    with cluster(tmp_path / "lan", digits, entry=entry, train__epochs=EPOCHS) as lan:
        first = tokens.create(lan.identity, "desk-1")
        file = tmp_path / "pc-token"
        file.write_text(str(first.secret))
        lan.tokens["worker1"] = ""
        lan.start_ps(world_size=2)
        lan.start_worker(1, f"--token-file={file}")
        lan.wait_for("push", rank=1)
        second = tokens.create(lan.identity, "desk-1")
        file.write_text(str(second.secret))
        tokens.revoke(lan.identity, first.id)
        lan.wait_for("worker_join", rank=1, generation=2, token="desk-1")
        rotated.touch()
        complete(lan, "worker1")
