"""What the virtual LAN needs on the host: packages, the PCs' root file system, a base image.

Made once, kept outside the repository, and named after what went in: another list of packages
gives another file. ``PYTHONPATH=tests python -m lan.prepare`` makes everything ahead of a test.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lan.shell import CommandError, sh

SUITE = "trixie"
BASE_IMAGE = f"debian:{SUITE}-slim"
USER = "lab"
CACHE = Path("/var/cache/minga-lan")
NEEDED_BYTES = 40 * 10**9

HOST_PACKAGES = (
    "mmdebstrap",
    "systemd-container",
    "iproute2",
    "openssh-client",
    "nftables",
    "iptables",
    "docker.io",
    "rsync",
    "tinyproxy-bin",
    "zstd",
    "gnupg",
)
_DOCKER = {
    "trixie": ("docker.io", "docker-cli", "docker-compose", "docker-buildx"),
    "bookworm": ("docker.io",),  # 20.10; its docker-compose is version 1, and no plugin
}
_PLAIN = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "iptables",
    "iputils-ping",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "rsync",
    "sudo",
    "systemd-sysv",
    "ufw",
    "zstd",
)

BOOT_ENV = {
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    "SYSTEMD_SECCOMP": "0",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
}
"""What systemd-nspawn needs on a host that may not run systemd."""

_RECIPE = 2
"""Goes into every cached name: raise it when a hook below changes."""

_SLIM = ("doc/*", "man/*", "info/*", "locale/*", "lintian/*")

_PC_HOOKS = (
    f'chroot "$1" useradd --create-home --shell /bin/bash {USER}',
    f"echo '{USER} ALL=(ALL) NOPASSWD: ALL' > \"$1/etc/sudoers.d/{USER}\"",
    f'chmod 440 "$1/etc/sudoers.d/{USER}"',
    # Each PC gets a host key and a machine id of its own; one in the image would be everybody's.
    'rm -f "$1"/etc/ssh/ssh_host_* && : > "$1/etc/machine-id"',
    "printf 'PasswordAuthentication no\\nUseDNS no\\n' > \"$1/etc/ssh/sshd_config.d/lan.conf\"",
    # No terminal to log in on, and no apt behind the tests' back.
    'chroot "$1" systemctl mask console-getty.service getty.target '
    "apt-daily.timer apt-daily-upgrade.timer systemd-networkd-wait-online.service",
    # All PCs share this machine's processors: containers, which train, leave them to the rest.
    'mkdir -p "$1/etc/systemd/system/containerd.service.d" && '
    "printf '[Service]\\nNice=10\\n' > \"$1/etc/systemd/system/containerd.service.d/lan.conf\"",
    # Debian starts a firewall's rules at boot only where they are on; nothing is on yet.
    'chroot "$1" systemctl enable ssh.service',
)


@dataclass(frozen=True)
class Prepared:
    """Where the prepared things are, and what they cost this time."""

    root_fs: Path
    base_image: Path
    seconds: dict[str, float]


def prepare() -> Prepared:
    """Install, make and cache whatever is missing; a second call costs nothing."""
    if os.geteuid() != 0:
        raise PermissionError("the virtual LAN boots PCs: it needs root")
    check_disk()
    start = time.monotonic()
    install_host_packages()
    seconds = {"host packages": time.monotonic() - start}
    with ThreadPoolExecutor(2) as pool:  # Debian 12 has nothing in common with the others
        made = [pool.submit(_timed, make) for make in (_all_of_today, _old_root_fs)]
        seconds |= {"Debian 13 and the base image": made[0].result(), "Debian 12": made[1].result()}
    return Prepared(root_fs(), base_image(), seconds)


def _all_of_today() -> None:
    root_fs()
    base_image()


def _old_root_fs() -> None:
    root_fs("bookworm")


def _timed(make: Callable[[], object]) -> float:
    start = time.monotonic()
    make()
    return time.monotonic() - start


def check_disk(folder: Path = CACHE) -> None:
    """Refuse to start what the disk cannot hold: the image, twice per PC, while it is loaded."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise OSError(
            f"the virtual LAN needs {NEEDED_BYTES / 1e9:.0f} GB free on the disk of {folder}, "
            f"there are {free / 1e9:.1f} GB (old root file systems are in {CACHE})"
        )


def install_host_packages() -> None:
    """Install by apt what is not there; ask no mirror when all is."""
    found = sh("dpkg-query", "-Wf", "${Package} ${db:Status-Status}\n", *HOST_PACKAGES, check=False)
    there = {line.split()[0] for line in found.stdout.splitlines() if line.endswith(" installed")}
    missing = [package for package in HOST_PACKAGES if package not in there]
    if not missing:
        return
    # A package's service must not start on the host: dockerd would change its firewall.
    with _no_services():
        apt = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
        sh(*apt, "update", timeout_s=300)
        install = (*apt, "install", "-y", "--no-install-recommends", *missing)
        sh(*install, timeout_s=900, env={"DEBIAN_FRONTEND": "noninteractive"})


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Tell Debian's package scripts to start nothing, as long as this lasts."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():  # somebody else's rule: theirs counts
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def root_fs(suite: str = SUITE, *, docker: bool = True) -> Path:
    """Return a PC's root file system, made when it is not there."""
    if suite != SUITE:
        packages = (*_DOCKER[suite], *_PLAIN) if docker else _PLAIN
        return _bootstrapped("rootfs", suite, packages, _PC_HOOKS)
    plain = _grown("rootfs", _seed(), _PLAIN, _PC_HOOKS)
    return _grown("rootfs", plain, _DOCKER[suite], ()) if docker else plain


def base_image() -> Path:
    """Return a tar to ``docker import`` as the official slim image that no registry serves here."""
    seed = _seed()
    pip_settings = Path("/etc/pip.conf")
    # How this host reaches the package index, certificate included, holds in a build too.
    taken = pip_settings.exists() and "file:" not in pip_settings.read_text()
    settings = pip_settings.read_text() if taken else ""
    tar = ("tar", "--create", "--numeric-owner", "--xattrs", "--file")

    def make(target: Path) -> None:
        sh(*tar, str(target), "--directory", str(seed), ".", timeout_s=120)
        if taken:
            add = ("--append", "--owner=0", "--group=0", "--file", str(target))
            sh("tar", *add, "--directory", "/etc", "--transform", "s|^|./etc/|", pip_settings.name)

    return _cached("base", (seed.name, settings), ".tar", make)


def _seed() -> Path:
    """Return the smallest Debian that knows this host's certificates: all others start from it."""
    return _bootstrapped("seed", SUITE, ("ca-certificates",), ())


def _bootstrapped(kind: str, suite: str, packages: tuple[str, ...], hooks: tuple[str, ...]) -> Path:
    """Return a tree that mmdebstrap makes from nothing."""
    certificates = _own_certificates()
    contents = [path.read_bytes() for path in certificates]
    made_of = (suite, sorted(packages), hooks, _apt_sources(suite), _apt_options(), contents)
    hooks = (*_certificate_hooks(certificates), *hooks)
    return _cached(kind, made_of, "", lambda target: _bootstrap(target, suite, packages, hooks))


def _grown(kind: str, below: Path, packages: tuple[str, ...], hooks: tuple[str, ...]) -> Path:
    """Return a copy of a tree with more packages."""
    script = (
        "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; "
        f"apt-get -qq install -y --no-install-recommends {' '.join(packages)}; "
        "apt-get clean; rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin"
    )
    nspawn = ("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-users=no")

    def make(target: Path) -> None:
        sh("cp", "--archive", str(below), str(target), timeout_s=120)
        inside = (f"--directory={target}", "--resolv-conf=bind-host", "--pipe", "sh", "-euc")
        sh(*nspawn, *inside, script, timeout_s=900, env=BOOT_ENV)
        for hook in hooks:
            sh("sh", "-euc", hook, "hook", str(target))

    return _cached(kind, (below.name, sorted(packages), hooks), "", make)


def _cached(kind: str, made_of: object, suffix: str, make: Callable[[Path], None]) -> Path:
    """Return what is made of this, made if it is not there; it has its name only when complete."""
    digest = hashlib.sha256(repr((_RECIPE, made_of)).encode()).hexdigest()[:12]
    name = f"{kind}-{digest}{suffix}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"lock-{name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / name).exists():
            for left_over in CACHE.glob(f"making-{name}-*"):
                sh("rm", "-rf", "--one-file-system", str(left_over))
            folder = Path(tempfile.mkdtemp(dir=CACHE, prefix=f"making-{name}-"))
            try:
                make(folder / name)
                (folder / name).rename(CACHE / name)
            finally:
                sh("rm", "-rf", "--one-file-system", str(folder))
    return CACHE / name


def _bootstrap(target: Path, suite: str, packages: tuple[str, ...], hooks: tuple[str, ...]) -> None:
    """Run mmdebstrap."""
    # In a namespace that dies with its first process: a Ctrl-C leaves no mount and no process.
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    sh(
        *alone,
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        *(f"--aptopt={option}" for option in _apt_options()),
        *(f"--dpkgopt=path-exclude=/usr/share/{part}" for part in _SLIM),
        "--dpkgopt=force-unsafe-io",
        *(f"--customize-hook={hook}" for hook in hooks),
        suite,
        str(target),
        "-",
        text_in=_apt_sources(suite),
        timeout_s=1200,
    )


@functools.cache
def _apt_sources(suite: str) -> str:
    """Return the host's own mirrors, for the PC's suite: no mirror's name stands in this file."""
    code_name = _host_code_name()
    wanted = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    lines = sh("apt-get", "indextargets", "--format", wanted, "Created-By: Packages").stdout
    found = dict.fromkeys(tuple(line.split()) for line in lines.splitlines())
    sources = [
        f"deb {uri} {release.replace(code_name, suite)} {component}"
        for uri, release, component in (entry for entry in found if len(entry) == 3)
        if release.split("-")[0] == code_name
    ]
    if not sources:
        raise CommandError(f"apt on this host names no mirror that carries {code_name}")
    return "\n".join(sources) + "\n"


def _host_code_name() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise CommandError("/etc/os-release has no VERSION_CODENAME: the virtual LAN wants Debian")


@functools.cache
def _apt_options() -> tuple[str, ...]:
    """Return how the host's apt reaches its mirrors: proxies, certificates, date checks."""
    kept = ("Acquire::http", "Acquire::https", "Acquire::Check", "Acquire::Retries")
    lines = sh("apt-config", "dump").stdout.splitlines()
    return tuple(line.rstrip(";") for line in lines if line.startswith(kept) and '""' not in line)


def _own_certificates() -> list[Path]:
    """Return the authorities that this host's administrator added to Debian's."""
    return sorted(Path("/usr/local/share/ca-certificates").rglob("*.crt"))


def _certificate_hooks(certificates: list[Path]) -> tuple[str, ...]:
    if not certificates:
        return ()
    there = "/usr/local/share/ca-certificates"
    uploads = (f"upload {path} {there}/{path.name}" for path in certificates)
    return (f'mkdir -p "$1{there}"', *uploads, 'chroot "$1" update-ca-certificates')


if __name__ == "__main__":
    for step, took in prepare().seconds.items():
        print(f"{step}: {took:.1f} s")
