"""Write the tables and plots of docs/performance.md from benchmarks/results.

    .venv/bin/python benchmarks/report.py

Each table stands between two comments, ``<!-- NAME -->`` and ``<!-- end -->``; the rest of the
page is left as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "images"

Row = dict[str, Any]
_PEERS = {"minga": "minga", "ddp": "DDP over Gloo", "textbook": "textbook RPC server"}
_COLOURS = {"minga": "C2", "ddp": "C0", "textbook": "C3", "minga-sync": "C1"}


def results(name: str) -> Row:
    """Return the content of a file of results."""
    content: Row = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len([*titles]), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def lan_rows() -> dict[tuple[str, str, int], Row]:
    """Return the rows of lan.json by system, model and workers."""
    return {(r["system"], r["model"], r["workers"]): r for r in results("lan")["rows"]}


def lan_table(model: str) -> str:
    """Return what each system trains, for 1, 2, 4 and 8 workers."""
    found = lan_rows()
    counts = sorted({n for system, subject, n in found if (system, subject) == ("minga", model)})

    def cell(system: str, workers: int) -> str:
        row = found.get((system, model, workers))
        if row is None:
            return ""
        void = ", void" if row["void"] else ""
        cpu = f"{row['cpu_share']:.0%} CPU{void}"
        return f"{row['samples_per_s']:,.0f} ({row['ratio_to_ideal']:.1%}; {cpu})"

    def times(system: str, workers: int) -> str:
        row = found.get((system, model, workers))
        if row is None:
            return ""
        return f"{found['minga', model, workers]['samples_per_s'] / row['samples_per_s']:.1f}"

    rows = []
    for n in counts:
        own = found["minga", model, n]
        rows.append(
            [
                str(n),
                *(cell(system, n) for system in _PEERS),
                times("ddp", n),
                times("textbook", n),
                str(own["local_steps"]),
                f"{own['bytes_per_sample'] / 1e3:.1f}",
            ]
        )
    titles = ["workers", *_PEERS.values(), "minga / DDP", "minga / textbook", "H", "kB a sample"]
    return table(titles, rows)


def ps_table() -> str:
    """Return what each worker costs the ps."""
    rows = []
    for (system, model, n), row in sorted(lan_rows().items(), key=lambda item: item[0][1:]):
        if system == "minga":
            rate = row["samples_per_s"] / 128 / row["local_steps"]
            rows.append(
                [
                    model,
                    str(n),
                    f"{row['ps_cpu']:.2f}",
                    f"{row['ps_cpu'] / n:.3f}",
                    f"{1e3 * row['ps_cpu'] / rate:.0f}",
                    f"{row['session_memory_bytes'] / 1e6:.0f}",
                ]
            )
    titles = ["model", "workers", "cores of the ps", "cores a worker", "CPU ms an exchange"]
    return table([*titles, "MB a session, its own"], rows)


def bound_table() -> str:
    """Return the rows of the network-bound run and of the slow link."""
    found = lan_rows()
    bound = found["minga-bound", "resnet18", 4]
    copy = found["plain-copy", "", 4]
    slow = found["minga-slow-link", "resnet18", 4]
    rows = [
        [
            "4 workers, H=1: payload on the ps's link beside a plain two-way TCP copy",
            f"{bound['payload_bytes_per_s'] / 1e6:.1f} of "
            f"{min(copy['towards_ps_bytes_per_s'], copy['from_ps_bytes_per_s']) / 1e6:.1f} MB/s",
            f"{bound['share_of_copy']:.1%}",
        ],
        [
            "one of 4 links cut to 20 Mbit/s: what the other three keep of their rate",
            f"{slow['samples_per_s']:,.0f} of {slow['samples_per_s_before']:,.0f} samples/s",
            f"{slow['others_keep']:.1%}",
        ],
    ]
    return table(["question", "measured", "share"], rows)


def codec_table() -> str:
    """Return what each stage takes beside a copy of the bytes that it touches."""
    return table(
        ["stage", "ms", "a plain copy, ms", "ratio"],
        (
            [
                row["stage"],
                f"{1e3 * row['stage_s']:.0f}",
                f"{1e3 * row['copy_s']:.0f}",
                f"{row['ratio']:.2f}",
            ]
            for row in results("codec")["rows"]
        ),
    )


def gpu_table() -> str:
    """Return what a worker trains on a GPU, beside the training step alone."""
    titles = ["model", "side", "decoding threads", "step alone, images/s", "whole worker, images/s"]
    return table(
        [*titles, "encode", "rebase", "H"],
        (
            [
                row["model"],
                f"{row['image_size']} px",
                str(row["decode_threads"]),
                f"{row['step_images_per_s']:,.0f}",
                f"{row['worker_images_per_s']:,.0f} ({row['share']:.0%})",
                f"{row['encode_ms']:.1f} ms",
                f"{row['rebase_ms']:.1f} ms",
                f"{row['steps_per_push']:.0f}",
            ]
            for row in results("gpu")["rows"]
        ),
    )


def session_table() -> str:
    """Return what one session costs."""
    ways = {
        "tls": "as shipped: forwarders and TLS",
        "plain": "the same without TLS",
        "direct": "both on one loopback, no tunnel",
    }
    return table(
        ["way", "join", "exchange", "memory of the session process"],
        (
            [
                ways[row["way"]],
                f"{1e3 * row['join_s']:.0f} ms",
                f"{1e3 * row['exchange_s']:.0f} ms",
                f"{row['session_rss_bytes'] / 1e6:.0f} MB resident, "
                f"{row['session_pss_bytes'] / 1e6:.0f} MB of it not shared",
            ]
            for row in results("session")["rows"]
        ),
    )


def time_table() -> str:
    """Return the median seconds to the target, by LAN and system."""
    content = results("time_to_accuracy")
    rows = []
    for lan, medians in content["median_seconds"].items():
        for system, seconds in medians.items():
            rows.append([lan, system, f"{seconds:.0f}", f"{seconds / medians['minga']:.2f}"])
    title = f"s to {content['target']:.0%}"
    return table(["LAN", "system", title, "times minga's"], rows)


def accuracy_table() -> str:
    """Return mean accuracies of paired seeds, and of the controls."""
    rows = [
        [
            name,
            f"{found['one_worker']:.2%}",
            f"{found['eight_workers']:.2%}",
            *(f"{found['controls'][each]:.1%}" for each in ("server-momentum", "sum")),
        ]
        for name, found in results("accuracy")["verdicts"].items()
    ]
    titles = ["data", "one worker", "eight unequal", "control: momentum at the ps"]
    return table([*titles, "control: pushes added up"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "session": session_table,
    "codec": codec_table,
    "gpu": gpu_table,
    "lan-resnet18": lambda: lan_table("resnet18"),
    "lan-resnet50": lambda: lan_table("resnet50"),
    "lan-bound": bound_table,
    "lan-ps": ps_table,
    "time": time_table,
    "accuracy": accuracy_table,
}


def filled(page: str) -> str:
    """Return the page with every table as the results have it."""

    def fill(found: re.Match[str]) -> str:
        try:
            shown = TABLES[found[1]]()
        except FileNotFoundError:
            return found[0]  # not measured
        return f"<!-- {found[1]} -->\n\n{shown}\n\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


def draw_lan(path: Path) -> None:
    """Draw samples per second over the number of workers, ResNet-18."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes, found = figure.subplots(), lan_rows()
    counts = (1, 2, 4, 8)
    alone = found["alone", "resnet18", 1]["samples_per_s"]
    axes.plot(counts, [alone * n for n in counts], "--", color="grey", label="no exchange at all")
    for system, label in _PEERS.items():
        rows = [found[system, "resnet18", n] for n in counts if (system, "resnet18", n) in found]
        points = [(row["workers"], row["samples_per_s"]) for row in rows]
        axes.plot(*zip(*points, strict=True), "o-", color=_COLOURS[system], label=label)
    axes.set(
        xlabel="workers", ylabel="samples per second", title="ResNet-18, 1 Gbit/s", xticks=counts
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def draw_time(path: Path) -> None:
    """Draw accuracy over time, first seed, on both LANs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = results("time_to_accuracy")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    lans = [*content["median_seconds"]]
    for axes, lan in zip(figure.subplots(1, len(lans)), lans, strict=True):
        for row in content["rows"]:
            if row["lan"] == lan and row["seed"] == 0:
                seconds, _, accuracies = zip(*row["curve"], strict=True)
                axes.plot(seconds, accuracies, color=_COLOURS[row["system"]], label=row["system"])
        axes.axhline(content["target"], color="grey", linestyle=":")
        axes.set(title=f"{lan} PCs", xlabel="seconds", ylabel="accuracy")
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text()))
    PICTURES.mkdir(exist_ok=True)
    draw_lan(PICTURES / "lan.png")
    if (RESULTS / "time_to_accuracy.json").exists():
        draw_time(PICTURES / "time_to_accuracy.png")


if __name__ == "__main__":
    main()
