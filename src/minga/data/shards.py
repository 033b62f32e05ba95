"""WebDataset shards on this PC: plain tar files of samples, read at random.

A sample is the members that share a name up to the first dot: an image and ``cls``, the class
index as text. An optional ``manifest.json`` beside the shards lists the bytes
and samples of each, and the class names. ``RANK`` and ``WORLD_SIZE`` are ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from braceexpand import braceexpand

from minga.data.facts import MOST_CLASSES
from minga.data.folders import EXTENSIONS, empty, no_validation, not_found, text_of
from minga.data.split import Labels, Source, Split
from minga.errors import DataError, Hint
from minga.settings.schema import DataConfig

MANIFEST = "manifest.json"
CLASSES = "classes.txt"
_PATTERN = frozenset("{*?[")
_LABEL_BYTES = 32
_ZERO_BLOCK = bytes(tarfile.BLOCKSIZE)
_SHUFFLE_SEED = 0


class _Sample(NamedTuple):
    name: str
    offset: int
    size: int
    label: int


class ShardSource:
    """Samples of several shards, shard by shard, in the order of the files.

    Args:
        shards: each shard's path and its samples.
    """

    def __init__(self, shards: Iterable[tuple[Path, list[_Sample]]]) -> None:
        self._paths: list[Path] = []
        self._names: list[str] = []
        tables = []
        for number, (path, samples) in enumerate(shards):
            self._paths.append(path)
            self._names += [each.name for each in samples]
            tables.append([(number, each.offset, each.size, each.label) for each in samples])
        columns = np.concatenate([np.array(table, np.int64).reshape(-1, 4) for table in tables]).T
        self._shard, self._offset, self._size, labels = columns
        self.labels: Labels = labels

    def name(self, index: int) -> str:
        """Return the shard's path and the member's name."""
        return f"{self._paths[self._shard[index]]}/{self._names[index]}"

    def encoded(self, index: int) -> bytes:
        """Return the image member's bytes. Raises OSError."""
        with self._paths[self._shard[index]].open("rb", buffering=0) as file:
            return os.pread(file.fileno(), self._size[index], self._offset[index])


def are_shards(config: DataConfig) -> bool:
    """Return whether a path names shards: a pattern, a tar file, or a folder with some."""
    path = Path(config.path)
    if not path.exists():
        return bool(_PATTERN & set(config.path))
    return path.suffix == ".tar" or any(
        next(folder.glob("*.tar"), None) is not None for folder in (path, path / "train")
    )


def local_shards(config: DataConfig, half: str) -> list[Path]:
    """Return the local shards of one half, at least one.

    Raises:
        DataError: there are none.
    """
    return _paths(_where(config, half))


def open_shards(
    where: str, halves: dict[str, list[Path]]
) -> tuple[tuple[str, ...], dict[str, Source]]:
    """Return the class names and the halves; walks through every shard.

    Args:
        where: name of the data for messages.
        halves: each half's shards, at least one.

    Raises:
        DataError: see :func:`minga.data.dataset.open_data`.
    """
    opened = {half: _open_half(paths) for half, paths in halves.items()}
    found: dict[str, Source] = {half: source for half, (_, source) in opened.items()}
    named = [classes for classes, _ in opened.values() if classes]
    if any(classes != named[0] for classes in named):
        raise DataError(
            f"the validation shards of {where} name other classes than the training shards",
            code="data-classes-differ",
            hints=(Hint("were they packed together?", "minga data verify"),),
        )
    count = len(named[0]) if named else int(next(iter(found.values())).labels.max()) + 1
    for source in found.values():
        outside = (source.labels < 0) | (source.labels >= count)
        if outside.any():
            index = int(outside.argmax())
            raise damaged(source.name(index), f"class {source.labels[index]} of {count} classes")
    return tuple(named[0]) if named else tuple(map(str, range(count))), found


def _open_half(paths: list[Path]) -> tuple[list[str], ShardSource]:
    """Return the class names, possibly none, and the samples, at least one."""
    folder = paths[0].parent
    manifests = {each: read_manifest(each) for each in {path.parent for path in paths}}
    promises = {each: manifest.get("shards", {}) for each, manifest in manifests.items()}
    source = ShardSource(
        (path, _samples(path, promises[path.parent].get(path.name))) for path in paths
    )
    if not len(source.labels):
        raise empty(folder)
    return manifests[folder].get("classes") or _listed_classes(folder), source


def write_shards(
    split: Split,
    folder: Path,
    *,
    prefix: str,
    classes: tuple[str, ...],
    per_shard: int = 1000,
    shuffle: bool = True,
) -> list[Path]:
    """Write a split's encoded images as shards; return their paths.

    Writing again gives the same bytes. Shards are renamed once all are complete; the
    manifest is written last.

    Args:
        split: the images.
        folder: the folder to write; one per split.
        prefix: shards are called ``<prefix>-000000.tar`` and so on.
        classes: names, for the manifest.
        per_shard: samples per shard; the last may have fewer.
        shuffle: once, with a fixed seed. Without it sample 17 of the split is sample 17 of the
            shards: a worker with image files and one with these shards then mean the
            same sample by an index, as all workers of a run must.

    Raises:
        DataError: a file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order = np.arange(len(split))
    if shuffle:
        order = np.random.default_rng(_SHUFFLE_SEED).permutation(order)
    entries = []
    for number, start in enumerate(range(0, len(order), per_shard)):
        name = f"{prefix}-{number:06d}.tar"
        indices = order[start : start + per_shard]
        entries.append(_write_shard(folder / f"{name}.part", name, split, indices))
    paths = [folder / str(entry["name"]) for entry in entries]
    for path in paths:
        path.with_name(f"{path.name}.part").replace(path)
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps({"shards": entries, "classes": list(classes)}, indent=1) + "\n")
    part.replace(folder / MANIFEST)
    return paths


def _write_shard(
    part: Path, name: str, split: Split, indices: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Write one shard; return its entry in the manifest."""
    from webdataset import TarWriter  # imports torch

    source = split.source
    # a time stamp would make the bytes differ each time
    with part.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for index in indices:
            image = source.name(index)
            extension = Path(image).suffix.lower().removeprefix(".")
            try:
                encoded = source.encoded(index)
            except OSError as error:
                raise damaged(image, str(error)) from error
            label = str(source.labels[index]).encode()
            tar.write({"__key__": f"{index:08d}", extension: encoded, "cls": label})
    with part.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
        size_bytes = written.tell()
    return {"name": name, "bytes": size_bytes, "samples": len(indices), "sha256": digest}


def _where(config: DataConfig, half: str) -> str:
    """Return the folder or pattern of one half."""
    named = config.val_path if half == "val" and config.val_path else config.path
    inner = Path(named) / half
    if inner.is_dir():
        return str(inner)
    if half == "val" and not config.val_path:
        raise no_validation(Path(config.path))
    return named


def _paths(where: str) -> list[Path]:
    """Return the shards of a folder, or of a brace or glob pattern, at least one."""
    folder = Path(where)
    if folder.is_dir():
        listed = read_manifest(folder).get("shards", {})
        paths = sorted(folder / name for name in listed) or sorted(folder.glob("*.tar"))
    else:
        try:
            expanded = list(braceexpand(where))
        except ValueError:  # unbalanced braces
            raise _shard_not_found(folder) from None
        paths = [
            Path(path)
            for each in expanded
            for path in (sorted(glob(each)) if _PATTERN & set(each) else [each])
        ]
    if not paths:
        raise empty(folder)
    for path in paths:
        if not path.is_file():
            raise _shard_not_found(path) if path.suffix == ".tar" else not_found(path)
    return paths


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest's shards by name; empty without a manifest.

    Raises:
        DataError: it is damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
        shards = {
            str(shard["name"]): {
                "bytes": int(shard["bytes"]),
                "samples": int(shard["samples"]),
                "sha256": shard.get("sha256"),
            }
            for shard in content["shards"]
        }
        return {"classes": [str(name) for name in content["classes"]], "shards": shards}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise damaged(file, f"not a manifest of shards ({error})") from error


def _listed_classes(folder: Path) -> list[str]:
    """Return the lines of ``classes.txt``, beside the shards or one level up."""
    for file in (folder / CLASSES, folder.parent / CLASSES):
        if file.is_file():
            return text_of(file).splitlines()
    return []


def _samples(path: Path, promised: dict[str, Any] | None) -> list[_Sample]:
    """Return a shard's samples after checking that the file is complete."""
    size_bytes = path.stat().st_size
    if promised and size_bytes != promised["bytes"]:
        raise damaged(path, f"{size_bytes} bytes, not {promised['bytes']} as in {MANIFEST}")
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            members = _members(tar)
            # tarfile takes a damaged header, or the end of a truncated file, for the end mark
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != _ZERO_BLOCK:
                raise damaged(path, f"no end mark at byte {tar.offset}")
            samples = [_sample(path, key, fields, file) for key, fields in members.items()]
    except (tarfile.TarError, OSError) as error:
        raise damaged(path, str(error)) from error
    if promised and len(samples) != promised["samples"]:
        raise damaged(path, f"{len(samples)} samples, not {promised['samples']} as in {MANIFEST}")
    return samples


def _members(tar: tarfile.TarFile) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the files of a tar by key and extension; hidden files are skipped."""
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        key, _, extension = name.partition(".")
        if member.isfile() and key:
            members.setdefault(f"{folder}/{key}", {})[f".{extension.lower()}"] = member
    return members


def _sample(path: Path, key: str, fields: dict[str, tarfile.TarInfo], file: BinaryIO) -> _Sample:
    image = next((fields[each] for each in EXTENSIONS if each in fields), None)
    label = fields.get(".cls")
    if image is None or label is None:
        raise damaged(path, f"sample {key} has {' '.join(fields)}, not an image and .cls")
    text = os.pread(file.fileno(), min(label.size, _LABEL_BYTES), label.offset_data)
    try:
        number = int(text)
    except ValueError:
        raise damaged(path, f"class {text[:20]!r} of sample {key} is not a number") from None
    if label.size > _LABEL_BYTES or abs(number) >= MOST_CLASSES:
        raise damaged(
            path, f"class {text[:20]!r} of sample {key} is not from 0 to {MOST_CLASSES - 1}"
        )
    return _Sample(image.name, image.offset_data, image.size, number)


def _shard_not_found(path: Path) -> DataError:
    return DataError(
        f"Shard not found: {path}",
        code="data-not-found",
        hints=(Hint("what exists?", f"ls -la {path.parent}"),),
    )


def damaged(what: Path | str, why: str) -> DataError:
    """Return the error for a damaged file."""
    return DataError(
        f"{what} is damaged: {why}",
        code="data-corrupt",
        hints=(Hint("was the copy cut short? deploy the data again", "make deploy"),),
    )
