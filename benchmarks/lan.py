"""What training on a gigabit LAN costs: minga beside DDP/Gloo and the textbook RPC server.

One machine plays all PCs: network and PID namespaces, links shaped to 1 Gbit/s each way. The
exchange is real, and of real size. The local step is stood in by a wait (128 ms for a batch of
128), for every system alike: no figure here says how fast a GPU is.

    sudo .venv/bin/python benchmarks/lan.py                    # all of it, about an hour
    sudo .venv/bin/python benchmarks/lan.py --quick            # a smoke test, two minutes
    sudo .venv/bin/python benchmarks/lan.py --only 'minga-*-8' --slow 4

On a machine with too few cores the processors are what limits: a row with more than 85 % of them
busy is void. ``--slow F`` then slows links and compute by one and the same factor, for all
systems, and each row says so. Rows go to benchmarks/results/lan.json; a part of them replaces
what the file has under the same names.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from lanbench.measure import measure, plain_copy  # noqa: E402  (the paths come first)
from lanbench.special import network_bound, slow_link  # noqa: E402
from lanbench.systems import Case  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "lan.json"
SIZES = (8, 4, 2, 1)
MANY = (16, 8, 4, 2)
"""Workers with a small model: what each costs the ps."""
_FIRST_MODEL = "resnet18"


def cases(slow: float, window_s: float) -> Iterator[Case]:
    """Yield the rows of the large table; systems are interleaved, so that all see one weather."""
    for subject in ("resnet18", "resnet50"):
        for workers in SIZES:
            for system in ("minga", "ddp", "textbook"):
                if subject == _FIRST_MODEL or system == "minga" or workers == SIZES[0]:
                    yield Case(system, subject, workers, slow, window_s)
    for workers in MANY:
        yield Case("minga", "small-cnn", workers, slow, window_s)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what was asked for; print each row as it comes."""
    slow, rows = options.slow, []

    def note(row: dict[str, Any]) -> None:
        rows.append({**row, "run": options.run, "load": os.getloadavg()[0]})
        print(line(rows[-1]), flush=True)
        if not options.quick:
            keep(rows[-1:], options.out)  # now: a later one may fail

    note(plain_copy(1, slow))
    alone = measure(Case("alone", _FIRST_MODEL, 1, slow, 5 if options.quick else 15))
    note(alone)
    chosen = [*cases(slow, options.window)]
    if options.quick:
        chosen = [Case(system, _FIRST_MODEL, 2, slow, 5) for system in ("minga", "ddp", "textbook")]
    for case in chosen:
        if wanted(case.name, options.only):
            note(measure(case, alone["samples_per_s"]))
    if not options.quick:
        bound = Case("minga", _FIRST_MODEL, 4, slow, options.window, {"exchange.local_steps": 1})
        if wanted("bound-resnet18-4", options.only):
            for row in network_bound(bound):
                note(row)
        if wanted("slow-link-resnet18-4", options.only):
            note(slow_link(Case("minga", _FIRST_MODEL, 4, slow, options.window)))
    return rows


def wanted(name: str, patterns: list[str]) -> bool:
    """Whether a row was asked for."""
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    if row["system"] == "plain-copy":
        rates = [row[f"{way}_bytes_per_s"] / 1e6 for way in ("towards_ps", "from_ps")]
        return f"plain copy, {row['workers']} PCs: {rates[0]:.1f} and {rates[1]:.1f} MB/s"
    name = f"{row['system']} {row['model']} x{row['workers']}"
    words = [f"{name:24} {row['samples_per_s']:7.0f} samples/s"]
    for key, form in (
        ("ratio_to_ideal", "{:.3f} of ideal"),
        ("bytes_per_sample", "{:.0f} B/sample"),
        ("cpu_share", "machine {:.0%} busy"),
        ("cpu_share_of_others", "({:.0%} by others)"),
        ("ps_cpu", "ps {:.2f} cores"),
        ("session_memory_bytes", "{:.3g} B a session"),
        ("local_steps", "H={}"),
        ("share_of_copy", "{:.3f} of a plain copy"),
        ("others_keep", "the others keep {:.3f}"),
        ("slowed", "slowed x{:g}"),
    ):
        if row.get(key) is not None:
            words.append(form.format(row[key]))
    return "  ".join(words) + ("  VOID" if row.get("void") else "")


def keep(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows into the file, in the place of those with the same names."""

    def name(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["system"], row["model"], row["workers"]

    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {name(row) for row in rows}
    kept = [row for row in kept if name(row) not in new]
    about = {"compute": "stood in by a wait: 128 ms x slowed for a batch of 128"}
    about["cpus"] = str(os.cpu_count())
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**about, "rows": kept + rows}, indent=1) + "\n")


def ended(number: int, _: object) -> NoReturn:
    """Leave by way of every clean-up."""
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 workers, a few seconds each")
    parser.add_argument("--only", action="append", default=[], help="rows like minga-resnet18-*")
    parser.add_argument("--slow", type=float, default=1.0, help="slow links and compute by this")
    parser.add_argument("--window", type=float, default=40.0, help="seconds that are measured")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows go")
    options = parser.parse_args()
    options.run = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if os.geteuid() != 0:
        print("network namespaces need root: sudo .venv/bin/python benchmarks/lan.py")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)  # a background job of a shell starts with SIGINT ignored
    rows = run(options)
    void = [row for row in rows if row.get("void")]
    if void:
        print(f"{len(void)} rows are void: the processors were busy. --slow {2 * options.slow:g}?")
    return 0


if __name__ == "__main__":
    sys.exit(main())
