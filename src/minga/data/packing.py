"""Pack a data set: many small files become a few shards, in the same order.

A pack is a folder with ``train/`` and ``val/``, shards and a manifest in each, and ``packed.json``,
a record of its source, by which a second packing finds that nothing changed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minga.data.dataset import ImageData, open_data
from minga.data.folders import EXTENSIONS, not_found, require_unused
from minga.data.shards import write_shards
from minga.data.split import Labels, Source
from minga.errors import DataError, Hint, RunFailed
from minga.settings.schema import DataConfig

NOTE = "packed.json"

_PER_SHARD = 1000
_MOST_SHARDS = 500
"""Per half. `make check` looks at the first thousand files only, and must find the record."""
_BESIDES_BYTES = 2500
"""Bytes of a sample in a shard apart from its image: two headers, its class, two paddings."""

Report = Callable[[int, int], None]
"""Called with the number of packed samples and the total."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files under some folders.

    Args:
        digest: of their names, sizes and modification times.
        images: number of images.
        image_bytes: size of all images.
    """

    digest: str
    images: int
    image_bytes: int


def look_at(folders: list[Path]) -> Tree:
    """Return the tree below these folders, without reading a file.

    Raises:
        DataError: ``data-unreadable``.
    """
    try:
        return _look_at(folders)
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}",
            code="data-unreadable",
            hints=(Hint("who may?", f"ls -ld {error.filename}"),),
        ) from error


def _look_at(folders: list[Path]) -> Tree:
    digest, images, image_bytes = hashlib.sha256(), 0, 0
    for number, folder in enumerate(folders):
        for path in _files(folder):
            try:
                of = os.stat(path)
            except FileNotFoundError:  # a broken link
                of = os.lstat(path)
            name = path[len(str(folder)) :]
            line = f"{number} {name}\0{of.st_size} {of.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
            if name.lower().endswith(EXTENSIONS) and "/." not in name:
                images += 1
                image_bytes += of.st_size
    return Tree(digest.hexdigest(), images, image_bytes)


def is_pack(folder: Path, digest: str = "") -> bool:
    """Return whether a folder is a pack, and, if given, whether it has this digest."""
    try:
        note = json.loads((folder / NOTE).read_text())
        return bool(note["digest"] == digest or not digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def pack(
    config: DataConfig,
    out: Path,
    *,
    tree: Tree | None = None,
    replace: bool = False,
    report: Report,
) -> bool:
    """Write a data set as a pack, in the same order; return whether anything was written.

    Nothing is written if ``out`` is a pack of the same files. A pack is renamed once complete.

    Args:
        config: the data: one folder, or two if the validation half is elsewhere.
        out: the pack's folder.
        tree: result of :func:`look_at` for these folders, if known.
        replace: whether to replace a pack of other files.
        report: callback, called with the progress.

    Raises:
        UsageError: ``folder-in-use``: something else is in ``out``.
        DataError: see :func:`minga.data.dataset.open_data`.
        RunFailed: ``disk-full``.
    """
    folders = [Path(each) for each in (config.path, config.val_path) if each]
    for folder in folders:
        if not folder.is_dir():
            raise not_found(folder)
    tree = tree or look_at(folders)
    if is_pack(out, tree.digest):
        return False
    if not (replace and is_pack(out)):
        require_unused(out, f"a pack of {config.path} as it is now")
    data = open_data(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    _require_room(out.parent, tree.image_bytes + _BESIDES_BYTES * tree.images)
    part = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".part", dir=out.parent))
    try:
        _write(data, part / "new", report)
        note = {"digest": tree.digest, **data.facts.to_dict()}
        (part / "new" / NOTE).write_text(json.dumps(note, indent=1) + "\n")
        if out.exists():
            out.rename(part / "old")
        (part / "new").rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(out.parent, "the disk is full") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _files(folder: Path) -> Iterator[str]:
    """Yield all files in the order of their names, each folder once even if linked twice."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        of = os.stat(root)
        if (of.st_dev, of.st_ino) in seen:
            folders.clear()
            continue
        seen.add((of.st_dev, of.st_ino))
        folders.sort()
        yield from (f"{root}/{name}" for name in sorted(names))


class _Counted:
    """A source that reports how many of its images were read."""

    def __init__(self, source: Source, report: Callable[[], None]) -> None:
        self.labels: Labels = source.labels
        self.name = source.name
        self._source = source
        self._report = report

    def encoded(self, index: int) -> bytes:
        self._report()
        return self._source.encoded(index)


def _write(data: ImageData, folder: Path, report: Report) -> None:
    """Write both halves."""
    done, total = 0, len(data.train) + len(data.val)

    def count() -> None:
        nonlocal done
        done += 1
        report(done, total)

    for half, split in (("train", data.train), ("val", data.val)):
        split.source = _Counted(split.source, count)
        write_shards(
            split,
            folder / half,
            prefix=half,
            classes=data.classes,
            per_shard=max(_PER_SHARD, -(-len(split) // _MOST_SHARDS)),
            shuffle=False,
        )


def _require_room(folder: Path, need_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < need_bytes:
        what = f"{free_bytes / 1e9:.1f} GB are free, {need_bytes / 1e9:.1f} GB are needed"
        raise _no_room(folder, what)


def _no_room(folder: Path, why: str) -> RunFailed:
    return RunFailed(
        f"no room in {folder} to pack the data: {why}",
        code="disk-full",
        hints=(Hint("what uses it?", f"df -h {folder}; du -xh --max-depth=2 . | sort -h | tail"),),
    )
