"""Pieces of an image on disk, compressed once: ``build/image/``.

``layers/<digest>-<size>.zst`` is one layer's part of a ``docker load`` archive, and
``send/<what>/`` has links to the pieces that a host lacks, in the order to join them in.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from minga.deploy.layers import entry_header, entry_name, head, padding

_CHUNK_BYTES = 1 << 20
_LEVEL = 3
_METADATA_BYTES = 4 << 20
"""Files of an image that are no layer are far smaller than this."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one host is sent: ``cat folder/* | zstd -dc | docker load``."""

    folder: Path
    size_bytes: int


class Staging:
    """The pieces of images under one folder. For one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._layers = folder / "layers"
        self._parcels = folder / "send"
        for each in (self._layers, self._parcels):
            each.mkdir(parents=True, exist_ok=True)

    def lacks(self, layers: Iterable[str]) -> bool:
        """Return whether one of these layers is not staged."""
        return any(self._piece(layer) is None for layer in layers)

    def take(
        self, saved: IO[bytes], layers: Sequence[str], *, skip_staged: bool = True
    ) -> dict[str, bytes]:
        """Read what ``docker save`` writes: stage the layers, return the small files by name.

        A file that by its size is a layer staged already is skipped. Should two layers be of
        one size, then one may lack afterwards: take it again without skipping.
        """
        small: dict[str, bytes] = {}
        staged = {_size_bytes(piece) for layer in layers if (piece := self._piece(layer))}
        with tarfile.open(fileobj=saved, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:  # a folder, or a link to a layer of the same content
                    continue
                if skip_staged and member.size > _METADATA_BYTES and member.size in staged:
                    continue
                small |= self._add(member, content, layers)
        return small

    def _add(
        self, member: tarfile.TarInfo, content: IO[bytes], layers: Sequence[str]
    ) -> dict[str, bytes]:
        """Compress one file, keep it if it is one of the layers; return it if it is small."""
        part = self._layers / "part"
        digest, kept = _LayerDigest(), b""
        compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=-1)
        with part.open("wb") as file, compressor.stream_writer(file) as out:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
                if member.size <= _METADATA_BYTES:
                    kept += chunk
            out.write(padding(member.size))
        if str(digest) in layers:
            part.replace(self._layers / f"{_hex(str(digest))}-{member.size}.zst")
        part.unlink(missing_ok=True)
        return {member.name: kept} if kept else {}

    def parcel(self, layers: Sequence[str], config: bytes, tag: str) -> Parcel:
        """Lay out the pieces that complete the image on a host which lacks these layers."""
        end = head(config, tag)
        key = hashlib.sha256(end + "".join(layers).encode()).hexdigest()[:16]
        folder = self._parcels / key
        if not folder.exists():
            part = self._parcels / f"{key}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for number, layer in enumerate(layers):
                self._lay_out(layer, part / f"{number:03}")
            (part / "999.zst").write_bytes(_compressed(end))
            part.rename(folder)
        return Parcel(folder, sum(each.stat().st_size for each in folder.iterdir()))

    def _lay_out(self, layer: str, stem: Path) -> None:
        piece = self._piece(layer)
        assert piece is not None, "asked before with lacks()"
        header = entry_header(entry_name(layer), _size_bytes(piece))
        stem.with_suffix(".0.zst").write_bytes(_compressed(header))
        stem.with_suffix(".1.zst").hardlink_to(piece)

    def prune(self, layers: Iterable[str]) -> None:
        """Remove all but these layers, and what was laid out for hosts."""
        kept = {self._piece(layer) for layer in layers}
        for each in self._layers.iterdir():
            if each not in kept:
                each.unlink()
        for each in self._parcels.iterdir():
            shutil.rmtree(each)

    def _piece(self, layer: str) -> Path | None:
        return next(self._layers.glob(f"{_hex(layer)}-*.zst"), None)


class _LayerDigest:
    """The digest that an image's configuration names: of the plain layer, zipped or not."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._unzip: zlib._Decompress | None = None
        self._started = False

    def update(self, chunk: bytes) -> None:
        if not self._started:
            self._started = True
            if chunk.startswith(b"\x1f\x8b"):
                self._unzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._hash.update(self._unzip.decompress(chunk) if self._unzip else chunk)

    def __str__(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _hex(layer: str) -> str:
    return layer.removeprefix("sha256:")


def _size_bytes(piece: Path) -> int:
    return int(piece.stem.partition("-")[2])


def _compressed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(content)
