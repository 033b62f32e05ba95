"""A file system in a sparse file: the LAN's disks, and the control PC's images.

On a disk that is mounted with `discard` and without a journal, as a virtual machine's may be, each
file that goes waits for the device: a LAN's hundred thousand files took minutes. Here none does.
"""

from __future__ import annotations

from pathlib import Path

from lan.shell import sh, wait_for

_MAKE = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard")


def mount_new(disk: Path, place: Path, size_bytes: int) -> None:
    """Make the file system and mount it; a file that is there is used again."""
    with disk.open("ab") as file:
        file.truncate(size_bytes)
    sh(*_MAKE, str(disk))
    mount(disk, place)


def mount(disk: Path, place: Path) -> None:
    """Mount a file system that is there."""
    place.mkdir(parents=True, exist_ok=True)
    loop = sh("losetup", "--find", "--show", "--direct-io=on", str(disk)).stdout.strip()
    try:
        sh("mount", "-t", "ext4", "-o", "nodiscard,noinit_itable", loop, str(place))
    finally:
        sh("losetup", "--detach", loop)  # as soon as it is unmounted


def unmount(place: Path) -> None:
    """Unmount it if it is mounted; it may stay busy for a moment."""

    def gone() -> bool:
        if place.is_mount():
            sh("umount", str(place), check=False)
        return not place.is_mount()

    wait_for(f"{place} to be unmounted", gone, 20)
