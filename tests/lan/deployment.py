"""A copy of the project that deploys to a virtual LAN by `make`, and what it left on the PCs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lan.control import ControlDocker
from lan.pc import VirtualPc
from lan.shell import wait_for
from lan.virtual import VirtualLan

from minga.data.generated import generate
from support import ROOT, copy_project

FIGURES = ROOT / "build" / "lan-test.json"
PORT = 30005
CLASSES, PER_CLASS, VAL_PER_CLASS, EPOCHS = 5, 80, 20, 28
TRAIN = CLASSES * PER_CLASS
MAKE_S = 1500

_SETTINGS = {
    "model": {"name": "resnet18", "stem": "stock"},
    "train": {"epochs": EPOCHS, "batch_size": 16},
    "optimizer": {"lr": 0.05},
    "exchange": {"local_steps": 2},
    "evaluation": {"every_epochs": EPOCHS // 4},
    "checkpoint": {"every_s": 5},
}

Event = dict[str, Any]


class Deployment:
    """The project as its user has it, an inventory of the LAN's PCs, and data to train on."""

    def __init__(self, folder: Path, lan: VirtualLan, control: ControlDocker) -> None:
        self.folder = copy_project(folder / "minga")
        self.lan, self.ps = lan, lan.ps
        staged = control.data.parent / "staged"
        staged.mkdir(exist_ok=True)
        (self.folder / "build").mkdir(exist_ok=True)
        (self.folder / "build" / "image").symlink_to(staged)
        self.data = generate(
            self.folder / "data" / "tiny-imagenet-200",
            classes=CLASSES,
            train_per_class=PER_CLASS,
            val_per_class=VAL_PER_CLASS,
            size=32,
            difficulty=0.2,
        )
        self.configure(_SETTINGS)
        hosts = f'"-o UserKnownHostsFile={lan.known_hosts}"'
        # three PCs share the processors of one: more threads would only wait for each other
        lan.inventory(self.folder / "lan.ini", ansible_ssh_common_args=hosts, minga_threads="1")
        self._env = {
            **os.environ,
            **control.env,
            "PYTHONPATH": str(self.folder / "src"),
            "ANSIBLE_NOCOLOR": "1",
            "COLUMNS": "200",
        }

    def configure(self, settings: dict[str, Any]) -> None:
        """Write ``train.yaml``."""
        (self.folder / "train.yaml").write_text(yaml.safe_dump(settings))

    def make(self, *words: str, expected: int = 0) -> str:
        """Run ``make ... INVENTORY=lan.ini``; return what it printed.

        make itself ends with 2 whatever its command ended with: that is in its words.
        """
        ended = subprocess.run(
            _command(words),
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MAKE_S,
            check=False,
        )
        assert ended.returncode == expected, ended.stdout[-6000:]
        return ended.stdout

    @contextlib.contextmanager
    def interrupted(self, *words: str) -> Iterator[None]:
        """Run a make verb beside what is done meanwhile; then end it with Ctrl-C."""
        with subprocess.Popen(
            # a shell's background job ignores Ctrl-C, and so would all that it starts
            ["env", "--default-signal=INT", *_command(words)],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as running:
            try:
                yield
            finally:
                os.killpg(running.pid, signal.SIGINT)
                status = running.wait(60)
        assert status != 0, "it was not at its end yet"

    def timed(self, *words: str, expected: int = 0) -> tuple[float, int, str]:
        """Run a make verb; return its seconds, the bytes that came to all PCs, its words."""
        before, started_s = self.bytes_in(), time.monotonic()
        printed = self.make(*words, expected=expected)
        return time.monotonic() - started_s, sum(self.bytes_in()) - sum(before), printed

    def bytes_in(self) -> list[int]:
        """Return the bytes that came to each PC so far."""
        return [pc.bytes_in_out()[0] for pc in self.lan.pcs.values()]

    @property
    def run_id(self) -> str:
        """The run that the ps was last told."""
        text = self.ps.file("/opt/minga/run.env").read_text()
        found = re.search(r"^MINGA_RUN_ID=(\S+)$", text, flags=re.MULTILINE)
        assert found, "make train names a run"
        return found[1]

    @property
    def run(self) -> Path:
        """The run's folder on the ps's disk."""
        return self.ps.file(f"/opt/minga/var/runs/{self.run_id}")

    def events(self, kind: str) -> list[Event]:
        """Return the run's events of one kind so far."""
        path = self.run / "events.jsonl"
        if not path.exists():
            return []
        whole = path.read_text().rpartition("\n")[0]
        return [each for each in map(json.loads, whole.splitlines()) if each["kind"] == kind]

    def await_events(self, kind: str, count: int, limit_s: float = 180, **wanted: Any) -> Event:
        """Wait for the ``count``-th event of a kind with these fields; return it."""

        def fitting() -> list[Event]:
            return [
                each
                for each in self.events(kind)
                if all(each[key] == value for key, value in wanted.items())
            ]

        wait_for(f"{count} x {kind} {wanted}", lambda: len(fitting()) >= count, limit_s)
        return fitting()[count - 1]

    def still_pushes(self, limit_s: float = 120) -> None:
        """Wait until the ps has applied another five pushes."""
        self.await_events("push", len(self.events("push")) + 5, limit_s)


def _command(words: Sequence[str]) -> list[str]:
    return ["make", *words, "INVENTORY=lan.ini"]


def changed(printed: str) -> dict[str, int]:
    """Return how much the last play recap says was changed, by PC."""
    recap = printed.rpartition("PLAY RECAP")[2]
    rows = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", recap, flags=re.MULTILINE)
    return {name: int(count) for name, count in rows if name != "localhost"}


def containers(pc: VirtualPc) -> dict[str, str]:
    """Return name and state (``running 0``, ``exited 143``) of each of minga's containers."""
    words = "docker container ls -aq --filter name=minga | xargs -r docker container inspect"
    form = "{{.Name}} {{.State.Status}} {{.State.ExitCode}}"
    lines = pc.sudo(f"{words} --format '{form}'").stdout.splitlines()
    return {line.split()[0].lstrip("/"): line.split(maxsplit=1)[1] for line in lines}


def note(**figures: Any) -> None:
    """Add figures to ``build/lan-test.json``."""
    FIGURES.parent.mkdir(exist_ok=True)
    before = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    FIGURES.write_text(json.dumps({**before, **figures}, indent=1) + "\n")
    print(figures)
