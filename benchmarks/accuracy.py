"""What eight unequal PCs cost in accuracy: as many samples as one worker, paired seeds.

Real processes: a ps and 8 workers whose steps take 1, 1, 1, 1, 2, 2, 4, 8 times a given time,
minga's defaults, a CNN with BatchNorm. Controls that must fail: momentum at the ps, and pushes
that are added up (gain = workers), both at a learning rate of 0.3.

    sudo .venv/bin/python benchmarks/accuracy.py              # about 25 minutes
    sudo .venv/bin/python benchmarks/accuracy.py --seeds 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from lanbench.lesson import Lesson, by_minga, write  # noqa: E402  (the paths come first)
from minga.data.digits import prepare_digits  # noqa: E402
from minga.data.generated import generate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
HET8 = (1, 1, 1, 1, 2, 2, 4, 8)
STEPS_S = {"digits": 0.025, "generated-200": 0.06}
EPOCHS = {"digits": 30, "generated-200": 20}
CONTROL_RATE = ("--optimizer.schedule=constant", "--optimizer.lr=0.3")
PATCHED = Path(__file__).parent / "lanbench" / "server_momentum"
MOST_POINTS_LOST = 0.01


def data_sets(folder: Path) -> dict[str, Path]:
    """Make both; return their folders."""
    return {
        "digits": prepare_digits(folder / "digits"),
        "generated-200": generate(
            folder / "generated",
            classes=200,
            train_per_class=40,
            val_per_class=10,
            size=16,
            difficulty=0.3,
        ),
    }


def one_run(name: str, data: Path, seed: int, workers: str, control: str = "") -> dict[str, Any]:
    """Train once; return the row."""
    lesson = Lesson(str(data), EPOCHS[name], seed, every_epochs=EPOCHS[name])
    steps_s = tuple(STEPS_S[name] * each for each in HET8) if workers == "8" else (0.0,)
    flags: tuple[str, ...] = CONTROL_RATE if control else ()
    environment = {}
    if control == "sum":
        flags += (f"--exchange.gain={len(HET8)}",)
    with tempfile.NamedTemporaryFile() as velocity:
        if control == "server-momentum":
            path = ":".join([str(PATCHED), str(ROOT / "src")])
            environment = {"PYTHONPATH": path, "VELOCITY_FILE": velocity.name}
        began_s = time.monotonic()
        accuracy = by_minga(lesson, steps_s, 1e9, *flags, **environment)[-1].accuracy
    row = {"data": name, "seed": seed, "workers": int(workers), "control": control or None}
    print(f"{row}: {accuracy:.2%}, {time.monotonic() - began_s:.0f} s", flush=True)
    return {**row, "accuracy": accuracy}


def verdicts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return, by data set, both means and whether eight lose at most a point; print them."""
    found = {}
    for name in STEPS_S:
        own = [row for row in rows if row["data"] == name]

        def mean(own: list[dict[str, Any]], workers: int, control: str | None) -> float:
            fits = [r for r in own if (r["workers"], r["control"]) == (workers, control)]
            return statistics.fmean(row["accuracy"] for row in fits)

        one, eight = mean(own, 1, None), mean(own, 8, None)
        controls = {each: mean(own, 8, each) for each in ("sum", "server-momentum")}
        found[name] = {
            "one_worker": one,
            "eight_workers": eight,
            "holds": one - eight <= MOST_POINTS_LOST,
            "controls": controls,
            "controls_fail": all(one - each > MOST_POINTS_LOST for each in controls.values()),
        }
        print(name, found[name], flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("network namespaces need root: sudo .venv/bin/python benchmarks/accuracy.py")
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, data in data_sets(Path(folder)).items():
            for seed in range(options.seeds):
                rows += [one_run(name, data, seed, workers) for workers in ("1", "8")]
            rows += [one_run(name, data, 0, "8", each) for each in ("sum", "server-momentum")]
    about = {
        "steps_s": {name: [step_s * each for each in HET8] for name, step_s in STEPS_S.items()},
        "epochs": EPOCHS,
        "run": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "verdicts": verdicts(rows),
    }
    write(options.out, about, rows)
    return 0 if all(each["holds"] for each in about["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
