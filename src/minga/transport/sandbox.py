"""Close the calling thread, and those that it starts, off from files and programs.

torch RPC runs any operator of torch that a peer names, and some take a path
(``aten::from_file``, ``aten::save``): the unpickler's allow-list does not see them. The kernel's
own fences do: Landlock (which files may be read, none written, no program started, no signal
outside), seccomp (nothing is opened for writing, not even through ``/proc/self/fd``), and no
capabilities. All three bind a thread and its children, never the process: call :func:`restrict`
before the agent's threads exist.

Landlock: https://docs.kernel.org/userspace-api/landlock.html. PyPI's bindings are one development
release of 2023; the kernel's interface is three system calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import site
import struct
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

OPEN = (
    "this system cannot close torch RPC off from files: anybody with the token can read what "
    "this user can, see docs/security.md"
)

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = (13, 14, 15, 15, 16, 16, 16)
"""Number of rights over files that each version of Landlock knows, from the first."""
_SCOPES_FROM = 6
_SCOPES = 0b11  # abstract sockets, signals
_SETTINGS = (
    *("/proc/sys", "/proc/cpuinfo", "/sys/class/net", "/sys/devices"),
    *("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"),
    *("/etc/localtime", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom"),
)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What the kernel granted.

    Args:
        files: Landlock's version; 0 if the kernel or the container engine has none.
        writes: whether seccomp refuses to open files for writing.
    """

    files: int
    writes: bool

    @property
    def complete(self) -> bool:
        """Whether an agent's threads can neither read nor write files."""
        return self.files > 0 and self.writes

    def __str__(self) -> str:
        """Return it in words."""
        parts = [
            f"files closed (Landlock {self.files})" if self.files else "no Landlock",
            "writing closed (seccomp)" if self.writes else "no seccomp",
        ]
        return ", ".join(parts)


def available() -> Sandbox:
    """Try it in a thread that ends at once; return what the kernel granted there."""
    return run_restricted(restrict)


def run_restricted(call: Callable[[], Result]) -> Result:
    """Run a call in a thread of its own, and return or raise what it does.

    For a call that restricts itself: what it starts stays restricted, the caller does not.
    """
    with ThreadPoolExecutor(1, "sandbox") as pool:
        return pool.submit(call).result()


def restrict(readable: Iterable[Path] = ()) -> Sandbox:
    """Restrict the calling thread for good; what the kernel does not offer is left out.

    Args:
        readable: files and folders that may be read beside Python, torch and minga.
    """
    if sys.platform != "linux":
        return Sandbox(0, writes=False)
    _drop_capabilities()
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        return Sandbox(0, writes=False)
    version = _close_files([*_needed(), *readable])
    return Sandbox(version, writes=_close_writing())


def limit_memory(more_bytes: int) -> None:
    """Let this process allocate so much more than it has now, threads' stacks included."""
    if sys.platform != "linux":
        return
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            most = int(line.split()[1]) * 1024 + more_bytes
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if hard != resource.RLIM_INFINITY:
                most = min(most, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _needed() -> list[Path]:
    """Return what Python reads late: its library, packages, and the resolver's settings.

    Never ``sys.path`` itself: it may hold the folder where the command was started, and its keys.
    """
    import torch

    package = Path(__file__).parents[1]
    folders: list[str | Path] = [
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        *site.getsitepackages(),
        package,
    ]
    folders += [Path(torch.__file__).parent, Path(os.__file__).parent, "/usr/lib", "/lib", "/lib64"]
    return [Path(each) for each in (*folders, *_SETTINGS)]


def _close_files(readable: Iterable[Path]) -> int:
    """Apply a Landlock ruleset that only lets these be read; return its version or 0."""
    version = _syscall(_CREATE, None, 0, 1)
    if version < 1:
        return 0
    rights = (1 << _FILE_RIGHTS[min(version, len(_FILE_RIGHTS)) - 1]) - 1
    attribute = struct.pack("QQQ", rights, 0, _SCOPES if version >= _SCOPES_FROM else 0)
    length = 24 if version >= _SCOPES_FROM else 8
    ruleset = _syscall(_CREATE, attribute, length, 0)
    if ruleset < 0:
        return 0
    try:
        for path in readable:
            _allow(ruleset, path)
        return version if _syscall(_RESTRICT, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rights = _READ_FILE | (_READ_DIR if path.is_dir() else 0)
            _syscall(_ADD, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
        finally:
            os.close(descriptor)


# -- seccomp: nothing is opened for writing, no program is started

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OPENING = {
    # by machine: audit number; calls with flags as (number, argument); calls that are refused
    "x86_64": (0xC000003E, [(2, 1), (257, 2)], [85, 437, 59, 322]),
    "aarch64": (0xC00000B7, [(56, 2)], [437, 221, 281]),
}


def _program() -> bytes | None:
    """Return the filter for this machine as BPF; None if it is neither x86-64 nor ARM64."""
    known = _OPENING.get(platform.machine())
    if known is None or sys.platform != "linux":
        return None
    architecture, opening, refused = known
    body = []
    for number, argument in opening:
        body += [
            (_LOAD, 0, 0, _NUMBER),
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_ANY_BIT, 0, 1, _FOR_WRITING),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
    body.append((_LOAD, 0, 0, _NUMBER))
    for number in refused:
        body += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    body.append((_RETURN, 0, 0, _ALLOW))
    head = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),  # a call of another kind (32 bit) has other numbers
    ]
    return b"".join(struct.pack("HBBI", *each) for each in head + body)


def _close_writing() -> bool:
    program = _program()
    if program is None:
        return False
    buffer = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, pointer) == 0


def _drop_capabilities() -> None:
    """Give up every capability: root's would reopen the shared memory through ``/proc``."""
    header = struct.pack("Ii", 0x20080522, 0)
    _libc().capset(header, struct.pack("6I", *([0] * 6)))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    return int(_libc().syscall(ctypes.c_long(number), *map(_word, arguments)))


def _prctl(option: int, *arguments: int | bytes) -> int:
    words = [*map(_word, arguments), *([ctypes.c_ulong(0)] * (4 - len(arguments)))]
    return int(_libc().prctl(ctypes.c_int(option), *words))


def _word(argument: int | bytes | None) -> object:
    return ctypes.c_ulong(argument) if isinstance(argument, int) else argument
