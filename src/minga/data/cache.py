"""The folder where this PC keeps what it fetched: every byte is fetched once.

Below it each address has a folder of its own, so that two data sets never mix. In it a file
has its own name, once all of it is there and was checked; ``<name>.json`` says which content
that is, ``<name>.part`` is what has come of another one, ``<name>.lock`` is held by whoever is
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
        raise _no_access("this user has no home folder to keep fetched data in") from error


def folder_of(address: str) -> Path:
    """Return where the files that lie at an address are kept."""
    return cache_root() / hashlib.sha256(address.encode()).hexdigest()[:16]


def path_of(remote: Remote) -> Path:
    """Return where an object is kept."""
    return folder_of(remote.folder) / remote.name


def drop(path: Path) -> None:
    """Forget a file that is gone where it came from."""
    for each in (beside(path, "json"), path):
        each.unlink(missing_ok=True)


def is_there(remote: Remote) -> bool:
    """Return whether the cache has this very content of an object."""
    path = path_of(remote)
    try:
        return path.stat().st_size == remote.size_bytes and _is_of(path, remote)
    except OSError:
        return False


class Part:
    """What has come of an object; goes on with what an earlier try left of the same content."""

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
            os.fsync(self._file.fileno())  # else a power cut may leave zeros under a good name
        finally:
            self._file.close()

    @property
    def at(self) -> int:
        """Bytes that are there."""
        return self._file.tell()

    def write(self, data: bytes, /) -> int:
        """Append all of it. Raises Spoiled (it is too long) or OSError."""
        self._count(len(data))
        if self.at + len(data) > self._most:
            raise Spoiled(f"more than {self._most} bytes")
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        return len(data)

    def rewind(self) -> None:
        """Drop what is there."""
        self._count(-self.at)
        self._file.truncate(0)
        self._file.seek(0)


def check(path: Path, digest: str | None) -> None:
    """Raise Spoiled unless a file has this digest (``md5:...``), or there is none."""
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
    """Return what accompanies a file: its ``json``, ``part`` or ``lock``."""
    return path.with_name(f"{path.name}.{kind}")


def size_of(path: Path) -> int:
    """Return a file's bytes; 0 if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _record(remote: Remote) -> dict[str, object]:
    return {"url": shown(remote.url), "bytes": remote.size_bytes, "tag": remote.tag}


def _is_of(path: Path, remote: Remote) -> bool:
    """Return whether the record beside a file is that of an object's present content."""
    try:
        return bool(json.loads(beside(path, "json").read_text()) == _record(remote))
    except (OSError, ValueError):
        return False


def write_record(path: Path, remote: Remote) -> None:
    """Note which content a file is of."""
    beside(path, "json").write_text(json.dumps(_record(remote)) + "\n")


def system_error(error: OSError) -> Exception:
    """Return what the system refused as an error of ours, or as it is."""
    where = error.filename or cache_root()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(str(error.strerror), Path(where))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _no_access(f"fetched data cannot be kept: {error.strerror}: {where}")
    return error


def disk_full(what: str, where: Path) -> DataError:
    """Return the error for a disk without room."""
    return DataError(
        f"no room for fetched data in {where}: {what}",
        code="disk-full",
        hints=(
            Hint("how much room is there?", f"df -h {cache_root()}"),
            Hint("keep them elsewhere?", "MINGA_CACHE=/big/disk ./start_worker.sh"),
        ),
    )


def _no_access(what: str) -> DataError:
    return DataError(
        what,
        code="no-access",
        hints=(Hint("keep them elsewhere?", "MINGA_CACHE=/big/disk ./start_worker.sh"),),
    )
