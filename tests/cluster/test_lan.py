"""Three PCs as network namespaces: the tunnel, and the start scripts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.harness import sessions, wait_until
from cluster.netns import VirtualPc, virtual_lan
from cluster.started import EPOCHS, StartedLan
from cluster.steps import Steps
from minga.data.generated import generate
from minga.ps.audit import audit

pytestmark = [pytest.mark.cluster, pytest.mark.netns, pytest.mark.timeout(600)]

CLASSES, PER_CLASS, VAL_PER_CLASS = 5, 80, 20
TRAIN = CLASSES * PER_CLASS

TORCHVISION_ONLY = """
import pathlib, sys
import torch, torchvision
from PIL import Image
root, checkpoint = pathlib.Path(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
classes = sorted((root / "wnids.txt").read_text().split())
model = torchvision.models.resnet18(num_classes=len(classes))
model.load_state_dict(checkpoint["model"])
model.eval()
to_tensor = torchvision.transforms.functional.pil_to_tensor
right, total = 0, 0
for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
    name, wnid = line.split("\\t")[:2]
    image = to_tensor(Image.open(root / "val" / "images" / name).convert("RGB")).float()
    with torch.no_grad():
        output = model(((image / 255 - 0.45) / 0.27).unsqueeze(0))
    right, total = right + int(output.argmax() == classes.index(wnid)), total + 1
print(right / total, checkpoint["accuracy"])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small learnable data set in Tiny-ImageNet's layout."""
    return generate(
        tmp_path_factory.mktemp("data") / "tiny",
        classes=CLASSES,
        train_per_class=PER_CLASS,
        val_per_class=VAL_PER_CLASS,
        size=32,
        difficulty=0.2,
    )


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[list[VirtualPc]]:
    """Three PCs, each with a home folder and a copy of the project of its own."""
    with virtual_lan(tmp_path, 3) as pcs:
        yield pcs


def test_the_start_scripts_train_a_lan_to_the_end(
    lan: list[VirtualPc], data: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    started = StartedLan(lan, data, tmp_path, model="resnet18", steps=Steps(gates={4: seen}))
    ps, one, two = lan
    wait_until(
        lambda: len({push["rank"] for push in started.events("push")}) == 2,
        "a push of both workers",
    )
    assert {peer for peer, _ in ps.peers()} == {one.address, two.address}
    outside = {port for address, port in ps.listening() if not address.startswith("127.")}
    assert outside == {30005}
    for worker in (one, two):
        assert not {a for a, _ in worker.listening() if not a.startswith("127.")}
        assert worker.peers() <= {(ps.address, 30005)}, "workers dial one port only"
    seen.touch()
    started.finish()

    run = started.run_folder()
    assert "Worker 1 started..." in started.logs[1].read_text() + started.logs[2].read_text()
    roles = [
        re.sub(r"^.*_(ps|worker\d)_.*$", r"\1", file.name)
        for folder in started.folders
        for file in (folder / "stats").iterdir()
    ]
    assert sorted(roles) == ["ps", "worker1", "worker2"]
    checkpoints = started.folders[0] / "checkpoints"
    assert sorted(each.name for each in checkpoints.iterdir()) == [
        "best.pth",
        "last.pth",
        "previous.pth",
    ]
    found = started.audit(TRAIN)
    assert found.exact, found.problems

    plain = subprocess.run(
        [sys.executable, "-c", TORCHVISION_ONLY, str(data), str(checkpoints / "best.pth")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    measured, reported = map(float, plain.stdout.split())
    summary = json.loads((run / "summary.json").read_text())
    assert measured == reported == summary["best_val_accuracy"]
    assert measured > 1.5 / CLASSES, "better than chance, or the comparison proves little"


def test_ctrl_c_in_the_ps_leaves_a_checkpoint_that_resumes(
    lan: list[VirtualPc], data: Path, tmp_path: Path
) -> None:
    stopping = tmp_path / "stopping"
    steps = Steps(gates={20: stopping})
    started = StartedLan(lan, data, tmp_path, model="small-cnn", steps=steps)
    journal = wait_until(
        lambda: next(started.run_folder().glob("journal.jsonl"), None), "a first push"
    )
    wait_until(lambda: len(journal.read_text().splitlines()) > 5, "some pushes")
    started.processes[0].send_signal(signal.SIGINT)
    wait_until(lambda: "Stopping" in started.logs[0].read_text(), "the ps to take the signal")
    stopping.touch()
    assert started.processes[0].wait(60) == 130
    assert (started.folders[0] / "checkpoints" / "last.pth").exists()
    started.processes[0] = started.start_ps()
    started.finish()
    summary = json.loads((started.run_folder() / "summary.json").read_text())
    assert summary["resumed_from"] > 0
    found = audit(journal.read_text().splitlines(), seed=0, samples=TRAIN, epochs=EPOCHS)
    assert found.exact, found.problems


def test_workers_come_back_when_their_session_is_killed(
    lan: list[VirtualPc], data: Path, tmp_path: Path
) -> None:
    epochs, last = 3 * EPOCHS, tmp_path / "last"
    steps = Steps(0.5, until=last)  # the run is not over before the last kill
    started = StartedLan(lan, data, tmp_path, model="small-cnn", epochs=epochs, steps=steps)
    events = started.events

    def both_train() -> bool:
        """Whether both workers are in, and one has pushed since the last one came."""
        joined, lost = events("worker_join"), events("worker_lost")
        pushed = events("push")
        both = len(joined) - len(lost) == 2
        return both and bool(pushed) and pushed[-1]["time"] > joined[-1]["time"]

    for kills in range(1, 4):
        wait_until(both_train, "both workers to train")
        sessions(started.processes[0])[0].kill()
        wait_until(lambda n=kills: len(events("worker_lost")) == n, "the loss to be noticed")
    wait_until(both_train, "the worker to come back")
    last.touch()
    started.finish()
    assert started.audit(TRAIN).exact
