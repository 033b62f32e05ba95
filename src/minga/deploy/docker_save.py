"""An image's files as the engine hands them out: all of it, or the topmost layer alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO, Any

_BUFFER_BYTES = 1 << 20
_CODE, _STACK = "/opt", b"opt/minga/venv/\0"
"""Where the Dockerfile puts the code, and what comes behind it there: the layer below."""
_MOST_CODE_BYTES = 64 << 20
_END = bytes(1024)


def saved(client: Any, tag: str) -> IO[bytes]:
    """Return what ``docker save`` writes: all layers, which takes an engine a minute."""
    return io.BufferedReader(Chunks(client.api.get_image(tag)), _BUFFER_BYTES)


def topmost(client: Any, tag: str) -> IO[bytes]:
    """Return the same with nothing but what should be the layer of the code, in a second.

    A layer is a tar of what it adds, in the order of names, and so is a copy out of a container:
    up to where the layer below begins they are the same bytes. Whoever takes it compares digests,
    so that an engine which writes them otherwise costs no more than this try.
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
    """Return where the tar's entry of the layer below begins, -1 if it is not there yet."""
    at = content.find(_STACK)
    while at >= 0 and at % tarfile.BLOCKSIZE:  # code may speak of it, as this file does
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
