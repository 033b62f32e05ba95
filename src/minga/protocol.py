"""The protocol of ps and worker: its version and the shapes of messages.

A join (JSON frames on TLS)::

    ps      {nonce}
    worker  {proof, protocol, uuid, machine, here, rank, name, hostname, device, ...}
    ps      {welcome: {run_id, rank, settings, ...}}          or {refused: {code, what, hints}}
    worker  {preparing: true} ...  then {data: facts}   or {failed: {code, what}}
    ps      {session: {id, key, port, here, ...}}             or {refused: ...}

In a session every call is ``(message, tensors)``; ``message["do"]`` is one of

    weights   -> full fp32 weights and BatchNorm buffers; sets the reference
    push      -> verdict and, if applied, the encoded reply and the BatchNorm buffers;
                 ``held_s``: seconds that it waited for the others of its round
    snapshot  -> the frozen weights and buffers of the current validation
    result    -> takes the result of a validation or calibration lease
    work      -> the next work only
    progress  -> empty; renews the worker's leases
    leave     -> gives back the worker's leases; ``failed: {code, what}`` is the reason

and every answer carries ``work``: see :class:`Work`.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PROTOCOL_VERSION = 1
DEFAULT_PORT = 30005

TRAIN, WAIT, DONE, STOPPED = "train", "wait", "done", "stopped"
FAILED = "failed"
"""The run diverged; its workers get ``stopped``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The next work of a worker."""

    task: str
    """``train``; ``wait`` (nothing free now); ``done`` (the run is over); ``stopped``."""
    lr: float = 0.0
    steps: int = 1
    """Local optimizer steps of the next window (H)."""
    leases: list[list[Any]] = field(default_factory=list)
    """New leases: ``Lease.to_list()`` each; of training and of validation."""
    snapshot: int = 0
    """Number of the frozen snapshot that validation leases refer to."""
    samples_done: int = 0
    """Samples counted so far, all workers together."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain types only."""
        return asdict(self)


def machine_id() -> str:
    """Return an id of this PC: the same for all its processes and across restarts."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        if path.exists() and (text := path.read_text().strip()):
            return hashlib.sha256(text.encode()).hexdigest()[:16]
    return hashlib.sha256(f"{uuid.getnode()}".encode()).hexdigest()[:16]


def loopback_id() -> str:
    """Return an id of this process's loopback interface: equal for processes that share it.

    A PC can hold several network namespaces (containers, virtual PCs), each with its own.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/net")
    if sys.platform == "linux" and boot.exists() and namespace.exists():
        return f"{boot.read_text().strip()}/{os.readlink(namespace)}"
    return f"{machine_id()}/{socket.gethostname()}"
