"""Shards in buckets and on the web: resolve an address, fetch its shards.

Whole shards are fetched into this PC's cache and read there, so that later epochs need no
network. Braces are expanded first; then ``.tar`` names one shard, ``*`` and ``?`` are matched
with the bucket's listing, and anything else is a folder, with or without ``train/`` and ``val/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from minga.data.cache import drop, folder_of
from minga.data.fetching import THREADS, Fetcher
from minga.data.remote import Remote, missing, shown, unsupported
from minga.data.shards import CLASSES, MANIFEST, damaged, read_manifest
from minga.data.stores import open_store
from minga.errors import DataError, Hint
from minga.settings.schema import DataConfig

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)
_PATTERN = re.compile(r"[*?\[]")


def is_remote(path: str | None) -> bool:
    """Return whether an address is remote."""
    return bool(path and _REMOTE.match(path))


def fetched_shards(config: DataConfig, half: str, leaving: Callable[[], bool]) -> list[Path]:
    """Fetch the shards of one half that are not in the cache; return all paths.

    Args:
        config: their address, which is remote.
        half: ``train`` or ``val``.
        leaving: polled while fetching; KeyboardInterrupt is raised once it is true.

    Raises:
        DataError: see :func:`minga.data.dataset.open_data`.
    """
    own = half == "val" and config.val_path is not None
    named = str(config.val_path if own else config.path)
    if config.format not in ("auto", "webdataset"):
        raise unsupported(f"{shown(named)}: only WebDataset shards are read from there")
    try:
        addresses = list(braceexpand(named))
    except ValueError:  # unbalanced braces
        raise missing(named) from None
    itself = own or half == "train"
    return _Shards(addresses[0], half, leaving).fetch(addresses, itself)


class _Shards:
    """Looks up and fetches one half's shards."""

    def __init__(self, address: str, half: str, leaving: Callable[[], bool]) -> None:
        self._half = half
        self._store = open_store(address)
        self._fetcher = Fetcher(self._store, leaving)
        self._web = bool(_WEB.match(address))
        self._manifests: dict[str, dict[str, Any]] = {}

    def fetch(self, addresses: list[str], itself: bool) -> list[Path]:
        """Fetch the shards of all addresses; return their paths.

        Args:
            addresses: without braces.
            itself: whether shards directly in the folder belong to this half.
        """
        names = [each for each in addresses if _name(each).endswith(".tar") or self._glob(each)]
        if names and not itself:
            raise _no_validation(names[0])
        shards = self._stats([each for each in names if not self._glob(each)])
        found: list[Remote] = []
        for address in addresses:
            if address in shards:
                found.append(shards[address])
            elif address in names:
                found += self._matches(address)
            else:
                found += self._folder(address.rstrip("/"), itself)
        if not found:
            raise missing(f"{addresses[0].rstrip('/')}/*.tar")
        for folder in {each.folder for each in found}:
            self._manifest(folder)
        sha256 = {
            f"{folder}/{name}": str(shard["sha256"])
            for folder, manifest in self._manifests.items()
            for name, shard in manifest.get("shards", {}).items()
            if shard.get("sha256")
        }
        return self._fetcher.fetch(found, sha256)

    def _glob(self, address: str) -> bool:
        return _PATTERN.search(shown(address)) is not None

    def _stat(self, url: str) -> Remote:
        return self._fetcher.patiently(url, lambda: self._store.stat(url))

    def _stats(self, urls: list[str]) -> dict[str, Remote]:
        """Look at several at once; the first failure is raised."""
        with ThreadPoolExecutor(THREADS, "minga-look") as pool:
            return dict(zip(urls, pool.map(self._stat, urls), strict=True))

    def _list(self, prefix: str, *, deep: bool = False) -> list[Remote]:
        return self._fetcher.patiently(prefix, lambda: self._store.list(prefix, deep=deep))

    def _matches(self, pattern: str) -> list[Remote]:
        """Return the matching objects; ``*`` does not cross a ``/``, as in a shell."""
        start = _PATTERN.split(pattern, maxsplit=1)[0]
        deep = "/" in pattern[len(start) :]
        wanted = pattern.split("/")
        found = []
        for each in self._list(start, deep=deep):
            parts = each.url.split("/")
            if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
                found.append(each)
        if not found:
            raise missing(pattern)
        return sorted(found, key=lambda each: each.url)

    def _folder(self, folder: str, itself: bool) -> list[Remote]:
        """Return the half's shards in a folder: in its subfolder, or directly in it."""
        if inner := self._listed(f"{folder}/{self._half}"):
            return inner
        if not itself:
            raise _no_validation(folder)
        if found := self._listed(folder):
            return found
        if self._web:
            self._list(f"{folder}/")  # says why it cannot
        raise missing(f"{folder}/*.tar")

    def _listed(self, folder: str) -> list[Remote]:
        """Return the shards in a folder's manifest, else all shards in the folder."""
        there = {} if self._web else {each.name: each for each in self._list(f"{folder}/")}
        tars = sorted(name for name in there if name.endswith(".tar"))
        if not self._web and not tars and MANIFEST not in there:
            return []
        names = sorted(self._manifest(folder).get("shards", ()))
        if self._web:
            return list(self._stats([f"{folder}/{name}" for name in names]).values())
        for name in names:
            if name not in there:
                raise missing(f"{folder}/{name}")
        return [there[name] for name in names or tars]

    def _manifest(self, folder: str) -> dict[str, Any]:
        """Fetch the files beside the shards; return the manifest, empty if missing."""
        if folder in self._manifests:
            return self._manifests[folder]
        kept = folder_of(folder)
        self._bring(folder, kept, MANIFEST, [f"{folder}/{MANIFEST}"])
        lists = [f"{folder}/{CLASSES}"]
        if "/" in folder.partition("://")[2]:  # there is something above it
            lists.append(f"{folder.rpartition('/')[0]}/{CLASSES}")
        self._bring(folder, kept, CLASSES, lists)
        manifest = read_manifest(kept)
        for name in manifest.get("shards", ()):
            if Path(name).name != name or not name.endswith(".tar"):
                raise damaged(f"{folder}/{MANIFEST}", f"{name!r} is no shard's name")
        self._manifests[folder] = manifest
        return manifest

    def _bring(self, folder: str, kept: Path, name: str, urls: list[str]) -> None:
        """Fetch the first of these that exists; if none does, remove the cached one."""
        found = next(self._present(urls), None)
        if found is None:
            drop(kept / name)
        else:
            self._fetcher.fetch_one(found._replace(folder=folder))

    def _present(self, urls: list[str]) -> Iterator[Remote]:
        for url in urls:
            try:
                yield self._stat(url)
            except DataError as error:  # without the right to list, a missing object gives "denied"
                if error.code not in ("data-not-found", "data-remote-denied"):
                    raise


def _name(address: str) -> str:
    return shown(address).rpartition("/")[2]


def _no_validation(where: str) -> DataError:
    return DataError(
        f"no validation data: there is no val/ in {shown(where)}, and data.val_path is not set",
        code="data-no-validation",
        hints=(Hint("elsewhere?", "VAL_DATASET_URL=gs://bucket/folder/val ./start_worker.sh"),),
    )
