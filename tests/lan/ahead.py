"""The control PC for a whole test run: it builds the image while the first PCs need none."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from lan import groups, places
from lan.control import ControlDocker
from lan.shell import wait_for
from lan.virtual import sigterm_as_ctrl_c

from support import copy_project

_NAME = "ahead"
_LIMIT_S = 1500


class ControlPc:
    """Docker on the control PC from the first LAN that needs it to the last, or to `release`."""

    def __init__(self, folder: Path, images: Path) -> None:
        self._folder, self._images = folder, images
        self._open = contextlib.ExitStack()
        self._docker: ControlDocker | None = None
        self._log = folder / f"{_NAME}.log"

    @property
    def turn(self) -> Callable[[], AbstractContextManager[None]]:
        """How a LAN comes up: beside this docker, or alone."""
        return places.beside_the_control_pc if self._docker else places.alone

    def docker(self) -> ControlDocker:
        """Return the docker, started if it is not up; what is built ahead is done."""
        self._start()
        assert self._docker is not None
        wait_for(f"the image ({self._log})", lambda: not groups.is_running(_NAME), _LIMIT_S)
        return self._docker

    def build_ahead(self) -> None:
        """Build and stage the image from now on; should it fail, the test's own build says why."""
        if self._log.exists():
            return
        docker = self._start()
        project = copy_project(self._folder / "minga")
        (project / "build").mkdir()
        (project / "build" / "image").symlink_to(self.staged)
        own = {**docker.env, "PYTHONPATH": str(project / "src"), "COLUMNS": "200"}
        # What the build has freed again is the host's again.
        script = 'cd "$1"; "$2" -m minga.deploy.image build; fstrim "$3"'
        words = ["sh", "-uc", script, "build", str(project), sys.executable, str(self._images)]
        groups.start(_NAME, words, self._log, {**os.environ, **own})

    @property
    def build_s(self) -> float:
        """What building and staging took, of what was built ahead."""
        said = self._log.read_text() if self._log.exists() else ""
        return float(sum(map(int, re.findall(r"^(?:built|staged) in (\d+) s", said, re.M))))

    @property
    def staged(self) -> Path:
        """Where the layers for the PCs lie, for all projects of this test run."""
        folder = self._images / "staged"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def release(self) -> None:
        """Let go of docker and of the machine's one LAN."""
        groups.kill(_NAME)
        self._docker = None
        self._open.close()

    def _start(self) -> ControlDocker:
        if self._docker is None:
            self._open.enter_context(sigterm_as_ctrl_c())
            self._open.enter_context(places.alone())
            self._docker = self._open.enter_context(ControlDocker(self._images / "docker"))
        return self._docker
