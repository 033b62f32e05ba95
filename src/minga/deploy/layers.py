"""The layers that a host is missing, and the parts of a ``docker load`` archive. No I/O.

A host's engine finds a layer by the chain of all layers below it, so only the longest common
prefix of its layers counts. ``docker load`` takes an archive whose manifest names all
layers but which contains only the topmost, if the host has the others. So each layer is sent in an
archive of its own, for an image that ends with it, and is unpacked while the next is sent.
Archives have the layout of Docker 25: Docker's own store reads ``manifest.json``,
containerd's reads ``index.json`` (without one it refuses an incomplete image).

An archive is cut into *pieces*, which are compressed once and joined by ``cat``: zstd allows
several compressed streams one after the other.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_BLOCK_BYTES = 512
_OCI = "application/vnd.oci.image"


def shared_prefix(have: Sequence[str], want: Sequence[str]) -> int:
    """Return the length of the common prefix of both chains."""
    count = 0
    for ours, theirs in zip(have, want, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def missing_layers(images: Iterable[Sequence[str]], want: Sequence[str]) -> tuple[str, ...]:
    """Return the layers of ``want`` to send to a host with these images."""
    return tuple(want[max((shared_prefix(have, want) for have in images), default=0) :])


def entry_name(digest: str) -> str:
    """Return the name of a layer (``sha256:...``) inside the archive."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def entry_header(name: str, size_bytes: int) -> bytes:
    """Return a file's tar header; the content and :func:`padding` follow."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info.tobuf(format=tarfile.GNU_FORMAT)


def padding(size_bytes: int) -> bytes:
    """Return the zeros that fill a tar member's last block."""
    return bytes(-size_bytes % _BLOCK_BYTES)


def head(config: bytes, tag: str, sizes: Mapping[str, int]) -> bytes:
    """Return the end of the archive: the image's configuration and the manifests.

    Args:
        config: the image's configuration, byte for byte.
        tag: ``name:tag`` of the image on the host.
        sizes: bytes of the image's layers, by digest.
    """
    layers = chain(config)
    oci = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _described("config.v1+json", config),
        "layers": [
            {"mediaType": f"{_OCI}.layer.v1.tar", "digest": layer, "size": sizes[layer]}
            for layer in layers
        ],
    }
    manifest = json.dumps(oci).encode()
    names = {
        "io.containerd.image.name": f"docker.io/library/{tag}",
        "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.index.v1+json",
        "manifests": [{**_described("manifest.v1+json", manifest), "annotations": names}],
    }
    docker = {
        "Config": entry_name(_digest(config)),
        "RepoTags": [tag],
        "Layers": [entry_name(layer) for layer in layers],
    }
    members = {
        entry_name(_digest(config)): config,
        entry_name(_digest(manifest)): manifest,
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        "manifest.json": json.dumps([docker]).encode(),
    }
    content = b"".join(entry_header(n, len(c)) + c + padding(len(c)) for n, c in members.items())
    return content + bytes(2 * _BLOCK_BYTES)


def _described(kind: str, content: bytes) -> dict[str, Any]:
    """Return OCI's descriptor of a blob."""
    return {"mediaType": f"{_OCI}.{kind}", "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def part(config: bytes, count: int) -> bytes:
    """Return the configuration of an image that has only the first ``count`` layers."""
    whole = json.loads(config)
    whole.pop("history", None)
    whole["rootfs"]["diff_ids"] = chain(config)[:count]
    return json.dumps(whole).encode()


def chain(config: bytes) -> list[str]:
    """Return the image's layers from its configuration, lowest first."""
    return list(json.loads(config)["rootfs"]["diff_ids"])
