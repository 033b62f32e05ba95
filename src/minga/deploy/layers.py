"""What of an image a host lacks, and how a ``docker load`` archive is put together. No I/O.

A host's engine finds a layer by the chain of all layers below it, so of what a host has only
the longest common prefix counts. ``docker load`` takes an archive whose manifest names all
layers but which carries only the missing ones. The archive is cut into *pieces*, one per
layer plus the head, which are compressed once and joined by ``cat``: zstd allows several
compressed streams one after the other.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Sequence

_BLOCK_BYTES = 512


def shared_prefix(have: Sequence[str], want: Sequence[str]) -> int:
    """Return how many first layers both chains share."""
    count = 0
    for ours, theirs in zip(have, want, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def missing_layers(images: Iterable[Sequence[str]], want: Sequence[str]) -> tuple[str, ...]:
    """Return the layers of ``want`` that a host with these images must be sent, each once."""
    known = max((shared_prefix(have, want) for have in images), default=0)
    return tuple(dict.fromkeys(layer for layer in want[known:] if layer not in want[:known]))


def entry_name(digest: str) -> str:
    """Return what a layer (``sha256:...``) is called inside the archive."""
    return f"{digest.removeprefix('sha256:')}.tar"


def entry_header(name: str, size_bytes: int) -> bytes:
    """Return a file's tar header; the content and :func:`padding` follow."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info.tobuf(format=tarfile.GNU_FORMAT)


def padding(size_bytes: int) -> bytes:
    """Return the zeros that fill a tar member's last block."""
    return bytes(-size_bytes % _BLOCK_BYTES)


def head(config: bytes, tag: str) -> bytes:
    """Return the end of the archive: the image's configuration and the manifest.

    Args:
        config: the image's configuration, byte for byte: its SHA-256 is the image's id.
        tag: ``name:tag`` that the host gives the image.
    """
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    layers = [entry_name(digest) for digest in chain(config)]
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": layers}]).encode()
    members = ((name, config), ("manifest.json", manifest))
    content = b"".join(entry_header(n, len(c)) + c + padding(len(c)) for n, c in members)
    return content + bytes(2 * _BLOCK_BYTES)


def chain(config: bytes) -> list[str]:
    """Return the image's layers from its configuration, lowest first."""
    return list(json.loads(config)["rootfs"]["diff_ids"])
