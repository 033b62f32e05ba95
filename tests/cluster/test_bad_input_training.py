"""What goes wrong while a run trains: nan on one worker or on all, no memory, bad images."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.harness import Cluster, cluster, wait_until
from cluster.steps import Steps
from minga.errors import RunFailed
from minga.ps import checkpoint
from minga.worker.diagnostics import out_of_memory_explained

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRAIN = 1442
START = "from minga.cli import main; sys.exit(main())"

SPOILS = """
import sys
from minga.worker import replica
real, calls = replica.Replica.step, 0
def step(self, *given):
    global calls
    calls += 1
    loss = real(self, *given)
    if {when}:
        for group in self._optimizer.state.values():
            group["momentum_buffer"].fill_(float("nan"))  # as a nan gradient leaves it
        self.weights.fill_(float("nan"))
        loss = loss * float("nan")
    return loss
replica.Replica.step = step
"""
"""A worker whose device spoils some of its steps."""

STARVES = """
import sys, torch
from minga.worker import replica
real, calls = replica.Replica.step, 0
def step(self, *given):
    global calls
    calls += 1
    if calls > 20:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return real(self, *given)
replica.Replica.step = step
"""
"""A worker whose device runs out of memory."""


HEALTHY = Steps(0.01).entry
"""Of a worker that is still at it when another one has started, on any machine."""


def entry(spoil: str) -> tuple[str, str]:
    return ("-c", spoil + START)


@pytest.fixture
def lan(tmp_path: Path, digits: Path) -> Iterator[Cluster]:
    """A long run; nothing is started."""
    settings = {"train__epochs": 3000, "evaluation__every_epochs": 10}
    with cluster(tmp_path / "lan", digits, **settings) as made:
        yield made


def failed(lan: Cluster, name: str) -> int:
    """Return the status of a process that ends with an error, as it should."""
    status = lan.finish(name)
    del lan.processes[name]
    assert "Traceback" not in lan.log(name)
    return status


def refusals(lan: Cluster) -> list[dict[str, Any]]:
    return [event for event in lan.events() if event["kind"] == "refused"]


def test_a_worker_recovers_from_a_step_that_was_nan(lan: Cluster) -> None:
    """Its momentum is nan as well: without a reset every later push would be."""
    lan.start_ps(world_size=2)
    lan.start_worker(1, entry=entry(SPOILS.format(when="calls == 20")))
    lan.wait_for("refused", reason="non-finite")
    version = lan.events()[-1].get("version") or 0
    lan.wait_for("push", version=lambda now: now > version + 50)
    assert len(refusals(lan)) <= 2
    assert not [e for e in lan.events() if e["kind"] == "worker_not_finite"]


def test_a_worker_that_pushes_only_nan_is_named_and_the_others_train_on(lan: Cluster) -> None:
    lan.start_ps()
    lan.start_worker(1, entry=HEALTHY)
    lan.wait_for("push", rank=1)
    lan.start_worker(2, entry=entry(SPOILS.format(when="calls > 20")))
    named = lan.wait_for("worker_not_finite")
    assert (named["rank"], named["host"], named["in_a_row"]) == (2, "127.0.0.1", 3)
    assert "this PC's" in named["why"]
    wait_until(lambda: "warning: worker 2 (worker-02" in lan.log("ps"), "the ps to name it")
    wait_until(lambda: "warning: the last 3 pushes" in lan.log("worker2"), "the worker to say it")
    samples = lan.events()[-1].get("samples_done") or 0
    lan.wait_for("push", rank=1, samples_done=lambda done: done > samples + TRAIN)
    assert {event["rank"] for event in refusals(lan) if event["reason"] == "non-finite"} == {2}
    assert lan.processes["ps"].poll() is None


def test_a_run_that_diverges_on_all_workers_ends_and_names_the_last_good_checkpoint(
    tmp_path: Path, digits: Path
) -> None:
    settings = {"train__epochs": 3000, "evaluation__every_epochs": 1}
    with cluster(tmp_path, digits, **settings) as lan:
        lan.start_ps()
        for rank in (1, 2):
            lan.start_worker(rank, entry=entry(SPOILS.format(when="calls > 300")))
        assert failed(lan, "ps") == 1
        wait_until(lambda: "ps=stopped" in lan.log("worker1"), "it to wait for another run")
    best = lan.run / "checkpoints" / "best.pth"
    said = lan.log("ps")
    assert "error[run-diverged]: training diverged" in said
    assert f"the last good one is {best}" in said
    assert "./start_ps.sh --resume none --optimizer.lr 0.025" in said
    for path in (best, best.with_name("last.pth")):
        model = checkpoint.read(path)["model"]
        assert all(torch.isfinite(each).all() for each in model.values())
    assert lan.events()[-1]["outcome"] == "failed"
    assert not (lan.run / "summary.json").exists()


def test_a_rate_that_is_far_too_high_ends_the_run(tmp_path: Path, digits: Path) -> None:
    """No stand-in: torch's own arithmetic overflows."""
    settings = {"optimizer__lr": 1e30, "optimizer__clip_norm": "none", "train__epochs": 3000}
    with cluster(tmp_path / "lan", digits, **settings) as lan:
        lan.start_ps(world_size=2)
        lan.start_worker(1)
        assert failed(lan, "ps") == 1, lan.log("ps")
        assert "error[run-diverged]" in lan.log("ps")
        assert "no other worker's are finite now" in lan.log("ps")


def test_a_worker_without_memory_says_which_batch_to_try(lan: Cluster) -> None:
    lan.start_ps()
    lan.start_worker(1, entry=HEALTHY)
    lan.wait_for("push", rank=1)
    lan.start_worker(2, "--batch-size=48", entry=entry(STARVES))
    assert failed(lan, "worker2") == 1
    said = lan.log("worker2")
    assert "error[out-of-memory]: cpu of " in said
    assert "a batch of 48; try 24" in said
    assert "MINGA_TRAIN_BATCH_SIZE=24 ./start_worker.sh" in said
    lan.wait_for("worker_failed", rank=2, code="out-of-memory")
    assert not [event for event in lan.events() if event["kind"] == "worker_lost"]
    version = max(event.get("version") or 0 for event in lan.events())
    lan.wait_for("push", rank=1, version=lambda now: now > version)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: not enough memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=["cuda", "mps", "windows", "linux", "cublas", "python"],
)
def test_every_way_to_have_no_memory_is_one_error(error: Exception) -> None:
    device = torch.device("cuda:0")
    with pytest.raises(RunFailed) as raised, out_of_memory_explained(device, 1):
        raise error
    assert raised.value.code == "out-of-memory"
    assert raised.value.exit_status == 1
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_explained(device, 64):
        raise RuntimeError("shapes do not match")  # the control: another error stays itself


def test_a_few_bad_images_are_counted_and_named_and_many_stop_the_worker(
    lan: Cluster, digits: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(digits, spoilt)
    images = sorted((spoilt / "train" / "5").iterdir())
    images[3].write_bytes(images[3].read_bytes()[:60])
    images[4].write_bytes(b"<html>404</html>")
    lan.start_ps()
    lan.start_worker(1, f"--data={spoilt}", entry=HEALTHY)
    wait_until(lambda: "2 of 1797 images cannot be read" in lan.log("worker1"), "a warning")
    assert f"{images[3]} (" in lan.log("worker1")
    assert f"{images[4]} (cannot identify image file)" in lan.log("worker1")
    lan.kill("worker1", signal.SIGINT)
    assert lan.finish("worker1") == 130
    (stats,) = (lan.folder / "elsewhere" / "runs" / lan.run.name / "stats").iterdir()
    assert set(json.loads(stats.read_text())["bad_images"]) == {str(images[3]), str(images[4])}

    for image in images[5:25]:  # more than 1 % of 1442
        image.write_bytes(b"")
    lan.start_worker(2, f"--data={spoilt}")
    assert failed(lan, "worker2") == 4
    assert "error[data-corrupt]: 15 of 1442 images cannot be read" in lan.log("worker2")
    lan.wait_for("worker_failed", rank=2, code="data-corrupt")
    lan.start_worker(3)  # the run itself goes on
    lan.wait_for("push", rank=3)
