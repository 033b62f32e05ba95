"""A run on WebDataset shards trains to the end, whatever the environment says of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.harness import cluster
from minga.config import DataConfig
from minga.data.dataset import open_data
from minga.data.shards import write_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

EPOCHS = 6


def test_a_worker_trains_on_shards_and_another_on_the_folders_they_were_made_of(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")  # webdataset would leave out half of the shards
    images = open_data(DataConfig(path=str(digits)))
    shards = tmp_path / "shards"
    for half in ("train", "val"):
        split = getattr(images, half)
        write_shards(split, shards / half, prefix=half, classes=images.classes, per_shard=200)
    on_shards = ("--data", f"{shards}/train", "--val-data", f"{shards}/val")
    with cluster(tmp_path, digits, train__epochs=EPOCHS) as lan:
        lan.start_ps(world_size=2)
        lan.start_worker(1, *on_shards, "--data-format=webdataset")
        assert lan.finish("ps") == 0
        assert lan.finish("worker1") == 0
    found = lan.audit(len(images.train), EPOCHS)
    assert found.exact, found.problems
    assert lan.summary()["best_val_accuracy"] >= 0.95
