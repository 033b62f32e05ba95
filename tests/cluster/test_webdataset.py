"""A run on WebDataset shards trains to the end, whatever the environment says of ranks."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from buckets import service, use
from cluster.harness import cluster, wait_until
from minga.data.dataset import open_data
from minga.data.shards import write_shards
from minga.settings.schema import DataConfig
from minga.timing import PREPARE_S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

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


def test_a_worker_trains_on_shards_in_a_bucket(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_data(DataConfig(path=str(digits)))
    for half in ("train", "val"):
        split = getattr(images, half)
        write_shards(
            split, tmp_path / "shards" / half, prefix=half, classes=images.classes, per_shard=500
        )
    train_shards = len(list((tmp_path / "shards" / "train").glob("*.tar")))
    with service("gs", tmp_path) as made, cluster(tmp_path, digits, train__epochs=1) as lan:
        use(monkeypatch, made, tmp_path / "cache")
        made.put_all(tmp_path / "shards", "tiny-wds")
        monkeypatch.setenv("DATASET_URL", f"{made.address}/tiny-wds/train")
        monkeypatch.setenv("VAL_DATASET_URL", f"{made.address}/tiny-wds/val")
        monkeypatch.setenv("USE_WEBDATASET", "true")
        made.tap.open.clear()
        lan.start_worker(1)
        lan.start_ps(world_size=2)
        wait_until(lambda: made.tap.held == train_shards, "the worker to fetch all of them")
        began_s = time.monotonic()
        lan.start_worker(2)
        wait_until(lambda: "which fetches" in lan.log("worker2"), "another to wait for it")
        lan.kill("worker2", signal.SIGTERM)
        assert lan.finish("worker2") == 130  # it does not wait for the data
        # longer than the ps waits for a worker that says nothing while it prepares
        with pytest.raises(subprocess.TimeoutExpired):
            lan.processes["worker1"].wait(max(0, began_s + PREPARE_S + 2 - time.monotonic()))
        made.tap.open.set()
        assert lan.finish("ps") == 0
        assert lan.finish("worker1") == 0
    assert lan.log("worker1").count("Fetching gs://") == 2  # once per half: it joined once
    found = lan.audit(len(images.train), 1)
    assert found.exact, found.problems
