"""Fetch objects into the cache: several at once, each by one worker of this PC, with retries."""

from __future__ import annotations

import fcntl
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, TypeVar

from minga.console import Console, duration
from minga.data.cache import (
    Part,
    beside,
    cache_root,
    check,
    disk_full,
    is_there,
    path_of,
    size_of,
    system_error,
    write_record,
)
from minga.data.remote import Remote, Spoiled, Store, Unsteady, shown, unreachable, words
from minga.errors import DataError, Hint

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses between retries; an attempt that brought bytes restarts the sequence."""
THREADS = 4
SILENT_S = 300.0
"""A worker waits no longer for another one that has received nothing for so long."""
_LOOK_S = 0.2
_MIB = 1 << 20

_Answer = TypeVar("_Answer")


class _Stopped(Exception):
    """Another thread failed, or the worker is leaving: this one stops."""


class Fetcher:
    """Fetches objects of one store into the cache, several at once. Not thread-safe.

    Args:
        store: the store that holds them.
        leaving: polled while fetching; KeyboardInterrupt is raised once it is true.
    """

    def __init__(self, store: Store, leaving: Callable[[], bool]) -> None:
        self._store = store
        self._leaving = leaving
        self._console = Console("data")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._bytes = 0
        """Bytes received since the last :meth:`fetch` began."""
        self._said: set[str] = set()

    def patiently(
        self, url: str, call: Callable[[], _Answer], came: Callable[[], bool] = lambda: False
    ) -> _Answer:
        """Return what ``call`` returns; retry after a temporary failure.

        Args:
            url: the address, for messages.
            call: raises Unsteady for a temporary failure.
            came: whether the last attempt received bytes.

        Raises:
            DataError: every retry failed (``data-remote-unreachable``), or ``call`` raised it.
        """
        pauses = list(PAUSES_S)
        while True:
            try:
                return call()
            except Unsteady as trouble:
                if came():
                    pauses = list(PAUSES_S)
                if not pauses:
                    raise unreachable(url, trouble) from trouble
                self._console.line(
                    waiting_for=shown(url),
                    reason=words(trouble),
                    retry_s=pauses[0],
                    tries_left=len(pauses),
                )
                if self._stop.wait(pauses.pop(0)):
                    raise _Stopped from trouble

    def fetch(self, remotes: Sequence[Remote], sha256: Mapping[str, str]) -> list[Path]:
        """Fetch the objects that are not in the cache; return the path of each.

        Args:
            remotes: the objects.
            sha256: digests from manifests, by address.

        Raises:
            DataError: see :func:`minga.data.dataset.open_data`.
            KeyboardInterrupt: the worker is leaving.
        """
        lacking = [each for each in remotes if not is_there(each)]
        if lacking:
            try:
                self._require_room(lacking)
                self._fetch_all(lacking, sha256)
            except OSError as error:
                raise system_error(error) from error
        return [path_of(each) for each in remotes]

    def fetch_one(self, remote: Remote) -> Path:
        """Fetch a small object silently; return its path. Raises like :meth:`fetch`."""
        try:
            self._one(remote, None, patient=True)
        except OSError as error:
            raise system_error(error) from error
        return path_of(remote)

    def _require_room(self, lacking: Sequence[Remote]) -> None:
        root = cache_root()
        root.mkdir(parents=True, exist_ok=True)
        need = sum(each.size_bytes - size_of(beside(path_of(each), "part")) for each in lacking)
        free = shutil.disk_usage(root).free
        if need > free:
            raise disk_full(f"{need / _MIB:,.0f} MiB to fetch, {free / _MIB:,.0f} MiB free", root)

    def _fetch_all(self, lacking: Sequence[Remote], sha256: Mapping[str, str]) -> None:
        """Fetch; objects that another worker is fetching come last, so that two share the work."""
        began_s = due_s = time.monotonic()
        self._bytes = 0
        total = sum(each.size_bytes for each in lacking)
        where = shown(lacking[0].folder)
        self._console.say(
            f"Fetching {where}: {len(lacking)} files, {total / _MIB:,.1f} MiB, "
            f"to {path_of(lacking[0]).parent}"
        )
        with ThreadPoolExecutor(THREADS, "minga-fetch") as pool:
            try:
                for patient in (False, True):
                    work = {
                        pool.submit(
                            self._one, each, sha256.get(f"{each.folder}/{each.name}"), patient
                        ): each
                        for each in lacking
                    }
                    waiting = set(work)
                    while waiting:
                        done, waiting = wait(waiting, _LOOK_S, FIRST_COMPLETED)
                        for each in done:
                            each.result()
                        if self._leaving():
                            raise KeyboardInterrupt
                        if time.monotonic() - due_s > self._console.interval_s:
                            due_s = time.monotonic()
                            self._show(where, total, due_s - began_s)
                    lacking = [each for future, each in work.items() if not future.result()]
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        took_s = time.monotonic() - began_s
        self._console.say(f"Fetched {self._bytes / _MIB:,.1f} MiB in {duration(took_s)}.")

    def _show(self, where: str, total: int, took_s: float) -> None:
        rate = self._bytes / took_s
        left_s = (total - self._bytes) / rate if rate > 0 else None
        self._console.line(
            fetching=where,
            mib=f"{self._bytes / _MIB:.1f}/{total / _MIB:.1f}",
            mib_per_s=round(rate / _MIB, 2),
            eta=duration(left_s),
        )

    def _one(self, remote: Remote, sha256: str | None, patient: bool) -> bool:
        """Fetch one object; return False if another worker fetches it and ``patient`` is false."""
        path = path_of(remote)
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path, "lock").open("ab") as lock:
            if not self._locked(lock, path, patient):
                return False
            if not is_there(remote):  # it may have arrived meanwhile
                self._download(remote, path, sha256)
        return True

    def _locked(self, lock: IO[bytes], path: Path, patient: bool) -> bool:
        part, seen = beside(path, "part"), -1
        deadline = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # removed with its process
                return True
            except BlockingIOError:
                if not patient:
                    return False
            if (size := size_of(part)) != seen:
                seen, deadline = size, time.monotonic() + SILENT_S
            if time.monotonic() > deadline:
                raise unreachable(
                    str(path), f"another worker of this PC received no byte of it in {SILENT_S:g} s"
                )
            self._say_once(f"Waiting for another worker of this PC, which fetches {path}")
            if self._stop.wait(_LOOK_S):
                raise _Stopped

    def _say_once(self, sentence: str) -> None:
        with self._lock:
            new = sentence not in self._said
            self._said.add(sentence)
        if new:
            self._console.say(sentence)

    def _count(self, count: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._bytes += count

    def _download(self, remote: Remote, path: Path, sha256: str | None) -> None:
        """Fetch the missing bytes, check the whole, rename it."""
        part = beside(path, "part")
        furthest = size_of(part)

        def came() -> bool:
            nonlocal furthest
            more, furthest = size_of(part) > furthest, max(furthest, size_of(part))
            return more

        def attempt() -> str | None:
            with Part(part, remote, self._count) as sink:
                if sink.at == remote.size_bytes:  # complete, but not checked when its process ended
                    sink.rewind()
                digest = self._store.fetch(remote, sink)
                if sink.at < remote.size_bytes:
                    raise Unsteady(f"it ended after {sink.at} of {remote.size_bytes} bytes")
                return digest

        for last in (False, True):
            try:
                digest = self.patiently(remote.url, attempt, came)
                check(part, digest or (f"sha256:{sha256}" if sha256 else None))
                break
            except Spoiled as error:
                part.unlink()
                if last:
                    raise DataError(
                        f"{shown(remote.url)} arrived damaged: {error}",
                        code="data-corrupt",
                        hints=(
                            Hint("is it complete there? then start again", "./start_worker.sh"),
                        ),
                    ) from error
        part.replace(path)
        write_record(path, remote)  # after the file, never before
        beside(part, "json").unlink()
