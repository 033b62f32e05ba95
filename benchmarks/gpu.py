"""What a worker trains on an NVIDIA GPU: minga's own step alone, and a whole worker beside a ps.

Real processes on this PC's loopback, made-up JPEG images, minga's defaults. ``step`` is the
training step on one batch that lies ready: what the GPU can do. ``worker`` is everything: reading
and augmenting images, the exchange with the ps, leases, TLS.

    .venv/bin/python benchmarks/gpu.py --out benchmarks/results/gpu.json      # about 5 minutes
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from cluster.harness import cluster  # noqa: E402  (the paths come first)
from lanbench.lesson import write  # noqa: E402
from lanbench.systems import seconds_of  # noqa: E402
from minga.data.generated import generate  # noqa: E402
from minga.data.split import MOST_THREADS  # noqa: E402
from minga.settings.schema import OptimizerConfig  # noqa: E402
from minga.tasks import zoo  # noqa: E402
from minga.worker.exchange import Exchange  # noqa: E402
from minga.worker.replica import Replica  # noqa: E402

BATCH, CUDA = 128, torch.device("cuda")
WARM_EPOCHS, EPOCHS, ROUNDS = 2, 10, 5


@dataclass(frozen=True)
class Case:
    """A model and the images that it is trained on: how many of each class, and their side."""

    model: str
    size: int
    classes: int
    per_class: int


CASES = (Case("resnet18", 64, 200, 150), Case("resnet50", 224, 100, 60))


def median_s(rounds: int, times: int, what: Callable[[], object]) -> float:
    """Return the seconds that one call takes on the GPU, ``times`` of them in a row."""
    took = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        for _ in range(times):
            what()
        torch.cuda.synchronize()
        took.append((time.perf_counter() - started_s) / times)
    return statistics.median(took[1:])


def alone(case: Case) -> dict[str, float]:
    """Return what the GPU does without data or ps: training steps, the exchange's stages."""
    model = zoo.build_model(case.model, case.classes, case.size, seed=0)
    replica = Replica(model, OptimizerConfig(), CUDA)
    images = torch.randint(0, 256, (BATCH, 3, case.size, case.size), dtype=torch.uint8)
    labels = torch.arange(BATCH) % case.classes
    step_s = median_s(ROUNDS, 50, lambda: replica.step(images, labels, 0.01))
    exchange = Exchange("int8", replica.weights.numel(), CUDA)
    exchange.restart(replica.weights)
    exchange.hold(replica.weights)
    encode_s = median_s(ROUNDS, 5, exchange.encode)
    reply = exchange.encode().clone()
    rebase_s = median_s(ROUNDS, 5, lambda: exchange.rebase(reply, replica.weights))
    return {
        "step_images_per_s": BATCH / step_s,
        "encode_ms": 1e3 * encode_s,
        "rebase_ms": 1e3 * rebase_s,
    }


def whole(case: Case, data: Path, folder: Path) -> dict[str, Any]:
    """Train with a ps and one worker on the GPU; return its rate after the first epochs."""
    settings = {
        "model__name": case.model,
        "data__augment": "crop-flip",
        "train__epochs": EPOCHS,
        "train__batch_size": BATCH,
        "exchange__local_steps": "none",
        "evaluation__every_epochs": EPOCHS,
    }
    with cluster(folder, data, **settings) as lan:
        lan.start_ps(world_size=2)
        lan.start_worker(1, device="cuda")
        for name in ("ps", "worker1"):
            if status := lan.finish(name, 540):
                raise RuntimeError(f"{name} ended with {status}:\n{lan.log(name)[-3000:]}")
        events, summary = lan.events(), lan.summary()
    enough = WARM_EPOCHS * case.classes * case.per_class
    pushes = [e for e in events if e["kind"] == "push" and e["samples_done"] >= enough]
    first, last = pushes[0], pushes[-1]
    seconds = seconds_of(last["time"]) - seconds_of(first["time"])
    return {
        "worker_images_per_s": (last["samples_done"] - first["samples_done"]) / seconds,
        "steps_per_push": statistics.median(
            (b["samples_done"] - a["samples_done"]) / BATCH for a, b in pairwise(pushes)
        ),
        "exchange_ms": 1e3 * statistics.median(each.get("exchange_s", 0.0) for each in pushes[1:]),
        "overhead_ms": 1e3 * statistics.median(each.get("overhead_s", 0.0) for each in pushes[1:]),
        "val_accuracy": summary["val_accuracy"],
    }


def main() -> None:
    """Measure all cases; print and write the rows."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    flags.add_argument("--only", default="", help="a model's name")
    given = flags.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="minga-gpu-") as temporary:
        for case in CASES:
            if given.only not in case.model:
                continue
            folder = Path(temporary) / case.model
            data = generate(
                folder / "data",
                classes=case.classes,
                train_per_class=case.per_class,
                val_per_class=5,
                size=case.size,
                difficulty=0.3,
            )
            row = {"model": case.model, "image_size": case.size, "decode_threads": MOST_THREADS}
            row |= alone(case)
            row |= whole(case, data, folder / "lan")
            row["share"] = row["worker_images_per_s"] / row["step_images_per_s"]
            print(json.dumps(row), flush=True)
            rows.append(row)
    about = {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "cpus": os.cpu_count(),
        "batch": BATCH,
    }
    write(given.out, about, rows)


if __name__ == "__main__":
    main()
