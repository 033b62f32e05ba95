"""A ps and two workers on virtual PCs, started by the start scripts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from cluster.harness import wait_until
from cluster.netns import VirtualPc
from cluster.starter import Started
from cluster.steps import FREE, Steps
from minga.ps.audit import Audit, audit
from support import ROOT

EPOCHS = 6


def project_on(pc: VirtualPc, data: Path, model: str, stem: str) -> Path:
    """Put the start scripts, a train.yaml and the data into a PC's home; return the folder."""
    folder = pc.home / "minga"
    (folder / "data").mkdir(parents=True)
    for name in ("start_ps.sh", "start_worker.sh"):
        shutil.copy2(ROOT / name, folder)
    (folder / "data" / "tiny-imagenet-200").symlink_to(data)
    settings = {
        "model": {"name": model, "stem": stem},
        "train": {"epochs": EPOCHS, "batch_size": 16},
        "optimizer": {"lr": 0.1},
        "exchange": {"local_steps": 2},
        "evaluation": {"every_epochs": EPOCHS // 2},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    return folder


def what_it_runs(script: Path, told: dict[str, str]) -> tuple[Path, list[str], dict[str, str]]:
    """Return in which folder, with what arguments and variables a start script runs minga."""
    minga = script.with_name("what-minga-gets")
    minga.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@" ""\nexec env\n')
    minga.chmod(0o755)
    said = subprocess.run(
        [str(script)], env={**told, "MINGA_BIN": str(minga)}, capture_output=True, check=True
    ).stdout.decode()
    folder, *lines = said.splitlines()
    end = lines.index("")
    pairs = (line.partition("=") for line in lines[end + 1 :])
    return Path(folder), lines[:end], {name: value for name, _, value in pairs}


class StartedLan:
    """A ps on the first PC and a worker on each other, by the start scripts alone.

    Args:
        pcs: the ps's, then the workers'.
        data: the data set.
        folder: for logs.
        model: its name.
        epochs: over the data.
        steps: how each process takes its local steps.
        variables: of the ps; the workers are told what it prints.
    """

    def __init__(
        self,
        pcs: list[VirtualPc],
        data: Path,
        folder: Path,
        *,
        model: str,
        epochs: int = EPOCHS,
        steps: Steps = FREE,
        **variables: str,
    ) -> None:
        self.pcs: list[VirtualPc] = []
        self.folders: list[Path] = []
        self.logs: list[Path] = []
        self._data, self._folder, self._model = data, folder, model
        self._epochs, self._variables = epochs, variables
        self._entry = steps.entry
        self._add(pcs[0])
        self.processes = [self.start_ps()]
        self._printed = wait_until(self._invitation, "the command that starts a worker")
        for pc in pcs[1:]:
            self.processes.append(self.join(pc))

    def start_ps(self) -> Started:
        """Start the ps's script, from another folder than the project's."""
        variables = {"WORLD_SIZE": "3", "EPOCHS": str(self._epochs), **self._variables}
        return self._start(0, "start_ps.sh", **variables)

    def join(self, pc: VirtualPc, **variables: str) -> Started:
        """Start a worker on this PC, as the ps's terminal says, with these variables on top."""
        number = self._add(pc)
        return self._start(number, "start_worker.sh", **{**self._printed, **variables})

    def _add(self, pc: VirtualPc) -> int:
        """Give a PC a folder and a log, if it has none; return its number."""
        if pc not in self.pcs:
            self.pcs.append(pc)
            self.folders.append(project_on(pc, self._data, self._model, "stock"))
            self.logs.append(self._folder / f"{pc.name}.log")
        return self.pcs.index(pc)

    def run_folder(self) -> Path:
        """Return the ps's folder of the newest run."""
        return max((self.folders[0] / "runs").iterdir())

    def events(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """Return the newest run's events of a kind with these fields so far; whole lines only."""
        text = (self.run_folder() / "events.jsonl").read_text()
        events = map(json.loads, text.rpartition("\n")[0].splitlines())
        return [each for each in events if {"kind": kind, **wanted}.items() <= each.items()]

    def audit(self, samples: int) -> Audit:
        """Audit the newest run's journal; ``samples`` are the training set's."""
        lines = (self.run_folder() / "journal.jsonl").read_text().splitlines()
        return audit(lines, seed=0, samples=samples, epochs=self._epochs)

    def finish(self, limit_s: float = 400) -> None:
        """Wait until everybody has ended well."""
        for process, log in zip(self.processes, self.logs, strict=True):
            status = process.wait(limit_s)
            assert status == 0, log.read_text()

    def _start(self, number: int, script: str, **variables: str) -> Started:
        pc, path = self.pcs[number], self.folders[number] / script
        folder, arguments, told = what_it_runs(path, pc.environment(**variables))
        return pc.start([*self._entry, *arguments], self.logs[number], folder, **told)

    def _invitation(self) -> dict[str, str] | None:
        """Return the variables of the printed command."""
        said = self.logs[0].read_text()
        assert self.processes_alive(), said
        found = re.search(r"MASTER_ADDR=\S+ .*(?=\./start_worker\.sh)", said)
        if not found or "Parameter Server is running..." not in said:
            return None
        return dict(word.split("=", 1) for word in found[0].split())

    def processes_alive(self) -> bool:
        """Whether nobody has ended with an error."""
        return all(each.poll() in (None, 0) for each in getattr(self, "processes", []))
