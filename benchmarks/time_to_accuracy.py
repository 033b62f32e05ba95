"""Seconds to a given accuracy: minga beside its own synchronous mode and DDP over Gloo.

Real training of a small CNN with BatchNorm on generated images, by real processes on network
namespaces. A local step takes a given time on each PC (what is left of it is a wait), and links are
so slow that this model's bytes take as much of a step as ResNet-18's on 1 Gbit/s and 128 ms.

    sudo .venv/bin/python benchmarks/time_to_accuracy.py             # about 25 minutes
    sudo .venv/bin/python benchmarks/time_to_accuracy.py --seeds 1   # a third of that
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from lanbench.lesson import (  # noqa: E402  (the paths come first)
    Lesson,
    Point,
    by_ddp,
    by_minga,
    link_bits,
    seconds_to,
    write,
)
from lanbench.measure import plain_copy  # noqa: E402
from minga.data.generated import generate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "time_to_accuracy.json"
STEP_S = 0.1
LANS = {"equal": (1, 1, 1, 1), "unequal": (1, 1, 2, 4)}
CLASSES, PER_CLASS, JUDGED_PER_CLASS, SIZE, DIFFICULTY = 200, 120, 10, 24, 0.6
EPOCHS, EVERY_EPOCHS, TARGET = 2, 0.4, 0.55
RECALIBRATION = "--evaluation.recalibration_images=1024"
"""Few: validations as frequent as these must not outweigh training."""

System = Callable[[Lesson, tuple[float, ...], float], list[Point]]
SYSTEMS: dict[str, System] = {
    "minga": lambda lesson, steps_s, rate: by_minga(lesson, steps_s, rate, RECALIBRATION),
    "minga-sync": lambda lesson, steps_s, rate: by_minga(
        lesson, steps_s, rate, RECALIBRATION, "--exchange.mode=sync"
    ),
    "ddp": by_ddp,
}


def rows_of(data: Path, rate: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with each system on each LAN; seeds outside, so that all see one weather."""
    rows = []
    for seed in range(options.seeds):
        for lan, factors in LANS.items():
            for name, train in SYSTEMS.items():
                lesson = Lesson(str(data), EPOCHS, seed, EVERY_EPOCHS, enough=TARGET)
                points = train(lesson, tuple(STEP_S * each for each in factors), rate)
                row = {
                    "system": name,
                    "lan": lan,
                    "seed": seed,
                    "seconds": seconds_to(points, TARGET),
                    "curve": [[p.seconds, p.samples, p.accuracy] for p in points],
                    "load": os.getloadavg()[0],
                }
                rows.append(row)
                took = "never" if row["seconds"] is None else f"{row['seconds']:.0f} s"
                curve = ", ".join(f"{p.accuracy:.1%} at {p.seconds:.0f} s" for p in points)
                print(
                    f"{lan:8} {name:11} seed {seed}: {TARGET:.0%} after {took} ({curve})",
                    flush=True,
                )
    return rows


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the median seconds to the target, by LAN and system, and print the ratios."""
    found: dict[str, dict[str, float]] = {}
    for lan in LANS:
        own = [row for row in rows if row["lan"] == lan]
        found[lan] = {
            name: statistics.median(
                row["seconds"] or float("inf") for row in own if row["system"] == name
            )
            for name in SYSTEMS
        }
        first = found[lan]["minga"]
        ratios = [f"{name} {s:.0f} s ({s / first:.2f} x)" for name, s in found[lan].items()]
        print(f"{lan}: " + ", ".join(ratios))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("network namespaces need root: sudo .venv/bin/python benchmarks/time_to_accuracy.py")
        return 2
    rate = link_bits(CLASSES, SIZE, STEP_S)
    plain_copy(1, 1e9 / rate)  # raises when the links are not as fast as they should be
    with tempfile.TemporaryDirectory() as name:
        data = generate(
            Path(name) / "data",
            classes=CLASSES,
            train_per_class=PER_CLASS,
            val_per_class=JUDGED_PER_CLASS,
            size=SIZE,
            difficulty=DIFFICULTY,
        )
        rows = rows_of(data, rate, options)
    about = {
        "target": TARGET,
        "step_s": STEP_S,
        "link_bits_per_s": rate,
        "epochs": EPOCHS,
        "run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "compute": "real, and then a wait until the step has taken its time",
        "median_seconds": medians(rows),
    }
    write(options.out, about, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
