"""``minga demo``: a ps and workers on this PC's loopback, on real handwritten digits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minga.console import Console, Progress, results
from minga.data.digits import prepare_digits
from minga.errors import SIGNALLED, Hint, RunFailed
from minga.observe.folder import RunFolder
from minga.settings.options import DemoOptions
from minga.transport.identity import Identity

_LIMIT_S = 300.0
_SHOW_S = 2.0
_LOOK_S = 0.25
_END_S = 30.0
_CHILD = "minga.child"
_SETTINGS = {
    "model.name": "small-cnn",
    "data.augment": "none",
    "train.batch_size": "32",
    "optimizer.lr": "0.2",
    "optimizer.warmup_epochs": "1",
    "exchange.local_steps": "2",
}


def run_demo(options: DemoOptions) -> int:
    """Train digits with real processes; show the progress and the results.

    Raises:
        RunFailed: ``demo-failed``: a process ended early; its log is named.
    """
    console = Console("demo")
    console.interval_s = _SHOW_S
    folder = RunFolder.fresh(options.runs, f"{time.strftime('%Y%m%d-%H%M%S')}-demo").path
    run_id = folder.name
    data = prepare_digits(options.runs.parent / "data" / "digits")
    identity = Identity.load_or_create(folder / "identity")
    port = _free_port()
    threads = max(1, (os.cpu_count() or 1) // options.workers)  # processes share this PC
    environment = {
        **os.environ,
        "MINGA_TOKEN": str(identity.secret),
        "OMP_NUM_THREADS": str(threads),
    }
    settings = {**_SETTINGS, "data.path": str(data), "train.epochs": str(options.epochs)}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    common = [f"--port={port}", f"--runs={options.runs}"]
    ps = [
        "ps",
        *common,
        "--host=127.0.0.1",
        f"--world-size={1 + options.workers}",
        f"--run-id={run_id}",
        f"--state={folder / 'identity'}",
        "--config=none",
        *flags,
    ]
    console.say(f"A ps and {options.workers} workers on this PC, run {run_id}")
    with _signals_end_it(), contextlib.ExitStack() as stack:
        processes = {"ps": stack.enter_context(_process("ps", ps, folder, environment))}
        for rank in range(1, options.workers + 1):
            name = f"worker{rank}"
            worker = ["worker", "--address=127.0.0.1", *common, f"--rank={rank}", "--device=cpu"]
            processes[name] = stack.enter_context(_process(name, worker, folder, environment))
        _watch(console, folder, processes)
        for process in processes.values():
            process.wait(_END_S)
    return _conclude(folder)


def _watch(console: Console, folder: Path, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Show the run's status until the ps has ended; every process must succeed."""
    deadline = time.monotonic() + _LIMIT_S
    with Progress(console) as progress:
        while processes["ps"].poll() is None:
            for name, process in processes.items():
                if process.poll() not in (None, 0):
                    raise _failed(folder, name, f"ended with status {process.returncode}")
            if time.monotonic() > deadline:
                raise _failed(folder, "ps", f"was not done after {_LIMIT_S:g} s")
            with contextlib.suppress(FileNotFoundError):
                progress.update(json.loads((folder / "status.json").read_text()))
            time.sleep(_LOOK_S)
    if processes["ps"].returncode != 0:
        raise _failed(folder, "ps", f"ended with status {processes['ps'].returncode}")


def _conclude(folder: Path) -> int:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    out = results()
    out.print(
        f"validation accuracy {100 * summary['val_accuracy']:.2f} % "
        f"(best {100 * summary['best_val_accuracy']:.2f} %) after {summary['epochs']} epochs, "
        f"{summary['wall_s']:.1f} s"
    )
    for worker in summary["workers"]:
        out.print(
            f"  worker {worker['rank']}  {worker['samples']} samples in {worker['pushes']} pushes, "
            f"staleness {worker['staleness_mean']:.1f} mean, {worker['staleness_max']} max"
        )
    out.print(f"curves   {folder / 'curves.png'}", soft_wrap=True)
    out.print(f"figures  {folder / 'summary.json'}", soft_wrap=True)
    out.print(f"next     minga eval {folder / 'checkpoints' / 'best.pth'}", soft_wrap=True)
    return 0


@contextlib.contextmanager
def _process(
    name: str, arguments: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``minga ...`` with its own log; kill what is left of it at the end.

    The child ends when its stdin closes, even if this process is killed: see :mod:`minga.child`.
    """
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", _CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None, "a pipe was asked for"
        process.stdin.close()


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit with a shell's status, so that clean-up runs."""

    def end(number: int, _: object) -> None:
        raise SystemExit(SIGNALLED + number)

    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in found.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(number, end)
        yield
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)


def _failed(folder: Path, name: str, what: str) -> RunFailed:
    return RunFailed(
        f"the demo's {name} {what}",
        code="demo-failed",
        hints=(Hint("what does its log say?", f"cat {folder / f'{name}.log'}"),),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
