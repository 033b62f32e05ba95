"""The cache of fetched data on this PC: every byte is fetched once.

Each address has a folder of its own, so that two data sets never mix. There a file
gets its name once it is complete and checked; ``<name>.json`` records which content
it is, ``<name>.part`` holds a partial download, ``<name>.lock`` is held by the process that is
fetching it. Workers of one PC share the folder.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from minga.data.remote import Remote, Spoiled, shown
from minga.errors import DataError, Hint

_CHUNK_BYTES = 1 << 20


def cache_root() -> Path:
    """Return the cache: ``MINGA_CACHE``, else the user's. Raises DataError ``no-access``."""
    if named := os.environ.get("MINGA_CACHE"):
        return Path(named)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "minga"
    try:
        return Path.home() / ".cache" / "minga"
    except RuntimeError as error:
        raise _no_access("this user has no home folder for fetched data") from error


def folder_of(address: str) -> Path:
    """Return the folder for the files of an address."""
    return cache_root() / hashlib.sha256(address.encode()).hexdigest()[:16]


def path_of(remote: Remote) -> Path:
    """Return the path of an object."""
    return folder_of(remote.folder) / remote.name


def drop(path: Path) -> None:
    """Remove a file whose object no longer exists."""
    for each in (beside(path, "json"), path):
        each.unlink(missing_ok=True)


def is_there(remote: Remote) -> bool:
    """Return whether the cache holds an object with its present content."""
    path = path_of(remote)
    try:
        return path.stat().st_size == remote.size_bytes and _is_of(path, remote)
    except OSError:
        return False


class Part:
    """A partial download; continues an earlier one of the same content."""

    def __init__(self, path: Path, remote: Remote, count: Callable[[int], None]) -> None:
        self._most = remote.size_bytes
        self._count = count
        same = remote.tag and _is_of(path, remote) and size_of(path) <= self._most
        if not same:
            path.unlink(missing_ok=True)
            write_record(path, remote)
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.fsync(self._file.fileno())  # else a power cut may leave zeros under the final name
        finally:
            self._file.close()

    @property
    def at(self) -> int:
        """Bytes that are there."""
        return self._file.tell()

    def write(self, data: bytes, /) -> int:
        """Append bytes. Raises Spoiled if the file gets too long, or OSError."""
        self._count(len(data))
        if self.at + len(data) > self._most:
            raise Spoiled(f"more than {self._most} bytes")
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        return len(data)

    def rewind(self) -> None:
        """Discard the bytes so far."""
        self._count(-self.at)
        self._file.truncate(0)
        self._file.seek(0)


def check(path: Path, digest: str | None) -> None:
    """Raise Spoiled if a digest (``md5:...``) is given and the file's differs."""
    kind, _, promised = (digest or "").partition(":")
    if not promised:
        return
    with path.open("rb") as file:
        if kind == "crc32c":
            import google_crc32c

            checksum = google_crc32c.Checksum()
            while data := file.read(_CHUNK_BYTES):
                checksum.update(data)
            found = base64.b64encode(checksum.digest()).decode()
        else:
            found = hashlib.file_digest(
                file, lambda: hashlib.new(kind, usedforsecurity=False)
            ).hexdigest()
    if found != promised:
        raise Spoiled(f"its {kind} is {found}, not {promised}")


def beside(path: Path, kind: str) -> Path:
    """Return the path of a file's ``json``, ``part`` or ``lock``."""
    return path.with_name(f"{path.name}.{kind}")


def size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 if it is missing."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _record(remote: Remote) -> dict[str, object]:
    return {"url": shown(remote.url), "bytes": remote.size_bytes, "tag": remote.tag}


def _is_of(path: Path, remote: Remote) -> bool:
    """Return whether the record beside a file matches an object's present content."""
    try:
        return bool(json.loads(beside(path, "json").read_text()) == _record(remote))
    except (OSError, ValueError):
        return False


def write_record(path: Path, remote: Remote) -> None:
    """Record which content a file has."""
    beside(path, "json").write_text(json.dumps(_record(remote)) + "\n")


def system_error(error: OSError) -> Exception:
    """Return a system error as one of minga's errors, or unchanged."""
    where = error.filename or cache_root()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(str(error.strerror), Path(where))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _no_access(f"fetched data cannot be kept: {error.strerror}: {where}")
    return error


def disk_full(what: str, where: Path) -> DataError:
    """Return the error for a full disk."""
    return DataError(
        f"no room for fetched data in {where}: {what}",
        code="disk-full",
        hints=(
            Hint("how much space is free?", f"df -h {cache_root()}"),
            Hint("keep them elsewhere?", "MINGA_CACHE=/big/disk ./start_worker.sh"),
        ),
    )


def _no_access(what: str) -> DataError:
    return DataError(
        what,
        code="no-access",
        hints=(Hint("keep them elsewhere?", "MINGA_CACHE=/big/disk ./start_worker.sh"),),
    )
