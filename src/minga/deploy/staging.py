"""Pieces of an image on disk, compressed once: ``build/image/``.

``layers/<digest>-<size>.zst`` is the content of one layer. ``send/<what>/`` has, for each layer
that a host is missing, the three pieces of a ``docker load`` archive: ``<number>.<0|1|2>.zst``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from minga.deploy.layers import chain, entry_header, entry_name, head, padding, part

_CHUNK_BYTES = 1 << 20
_LEVEL = 3
_GZIP = b"\x1f\x8b"
_METADATA_BYTES = 4 << 20
"""Size limit of an image's files that are not layers."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files for one host, which loads them with ``roles/image/files/load.sh``."""

    folder: Path
    name: str
    """Folder on the host, one per image."""
    first: int
    """The number of the lowest layer among these, counted in the image from 0."""
    end: int
    """Number of the image's layers."""
    size_bytes: int


class Staging:
    """The pieces of images under one folder. For one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._layers = folder / "layers"
        self._parcels = folder / "send"
        for each in (self._layers, self._parcels):
            each.mkdir(parents=True, exist_ok=True)

    def misses(self, layers: Iterable[str]) -> bool:
        """Return whether one of these layers is not staged."""
        return any(self._piece(layer) is None for layer in layers)

    def take(
        self, saved: IO[bytes], layers: Sequence[str], *, skip_staged: bool = True
    ) -> dict[str, bytes]:
        """Read the output of ``docker save``: stage the layers, return the small files by name.

        A file with the size of an already staged layer is skipped. If two layers have
        the same size, one may be missing afterwards: call again without skipping.
        """
        small: dict[str, bytes] = {}
        staged = {_size_bytes(piece) for layer in layers if (piece := self._piece(layer))}
        with tarfile.open(fileobj=saved, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if not isinstance(content, io.BufferedReader):  # a folder, or a link to a layer
                    continue
                if skip_staged and member.size > _METADATA_BYTES and member.size in staged:
                    continue
                small |= self._add(member, content, layers)
        return small

    def _add(
        self, member: tarfile.TarInfo, content: io.BufferedReader, layers: Sequence[str]
    ) -> dict[str, bytes]:
        """Compress one file, keep it if it is one of the layers; return it if it is small."""
        unfinished = self._layers / "part"
        digest, size_bytes, kept = hashlib.sha256(), 0, b""
        zipped = content.peek(2).startswith(_GZIP)  # some engines compress
        source = gzip.GzipFile(fileobj=content) if zipped else content
        compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=-1)
        with unfinished.open("wb") as file, compressor.stream_writer(file) as out:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
                out.write(chunk)
                if member.size <= _METADATA_BYTES:
                    kept += chunk
            out.write(padding(size_bytes))
        if f"sha256:{digest.hexdigest()}" in layers:
            unfinished.replace(self._layers / f"{digest.hexdigest()}-{size_bytes}.zst")
        unfinished.unlink(missing_ok=True)
        return {member.name: kept} if kept else {}

    def parcel(self, layers: Sequence[str], config: bytes, tag: str) -> Parcel:
        """Stage the pieces of these last layers, which complete the image on a host."""
        sizes = {layer: _size_bytes(self._there(layer)) for layer in chain(config)}
        end = len(chain(config))
        first = end - len(layers)
        name = hashlib.sha256(config).hexdigest()[:12]
        key = hashlib.sha256(head(config, tag, sizes) + bytes([first])).hexdigest()[:16]
        folder = self._parcels / key
        if not folder.exists():
            unfinished = self._parcels / f"{key}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            for number, layer in enumerate(layers, first):
                so_far = part(config, number + 1), f"minga:part-{name}-{number}"
                rest = head(*(so_far if number + 1 < end else (config, tag)), sizes)
                self._lay_out(layer, unfinished / f"{number:03}", rest)
            unfinished.rename(folder)
        size_bytes = sum(each.stat().st_size for each in folder.iterdir())
        return Parcel(folder, name, first, end, size_bytes)

    def _lay_out(self, layer: str, stem: Path, rest: bytes) -> None:
        piece = self._there(layer)
        header = entry_header(entry_name(layer), _size_bytes(piece))
        stem.with_suffix(".0.zst").write_bytes(_compressed(header))
        stem.with_suffix(".1.zst").hardlink_to(piece)
        stem.with_suffix(".2.zst").write_bytes(_compressed(rest))

    def prune(self, layers: Iterable[str]) -> None:
        """Remove all other layers, and the staged pieces."""
        kept = {self._piece(layer) for layer in layers}
        for each in self._layers.iterdir():
            if each not in kept:
                each.unlink()
        for each in self._parcels.iterdir():
            shutil.rmtree(each)

    def _there(self, layer: str) -> Path:
        piece = self._piece(layer)
        assert piece is not None, "checked before with misses()"
        return piece

    def _piece(self, layer: str) -> Path | None:
        return next(self._layers.glob(f"{_hex(layer)}-*.zst"), None)


def _hex(layer: str) -> str:
    return layer.removeprefix("sha256:")


def _size_bytes(piece: Path) -> int:
    return int(piece.stem.partition("-")[2])


def _compressed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(content)
