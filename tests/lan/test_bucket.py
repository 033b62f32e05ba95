"""Data in a bucket, through a whole deployment: the workers fetch them with the key that came.

The store is an emulator of S3's on the control PC; each test goes on from the last.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from lan.control import ControlDocker
from lan.deployment import TRAIN, Deployment
from lan.network import CONTROL
from lan.pc import PcSpec
from lan.shell import wait_for
from lan.virtual import VirtualLan

from buckets import BUCKET, Tap, service, sizes
from minga.ps.audit import audit

pytestmark = [pytest.mark.lan, pytest.mark.long, pytest.mark.timeout(1500)]

PCS = (PcSpec("pc1", 11, "ps"), PcSpec("pc2", 12))
KEY, SECRET, EPOCHS = "lab-key", "correct-horse-battery", 2
DATASET = f"s3://{BUCKET}/tiny-wds"
SETTINGS = {
    "model": {"name": "small-cnn"},
    "train": {"epochs": EPOCHS, "batch_size": 16},
    "evaluation": {"every_epochs": EPOCHS},
}


@pytest.fixture(scope="module")
def project(
    lan: VirtualLan, control: ControlDocker, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    project = Deployment(tmp_path_factory.mktemp("control"), lan, control)
    project.configure(SETTINGS)
    return project


@pytest.fixture(scope="module")
def tap(project: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tap]:
    """The bucket as the PCs see it: it has the data, packed; the inventory has its key."""
    packed = project.folder / "data" / "tiny-wds"
    words = ("-m", "minga", "data", "pack", str(project.data), "--out", str(packed))
    subprocess.run([sys.executable, *words], check=True, timeout=120)
    keys = project.folder / "keys"
    keys.mkdir()
    (keys / "lab").write_text(
        f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    with service("s3", tmp_path_factory.mktemp("store")) as store:
        store.put_all(packed, "tiny-wds")
        tap = Tap(store.target, CONTROL[0])
        inventory = project.folder / "lan.ini"
        told = f"bucket_key=keys/lab\nbucket_endpoint={tap.url}\n"
        inventory.write_text(inventory.read_text() + told)
        yield tap
        tap.close()


def test_no_data_are_sent_and_the_key_is_the_worker_s_alone(
    project: Deployment, lan: VirtualLan, tap: Tap
) -> None:
    project.make("deploy", f"DATASET={DATASET}")
    worker = lan.workers[0]
    assert list(worker.file("/opt/minga/data").iterdir()) == []
    stat = "stat -c '%a %u' /opt/minga/secrets/bucket"
    assert worker.sudo(stat).stdout.split() == ["600", "10001"]
    assert lan.ps.sudo(stat, check=False).returncode != 0, "the ps needs none"
    assert tap.fetched == {}, "deploy fetches nothing"


def test_the_run_ends_with_each_shard_fetched_once(
    project: Deployment, lan: VirtualLan, tap: Tap
) -> None:
    project.make("train", f"DATASET={DATASET}")
    wait_for("the end of the run", lambda: (project.run / "summary.json").exists(), 400)
    lines = (project.run / "journal.jsonl").read_text().splitlines()
    assert audit(lines, seed=0, samples=TRAIN, epochs=EPOCHS).exact
    packed = project.folder / "data" / "tiny-wds"
    there = {**sizes(packed / "train"), **sizes(packed / "val")}
    assert there
    assert tap.shards() == there
    assert all(f"Credential={KEY}/" in each for each in tap.signed), "with the inventory's key"
    shown = lan.workers[0].sudo("docker container inspect minga-worker").stdout
    said = lan.workers[0].sudo("docker logs minga-worker 2>&1").stdout
    assert json.loads(shown)[0]["State"]["ExitCode"] == 0
    assert SECRET not in shown + said


def test_without_the_bucket_the_key_goes(project: Deployment, lan: VirtualLan, tap: Tap) -> None:
    project.make("deploy")
    worker = lan.workers[0]
    assert worker.file(f"/opt/minga/data/{project.data.name}").exists()
    assert worker.sudo("stat /opt/minga/secrets/bucket", check=False).returncode != 0
