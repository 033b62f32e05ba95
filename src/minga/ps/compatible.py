"""Compatibility of ps and worker: the same protocol, and the same torch."""

from __future__ import annotations

import torch

from minga import __version__
from minga.errors import Hint, Refused
from minga.messages import Version
from minga.protocol import PROTOCOL_VERSION


def require_compatible(hello: Version, host: str) -> None:
    """Raise Refused unless a worker with this hello is compatible.

    torch guarantees nothing about its RPC between two versions; a patch release, and a build for
    another device (``2.13.0+cpu``, ``2.13.1+cu126``), make no difference.

    Raises:
        Refused: ``protocol-differs`` or ``torch-differs``; both sides' versions are named.
    """
    if hello.protocol != PROTOCOL_VERSION:
        raise Refused(
            f"{host} has minga {hello.minga}, which speaks protocol {hello.protocol}; "
            f"this ps has minga {__version__}, which speaks {PROTOCOL_VERSION}",
            code="protocol-differs",
            hints=(Hint("the same version on both?", "minga --version"),),
        )
    here, there = str(torch.__version__), hello.torch
    if _release(here) != _release(there):
        raise Refused(
            f"{host} has torch {there}, this ps has torch {here}",
            code="torch-differs",
            hints=(Hint("the same one on both?", "make clean setup"),),
        )


def _release(version: str) -> list[str]:
    """Return major and minor number of a version."""
    return version.partition("+")[0].split(".")[:2]
