"""Workers that train on an NVIDIA GPU, beside others that do not: skipped where there is none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.harness import Cluster, cluster
from minga.data.generated import generate

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="this PC has no NVIDIA GPU"),
]
TRAIN, EPOCHS = 1442, 8


@pytest.fixture
def lan(tmp_path: Path, digits: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "lan", digits, train__epochs=EPOCHS) as made:
        yield made


def test_a_gpu_and_a_processor_train_one_model(lan: Cluster) -> None:
    lan.start_ps(world_size=3)
    lan.start_worker(1, device="cuda")
    lan.start_worker(2)
    for name in ("ps", "worker1", "worker2"):
        assert lan.finish(name) == 0, lan.log(name)
    assert lan.audit(TRAIN, EPOCHS).exact
    summary = lan.summary()
    on_gpu, on_cpu = sorted(summary["workers"], key=lambda worker: worker["rank"])
    assert (on_gpu["device"][:4], on_cpu["device"]) == ("cuda", "cpu")
    assert min(on_gpu["pushes"], on_cpu["pushes"]) > 0
    assert summary["val_accuracy"] > 0.9


def test_a_worker_on_a_gpu_that_is_killed_comes_back(lan: Cluster) -> None:
    lan.start_ps(world_size=2)
    lan.start_worker(1, device="cuda")
    lan.wait_for("push", samples_done=lambda done: done > TRAIN)
    lan.kill("worker1")
    lan.start_worker(1, device="cuda")
    for name in ("ps", "worker1"):
        assert lan.finish(name) == 0, lan.log(name)
    assert lan.audit(TRAIN, EPOCHS).exact


def test_a_batch_too_large_for_the_gpu_is_answered_with_one_to_try(tmp_path: Path) -> None:
    data = generate(tmp_path / "data", classes=4, train_per_class=20, size=224)
    settings = {"model__name": "resnet50", "train__batch_size": 8192, "train__epochs": 1000}
    with cluster(tmp_path / "lan", data, **settings) as lan:
        lan.start_ps(world_size=2)
        lan.start_worker(1, device="cuda")
        assert lan.finish("worker1", 240) == 1
        said = lan.log("worker1")
    assert "Traceback" not in said
    assert re.search(r"cuda.* has too little memory for a batch of 8192; try 4096", said)
    assert "nvidia-smi" in said
