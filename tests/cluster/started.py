"""A ps and two workers on virtual PCs, started as the guide says: by the start scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from cluster.harness import wait_until
from cluster.netns import VirtualPc
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


def minga_command(folder: Path) -> str:
    """Return a ``minga`` that runs this checkout, for MINGA_BIN."""
    script = folder / "minga"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m minga "$@"\n')
    script.chmod(0o755)
    return str(script)


class StartedLan:
    """A ps on the first PC and a worker on each other, by the start scripts alone."""

    def __init__(
        self, pcs: list[VirtualPc], data: Path, folder: Path, *, model: str, epochs: int = EPOCHS
    ) -> None:
        self.pcs = pcs
        self._epochs = epochs
        self.folders = [project_on(pc, data, model, "stock") for pc in pcs]
        self.logs = [folder / f"{pc.name}.log" for pc in pcs]
        self._binary = minga_command(folder)
        self.processes = [self.start_ps()]
        printed = wait_until(self._invitation, "the command that starts a worker")
        for number in (1, 2):
            self.processes.append(self._start(number, "start_worker.sh", **printed))

    def start_ps(self) -> subprocess.Popen[bytes]:
        """Start the ps's script, from another folder than the project's."""
        return self._start(0, "start_ps.sh", WORLD_SIZE="3", EPOCHS=str(self._epochs))

    def run_folder(self) -> Path:
        """Return the ps's folder of the newest run."""
        return max((self.folders[0] / "runs").iterdir())

    def finish(self, limit_s: float = 200) -> None:
        """Wait until everybody has ended well."""
        for process, log in zip(self.processes, self.logs, strict=True):
            status = process.wait(limit_s)
            assert status == 0, log.read_text()

    def _start(self, number: int, script: str, **variables: str) -> subprocess.Popen[bytes]:
        pc = self.pcs[number]
        command = [str(self.folders[number] / script)]
        environment = {"MINGA_BIN": self._binary, **variables}
        return pc.start(command, self.logs[number], pc.home, **environment)

    def _invitation(self) -> dict[str, str] | None:
        """Return the variables of the printed command."""
        said = self.logs[0].read_text()
        assert self.processes_alive(), said
        found = re.search(r"MASTER_ADDR=(\S+) MINGA_TOKEN=(\S+) ./start_worker.sh", said)
        if not found or "Parameter Server is running..." not in said:
            return None
        return {"MASTER_ADDR": found[1], "MINGA_TOKEN": found[2]}

    def processes_alive(self) -> bool:
        """Whether nobody has ended with an error."""
        return all(each.poll() in (None, 0) for each in getattr(self, "processes", []))
