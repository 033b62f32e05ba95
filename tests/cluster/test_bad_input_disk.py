"""A disk that fills up in the middle of a run: training goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.harness import Cluster, cluster, wait_until
from cluster.steps import Steps
from minga.observe.events import EventLog
from minga.observe.lines import LineFile
from minga.ps import checkpoint
from minga.ps.journal import Journal
from support import RunMinga

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRAIN, EPOCHS = 1442, 25


class SmallDisk:
    """A file system of 2 MiB, mounted at ``folder``, that can be filled and emptied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave not one byte."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small disk of its own; gone after the test."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small disk needs root, and Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "minga-test", str(folder)]
    if subprocess.run(mount, capture_output=True, timeout=20, check=False).returncode != 0:
        pytest.skip("this container may not mount")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


# -- the pieces


def test_lines_wait_for_room_and_come_in_order(disk: SmallDisk) -> None:
    path = disk.folder / "lines"
    file = LineFile(path)
    file.write("before")
    disk.fill()
    wanted = ["before"]
    for number in range(2000):  # the rest of the last page takes some of them
        wanted.append(f"during {number}")
        file.write(wanted[-1])
    assert file.kept
    assert file.trouble is not None
    assert file.lines == len(wanted)
    assert path.read_text() != "\n".join(wanted) + "\n", "control: the disk was full"

    disk.free()
    file.write("after")

    assert not file.kept
    assert file.trouble is None
    assert path.read_text().splitlines() == [*wanted, "after"]
    file.close()


def test_half_a_line_of_a_dead_process_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"push":1}\n{"push":2}\n{"pu')
    journal = Journal(path)
    assert journal.lines == 2
    journal.write({"push": 3})
    journal.close()
    assert [json.loads(line)["push"] for line in path.read_text().splitlines()] == [1, 2, 3]
    log = EventLog(tmp_path / "events.jsonl", "run")
    log.write("run_end", outcome="done")
    log.close()


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(disk: SmallDisk) -> None:
    import torch

    path = disk.folder / "last.pth"
    checkpoint.write(path, {"model": {"w": torch.ones(1000)}})
    old = path.read_bytes()
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(path, {"model": {"w": torch.zeros(100_000)}})
    assert path.read_bytes() == old
    assert sorted(each.name for each in disk.folder.iterdir()) == ["ballast", "last.pth"]
    disk.free()
    checkpoint.write(path, {"model": {"w": torch.zeros(100_000)}})
    assert checkpoint.read(path)["model"]["w"].sum() == 0


# -- a run


@pytest.fixture
def lan(disk: SmallDisk, tmp_path: Path, digits: Path) -> Iterator[Cluster]:
    """A run whose folder is on the small disk."""
    settings = {
        "train__epochs": EPOCHS,
        "evaluation__every_epochs": 5,
        "checkpoint__every_s": 0.5,
        "exchange__local_steps": 8,
    }
    with cluster(tmp_path / "lan", digits, **settings) as made:
        made.runs = disk.folder / "runs"
        yield made


def train_until_full(lan: Cluster, disk: SmallDisk) -> Path:
    """Train until there is a checkpoint, and fill the disk.

    Returns:
        A file without which the worker does not come to the end of the run.
    """
    full, go_on = lan.folder / "full", lan.folder / "go on"
    lan.start_ps(world_size=2)
    lan.start_worker(1, entry=Steps(gates={100: full, 1000: go_on}).entry)
    lan.wait_for("checkpoint", samples_done=lambda done: done > 0)
    disk.fill()
    full.touch()
    return go_on


def test_a_run_outlives_a_full_disk_and_its_journal_is_exact(lan: Cluster, disk: SmallDisk) -> None:
    go_on = train_until_full(lan, disk)
    last = lan.run / "checkpoints" / "last.pth"
    said = "cannot write to the run's folder"
    wait_until(lambda: said in lan.log("ps"), "the ps to notice")
    wait_until(lambda: lan.log("ps").count("checkpoint_failed") >= 2, "checkpoints to fail")
    old = checkpoint.read(last)  # whole, not half overwritten
    wait_until(lambda: "event=evaluation " in _after(lan.log("ps"), said), "training to go on")
    assert "best.pth: [Errno 28]" in lan.log("ps") or "last.pth: [Errno 28]" in lan.log("ps")
    # attempts go on: one may be on its way
    wait_until(lambda: not list(lan.run.glob("**/.*.part")), "no half file to be left")

    disk.free()
    go_on.touch()
    for name in ("ps", "worker1"):
        assert lan.finish(name) == 0, lan.log(name)

    kinds = [event["kind"] for event in lan.events()]
    assert "disk_trouble" in kinds
    assert "disk_recovered" in kinds
    assert kinds.index("disk_trouble") < kinds.index("disk_recovered")
    assert [e["time"] for e in lan.events()] == sorted(e["time"] for e in lan.events())
    pushes = [event for event in lan.events() if event["kind"] == "push"]
    assert [push["version"] for push in pushes] == list(range(1, len(pushes) + 1))
    assert lan.audit(TRAIN, EPOCHS).exact
    assert lan.summary()["samples"] == EPOCHS * TRAIN
    assert checkpoint.read(last)["version"] == len(pushes) > old["version"]
    best = max(e["accuracy"] for e in lan.events() if e["kind"] == "evaluation")
    assert checkpoint.read(lan.run / "checkpoints" / "best.pth")["accuracy"] == best
    assert "Traceback" not in lan.log("ps")


def train_until_noticed(lan: Cluster, disk: SmallDisk) -> Path:
    """Fill the disk in mid-run, and wait until the ps notices; return as the above."""
    go_on = train_until_full(lan, disk)
    wait_until(lambda: "cannot write to the run's folder" in lan.log("ps"), "the ps to notice")
    return go_on


def test_a_ps_that_is_killed_with_a_full_disk_resumes_exactly(
    lan: Cluster, disk: SmallDisk
) -> None:
    """What was in its memory is lost with it, and trained again."""
    go_on = train_until_noticed(lan, disk)
    lan.kill("ps")
    go_on.touch()
    disk.free()
    lan.start_ps(world_size=2)
    for name in ("ps", "worker1"):
        assert lan.finish(name) == 0, lan.log(name)
    assert lan.summary()["resumed_from"] is not None
    assert lan.audit(TRAIN, EPOCHS).exact


def test_a_ps_that_is_stopped_with_a_full_disk_says_so_and_ends(
    lan: Cluster, disk: SmallDisk
) -> None:
    go_on = train_until_noticed(lan, disk)
    lan.kill("ps", 2)
    wait_until(lambda: "Stopping" in lan.log("ps"), "the ps to take the signal")
    go_on.touch()
    assert lan.finish("ps") == 1
    assert "error[disk-full]: No space left on device" in lan.log("ps")
    assert "Traceback" not in lan.log("ps")
    checkpoint.read(lan.run / "checkpoints" / "last.pth")


def test_a_log_on_a_full_disk_ends_nothing(disk: SmallDisk, run_minga: RunMinga) -> None:
    disk.fill()
    with (disk.folder / "ballast").open("ab") as log:
        ended = subprocess.run(
            [
                sys.executable,
                "-c",
                "from minga.console import Console; Console('ps').say('x' * 10_000); print('on')",
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            timeout=60,
            check=False,
        )
    assert ended.stdout == b"on\n"


def test_a_command_that_finds_no_room_says_so(disk: SmallDisk, run_minga: RunMinga) -> None:
    disk.fill()
    ended = run_minga("data", "prepare", "digits", f"--out={disk.folder / 'digits'}")
    assert ended.returncode == 1
    assert "error[disk-full]: No space left on device" in ended.stderr
    assert [each.name for each in disk.folder.iterdir()] == ["ballast"]


def _after(text: str, words: str) -> str:
    return text.rpartition(words)[2]
