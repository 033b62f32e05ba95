"""The protocol's version, the phases of a run, and the ids of PCs; messages: minga.messages."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Final

PROTOCOL_VERSION = 3
DEFAULT_PORT = 30005

TRAIN: Final = "train"
WAIT: Final = "wait"
DONE: Final = "done"
STOPPED: Final = "stopped"
FAILED: Final = "failed"
"""The run diverged; its workers get ``stopped``."""


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
