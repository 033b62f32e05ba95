"""An image's files from the engine: the whole image, or the topmost layer alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO, Any

_BUFFER_BYTES = 1 << 20
_CODE, _STACK = "/opt", b"opt/minga/venv/\0"
"""Path of the code in the image, and of the file that follows it there, in the layer below."""
_MOST_CODE_BYTES = 64 << 20
_END = bytes(1024)


def saved(client: Any, tag: str) -> IO[bytes]:
    """Return the output of ``docker save``: all layers, which takes an engine a minute."""
    return io.BufferedReader(Chunks(client.api.get_image(tag)), _BUFFER_BYTES)


def topmost(client: Any, tag: str) -> IO[bytes]:
    """Return the same with only the presumed layer of the code, in a second.

    A layer is a tar of its files, in the order of names, and so is a copy out of a container:
    up to the first file of the layer below they are the same bytes. The caller compares digests,
    so an engine that writes other bytes costs only this attempt.
    """
    container = client.api.create_container(tag)["Id"]
    try:
        chunks, _ = client.api.get_archive(container, _CODE)
        content, end = b"", -1
        while end < 0 and len(content) < _MOST_CODE_BYTES and (chunk := next(chunks, b"")):
            content += chunk
            end = _stack_entry(content)
        chunks.close()
    finally:
        client.api.remove_container(container)
    layer = content[: max(end, 0)] + _END
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        member = tarfile.TarInfo("layer.tar")
        member.size = len(layer)
        writer.addfile(member, io.BytesIO(layer))
    archive.seek(0)
    return archive


def _stack_entry(content: bytes) -> int:
    """Return the offset of the tar's first entry of the layer below, -1 if not found yet."""
    at = content.find(_STACK)
    while at >= 0 and at % tarfile.BLOCKSIZE:  # source code may contain it, as this file does
        at = content.find(_STACK, at + 1)
    return at


class Chunks(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with some of the next bytes; 0 at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
