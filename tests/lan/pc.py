"""One virtual PC: Debian with its own systemd, sshd and dockerd, booted by systemd-nspawn."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
from lan import groups
from lan.network import Listener, Plug
from lan.places import STATE
from lan.prepare import BOOT_ENV, SUITE, USER, root_fs
from lan.shell import CommandError, sh, wait_for

KEY = STATE / "id_ed25519"
KNOWN_HOSTS = STATE / "known_hosts"


@dataclass(frozen=True)
class PcSpec:
    """What distinguishes a PC; ``number`` is the last part of its addresses."""

    name: str
    number: int
    group: str = "workers"
    docker: bool = True
    suite: str = SUITE
    """Debian's release, by its code name."""


class VirtualPc:
    """A PC on the LAN. Its disk outlives power cuts; nothing outlives the LAN."""

    def __init__(self, spec: PcSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.plug = Plug(spec.name, spec.number)
        self.address, self.address6 = self.plug.address, self.plug.address6
        self.folder = STATE / spec.name
        self.console = self.folder / "console.log"

    # -- disk

    def make_disk(self, hosts: str) -> None:
        """Put the shared root file system under a layer of this PC's own."""
        for part in ("own", "work", "root", "docker"):
            (self.folder / part).mkdir(parents=True)
        own = self.folder / "own"
        own.chmod(0o755)
        etc, home = own / "etc", own / "home" / USER
        (etc / "ssh").mkdir(parents=True)
        (etc / "hostname").write_text(f"{self.name}\n")
        # As Debian's installer has it: the own name is a loopback address, nobody else's is.
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n{hosts}")
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        key = etc / "ssh" / "ssh_host_ed25519_key"
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key))
        with KNOWN_HOSTS.open("a") as known:
            known.write(f"{self.address} {key.with_suffix('.pub').read_text()}")
        layers = root_fs(self.spec.suite, docker=self.spec.docker)
        options = f"lowerdir={layers},upperdir={own},workdir={self.folder / 'work'}"
        root = str(self.folder / "root")
        sh("mount", "-t", "overlay", f"minga-{self.name}", "-o", options, root)
        keys = self.folder / "root" / home.relative_to(own) / ".ssh"
        keys.mkdir(mode=0o700)
        (keys / "authorized_keys").write_text(KEY.with_suffix(".pub").read_text())
        sh("chroot", root, "chown", "-R", f"{USER}:{USER}", f"/home/{USER}/.ssh")

    # -- power

    def power_on(self, *, wait: bool = True) -> float:
        """Boot from the PC's disk; returns the seconds until it is ready, if waited for."""
        self.plug.plug_in()
        boot = [
            "systemd-nspawn",
            *("--quiet", "--register=no", "--keep-unit", "--boot"),
            f"--directory={self.folder / 'root'}",
            f"--machine={self.plug.namespace}",
            f"--hostname={self.name}",
            f"--network-namespace-path=/run/netns/{self.plug.namespace}",
            *("--capability=all", "--private-users=no"),
            *("--resolv-conf=bind-host", "--console=read-only"),
            # Docker's own layers need a real file system below them.
            f"--bind={self.folder / 'docker'}:/var/lib/docker",
        ]
        groups.start(self.name, boot, self.console, BOOT_ENV)
        return self.wait_until_ready() if wait else 0.0

    def wait_until_ready(self, limit_s: float = 120.0) -> float:
        """Wait until sshd answers, and dockerd where there is one."""
        check = "sudo docker info >/dev/null" if self.spec.docker else "true"

        def ready() -> bool:
            if not self.is_on:
                raise CommandError(f"{self.name} went off while booting:\n{self._last_words()}")
            return self.run(check, check=False, timeout_s=30).returncode == 0

        try:
            return wait_for(f"{self.name} to boot", ready, limit_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its console:\n{self._last_words()}") from None

    def power_off(self) -> None:
        """Pull the plug: every process dies at once, and nothing is told before.

        What the PC had written is on its disk all the same, synced or not: the kernel's cache is
        the host's, and the host stays up.
        """
        groups.kill(self.name)
        self.plug.unplug()

    def shut_down(self, limit_s: float = 120.0) -> float:
        """Shut down as a person would, returns the seconds it took; power_on() boots again.

        A PC told to *reboot* from inside goes off too, and wants power_off() and power_on().
        """
        # The shutdown may close this very connection before it answers.
        self.run("sudo systemctl poweroff", check=False)
        what = f"{self.name} to shut down"
        seconds = wait_for(what, lambda: not self.is_on, limit_s)
        self.power_off()
        return seconds

    @property
    def is_on(self) -> bool:
        """Tell whether any process of the PC lives."""
        return groups.is_running(self.name)

    # -- use

    def ssh_words(self) -> list[str]:
        """Return the ssh command up to the remote command, for Popen or rsync's ``-e``."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "5",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(KNOWN_HOSTS),
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", "-i", str(KEY), *words, f"{USER}@{self.address}"]

    def run(
        self,
        command: str,
        *,
        check: bool = True,
        timeout_s: float = 60.0,
        text_in: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the PC by ssh, as the user with ``sudo``; v4, port 22."""
        return sh(*self.ssh_words(), command, check=check, timeout_s=timeout_s, text_in=text_in)

    def sudo(
        self, command: str, *, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the PC as root."""
        return self.run(f"sudo sh -c {shlex.quote(command)}", check=check, timeout_s=timeout_s)

    def typing(self, command: str, typed: str) -> None:
        """Run a shell command at a terminal of the PC; type once it asks for a password."""
        *ssh, user_at_pc = self.ssh_words()
        words = ["timeout", "60", *ssh, "-tt", user_at_pc, command]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as terminal:
            assert terminal.stdin is not None
            assert terminal.stdout is not None
            said = ""
            while not re.search("password.*:", said):  # what comes before, sudo throws away
                character = terminal.stdout.read(1)
                if not character:
                    raise CommandError(f"`{command}` asked for no password: {said}")
                said += character
            terminal.stdin.write(typed)
            terminal.stdin.flush()
            said += terminal.stdout.read()
        if terminal.returncode:
            raise CommandError(f"`{command}` ended with {terminal.returncode}:\n{said}")

    def send(self, source: Path, target: str, *, timeout_s: float = 600.0) -> None:
        """Copy a file or folder (with rsync's trailing slash rules) to the PC, as its user."""
        *ssh, user_at_pc = self.ssh_words()
        words = ("rsync", "--archive", "-e", shlex.join(ssh), str(source), f"{user_at_pc}:{target}")
        sh(*words, timeout_s=timeout_s)

    def cut(self) -> None:
        """Pull the network cable."""
        self.plug.cut()

    def mend(self) -> None:
        """Put the network cable back."""
        self.plug.mend()

    def bytes_in_out(self) -> tuple[int, int]:
        """Return the bytes of its cable since the LAN is up: (to the PC, from the PC)."""
        return self.plug.bytes_in_out()

    def listening(self) -> list[Listener]:
        """Return (address, port, process) of every TCP listener; asks the kernel, not sshd."""
        return self.plug.listening()

    def file(self, path: str) -> Path:
        """Return where a file of the PC's root disk lies on the host; not for /var/lib/docker."""
        return self.folder / "root" / path.lstrip("/")

    def _last_words(self) -> str:
        return self.console.read_text(errors="replace")[-2000:]


def hang_up(pc: VirtualPc) -> None:
    """End Ansible's shared connections to a PC that is off, as their two idle minutes would.

    Else the next command waits 45 s for an answer on them.
    """
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.info["name"] != "ssh":
                continue
            ends = [each.raddr for each in process.net_connections("tcp") if each.raddr]
            if any(end.ip == pc.address for end in ends):
                process.terminate()


def share_images(source: VirtualPc, others: Iterable[VirtualPc]) -> None:
    """Let others have in Docker what one PC has, as after an equal deploy, in seconds."""
    others = list(others)
    for pc in (source, *others):
        pc.sudo("systemctl stop docker.socket docker.service")
    for pc in others:
        for part, how in (("image", "--archive"), ("overlay2", "-al")):  # -l: no second 5 GB
            target = pc.folder / "docker"
            sh("rm", "-rf", "--one-file-system", str(target / part))
            sh("cp", how, str(source.folder / "docker" / part), str(target), timeout_s=300)
    for pc in (source, *others):
        pc.sudo("systemctl start docker.service")
