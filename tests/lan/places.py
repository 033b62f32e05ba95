"""Names and places on the host that belong to the virtual LAN, and the sweep that empties them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from lan import groups
from lan.disks import mount_new, unmount
from lan.shell import CommandError, sh, wait_for

STATE = Path("/var/lib/minga-lan")
"""Disks, keys, logs of the LAN that is up; gone when it is down."""
RUN = Path("/run/minga-lan")
"""The control PC's docker socket: socket paths must be short."""
DISK, DISK_BYTES = STATE.with_suffix(".disk"), 40 * 10**9
"""STATE's file system, sparse."""
IMAGES = Path("/var/lib/minga-lan-images")
"""What the control PC's docker has built: from one LAN to the next of a test run."""
IMAGES_DISK, IMAGES_BYTES = IMAGES.with_suffix(".disk"), 40 * 10**9
CONTROL_GROUPS = ("control", "control-builds", "ahead")
"""Process groups of the control PC: its docker, what that builds, and who asked for it."""
BRIDGE = "minga-lan0"
SUBNET = "10.77.0.0/24"
NAMESPACE_PREFIX = "minga-"
NSPAWN = Path("/run/systemd/nspawn")
"""What systemd-nspawn notes about its machines; a killed one leaves its notes."""
_LOCK = Path("/run/minga-lan.lock")
_SYSCTLS = STATE / "sysctls.json"

WANTED_SYSCTLS = {
    "net/ipv4/ip_forward": "1",  # the PCs' apt
    # A dockerd on the host sends bridged frames through iptables, which it has set to DROP.
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
}
_RULES = (
    ("nat", "POSTROUTING", "-s", SUBNET, "!", "-o", BRIDGE, "-j", "MASQUERADE"),
    ("filter", "FORWARD", "-i", BRIDGE, "-j", "ACCEPT"),
    ("filter", "FORWARD", "-o", BRIDGE, "-j", "ACCEPT"),
)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the one virtual LAN that a machine can have; removes what a killed run left."""
    with _LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CommandError(f"a virtual LAN is up already (process {lock.read()})") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        sweep()
        mount_new(DISK, STATE, DISK_BYTES)
        RUN.mkdir(parents=True)
        try:
            yield
        finally:
            sweep()


@contextlib.contextmanager
def beside_the_control_pc() -> Iterator[None]:
    """Hold a LAN's place where this process is `alone` already; the control PC's docker goes on."""
    sweep(CONTROL_GROUPS)
    mount_new(DISK, STATE, DISK_BYTES)
    try:
        yield
    finally:
        sweep(CONTROL_GROUPS)


def empty_images() -> None:
    """Remove the images that are kept between LANs."""
    with alone():  # a killed run's dockerd, and its mounts, may still hold them
        unmount(IMAGES)
        sh("rm", "-rf", "--one-file-system", str(IMAGES), str(IMAGES_DISK), timeout_s=300)


def let_the_pcs_out() -> None:
    """Let PCs reach the package mirror through the host, and frames cross the bridge."""
    before = {}
    for name, value in WANTED_SYSCTLS.items():
        place = Path("/proc/sys") / name
        if place.exists():
            before[name] = place.read_text().strip()
            _SYSCTLS.write_text(json.dumps(before))  # first, in case this run is killed
            place.write_text(value)
    for table, chain, *rule in _RULES:
        sh("iptables", "-w", "-t", table, "-I", chain, *rule)


def sweep(kept: Collection[str] = ()) -> None:
    """Remove every process, mount, namespace, link, rule and folder of a virtual LAN.

    With groups to keep, these processes and what is theirs stay: RUN, and the mounts in IMAGES.
    """
    groups.kill_all(kept)
    _forget_machines()
    folders = (STATE,) if kept else (STATE, RUN)
    _unmount_all(folders if kept else (*folders, IMAGES))
    for name in _namespaces():
        sh("ip", "netns", "del", name, check=False)
    if Path("/sys/class/net", BRIDGE).exists():
        sh("ip", "link", "del", BRIDGE)
    for table, chain, *rule in _RULES:
        while sh("iptables", "-w", "-t", table, "-D", chain, *rule, check=False).returncode == 0:
            continue
    with contextlib.suppress(FileNotFoundError):
        for name, value in json.loads(_SYSCTLS.read_text()).items():
            (Path("/proc/sys") / name).write_text(value)
    unmount(STATE)
    # Never across a mount that outlived the above: it may hold somebody's files.
    sh("rm", "-rf", "--one-file-system", *map(str, folders), timeout_s=300)
    if not kept:  # else the next LAN's is made on it
        sh("rm", "-f", str(DISK), timeout_s=300)


def _forget_machines() -> None:
    for root in STATE.glob("*/root"):
        at = root.stat()
        (NSPAWN / "locks" / f"inode-{at.st_dev}:{at.st_ino}").unlink(missing_ok=True)
    for folder in NSPAWN.glob(f"propagate/{NAMESPACE_PREFIX}*"):
        folder.rmdir()


def _namespaces() -> list[str]:
    lines = sh("ip", "netns", "list").stdout.splitlines()
    return [line.split()[0] for line in lines if line.startswith(NAMESPACE_PREFIX)]


def _unmount_all(folders: Sequence[Path]) -> None:
    """Unmount below these folders, the newest first; a mount may stay busy for a moment."""

    def none_left() -> bool:
        for place in reversed(_mounts(folders)):
            sh("umount", place, check=False)
        return not _mounts(folders)

    wait_for(f"mounts below {', '.join(map(str, folders))} to go", none_left, 20)


def _mounts(folders: Sequence[Path]) -> list[str]:
    ours = tuple(f"{folder}/" for folder in folders)
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [place for place in places if place.startswith(ours)]
