"""The control PC's own docker: a dockerd on this host that touches nobody else's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from lan import groups
from lan.places import RUN, STATE
from lan.prepare import BASE_IMAGE, base_image
from lan.shell import sh, wait_for

SOCKET = RUN / "docker.sock"
_NAME = "control"


class ControlDocker:
    """A dockerd with roots and socket of its own; use it inside a `VirtualLan`.

    It builds images and saves them, with ``--network host``: it has no bridge and writes no
    firewall rules. ``data`` outside the LAN's folder keeps images for the next run.
    """

    def __init__(self, data: Path = STATE / _NAME) -> None:
        self.data = data
        self.env = {"DOCKER_HOST": f"unix://{SOCKET}", "DOCKER_BUILDKIT": "0"}
        self.log = RUN / f"{_NAME}.log"

    def __enter__(self) -> Self:
        """Start dockerd and give it the image that the Dockerfile starts from."""
        words = ["dockerd", "--bridge=none", "--ip-forward=false"]
        words += ["--iptables=false", "--ip6tables=false"]
        words += [f"--host={self.env['DOCKER_HOST']}", f"--pidfile={RUN / 'docker.pid'}"]
        words += [f"--data-root={self.data}", f"--exec-root={RUN / 'exec'}"]
        # Containers of a build belong to the group that is killed in the end.
        words += ["--storage-driver=overlay2", f"--cgroup-parent=/{groups.TOP}/{_NAME}-builds"]
        self.data.mkdir(parents=True, exist_ok=True)
        groups.start(_NAME, words, self.log)
        wait_for("the control PC's dockerd", self._answers, 60)
        if not self.docker("images", "-q", BASE_IMAGE).stdout.strip():
            self.docker("import", str(base_image()), BASE_IMAGE, timeout_s=120)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Kill dockerd with all that it runs, and let go of its folder."""
        groups.kill(_NAME)
        groups.kill(f"{_NAME}-builds")
        sh("umount", "--recursive", str(self.data), check=False)

    def docker(
        self, *words: str, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run ``docker`` against this dockerd."""
        return sh("docker", *words, check=check, timeout_s=timeout_s, env=self.env)

    def _answers(self) -> bool:
        return self.docker("info", check=False).returncode == 0
