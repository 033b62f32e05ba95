"""What a thread in the sandbox can reach, tried with torch's own operators; each try in a process
of its own, since nothing takes a restriction back."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.io  # noqa: F401  (registers operators, as the networks do)

from minga.ps.parameters import SharedParameters
from minga.transport import sandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not sandbox.available().complete,
    reason="this kernel, or its container engine, has no Landlock or no seccomp",
)
REJOINS = 40
READ = torch.uint8
PATHS = {"filename", "file", "path", "fname", "dir", "folder"}


def elsewhere(call: Callable[..., Any], *arguments: object) -> Any:
    """Return what a call returns in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision.io"])  # once for all of them
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *arguments).result()


def refused(call: Callable[[], object]) -> bool:
    """Whether a call fails; the control shows that nothing but the sandbox makes it fail."""
    try:
        call()
    except (PermissionError, RuntimeError):
        return True
    return False


def reads(path: Path | str) -> bool:
    """Whether ``aten::from_file`` reads a file."""
    return not refused(lambda: torch.from_file(str(path), shared=False, size=1, dtype=READ))


def writes(path: Path, call: Callable[[], object]) -> bool:
    """Whether a call makes a file; ``aten::save`` says nothing if it could not."""
    call()
    return path.exists()


def save_in_torchscript(tensor: torch.Tensor, path: str) -> None:
    torch.save(tensor, path)


def attacks(secret: Path, *, closed: bool) -> dict[str, bool]:
    """Return which attacks are refused."""
    weights, buffers = torch.zeros(100), torch.zeros(4)
    shared = SharedParameters.create(weights, buffers)
    memory = f"/proc/self/fd/{shared.fileno()}"
    _, pipe = os.pipe()
    save = torch.jit.script(save_in_torchscript)
    if closed:
        assert sandbox.restrict().complete
    other, saved = secret.with_name("made"), secret.with_name("saved")
    return {
        "from_file": not reads(secret),
        "from_file, to write": refused(
            lambda: torch.from_file(str(other), shared=True, size=1, dtype=READ)
        ),
        "from_file.out": refused(
            lambda: torch.ops.aten.from_file.out(str(secret), False, 1, out=torch.zeros(1))
        ),
        "image.read_file": refused(lambda: torch.ops.image.read_file(str(secret))),
        "image.write_file": refused(
            lambda: torch.ops.image.write_file(str(other), torch.zeros(1, dtype=READ))
        ),
        "save": not writes(saved, lambda: save(torch.zeros(1), str(saved))),
        "the weights, to read": not reads(memory),
        "the weights, to write": refused(
            lambda: torch.from_file(memory, shared=True, size=1, dtype=READ)
        ),
        "a pipe, to write": refused(lambda: os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY)),
        "another process": refused(lambda: os.listdir(f"/proc/{os.getppid()}/fd")),
        "a signal": refused(lambda: os.kill(os.getppid(), 0)),
        "a program": refused(lambda: os.posix_spawn("/bin/true", ["true"], {})),
        "a removal": refused(secret.unlink),
    }


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "ps.key"
    path.write_bytes(b"a key")
    return path


def test_in_the_sandbox_every_attack_is_refused(secret: Path) -> None:
    found = elsewhere(_attacks_in_the_sandbox, secret)
    assert found == dict.fromkeys(found, True)


def test_outside_of_it_they_succeed(secret: Path) -> None:
    """The control: without the sandbox a token holder reads and writes any file of the user."""
    found = elsewhere(_attacks_outside, secret)
    open_to_root = {"the weights, to read", "the weights, to write"}  # the memory's mode is 0
    open_to_all = {*found} - open_to_root
    assert [name for name in open_to_all if found[name]] == []


def _attacks_in_the_sandbox(secret: Path) -> dict[str, bool]:
    return attacks(secret, closed=True)


def _attacks_outside(secret: Path) -> dict[str, bool]:
    return attacks(secret, closed=False)


def test_no_other_operator_of_torch_takes_a_path() -> None:
    """Of the whole registry, torchvision's too: a new one would have to be tried above."""
    found = {
        f"{schema.name}.{schema.overload_name}".rstrip(".")
        for schema in torch._C._jit_get_all_schemas()
        for argument in schema.arguments
        if str(argument.type) == "str" and set(argument.name.split("_")) & PATHS
    }
    assert found == {
        "aten::from_file",
        "aten::from_file.out",
        "aten::save",
        "image::read_file",
        "image::write_file",
    }


def test_python_and_torch_still_find_what_they_load_late() -> None:
    assert elsewhere(_load_late)


def _load_late() -> bool:
    assert sandbox.restrict().complete
    assert "torch.distributed.rpc.rref_proxy" not in sys.modules
    from torch.distributed.rpc import rref_proxy

    return rref_proxy is not None


def test_a_process_that_rejoins_often_stays_open_itself(secret: Path) -> None:
    """The kernel takes 16 layers per thread: each join's agent has a thread of its own."""
    assert elsewhere(_rejoin_often, secret) == [[False] * REJOINS, True]


def _rejoin_often(secret: Path) -> list[object]:
    def restrict_and_read() -> bool:
        assert sandbox.restrict().complete
        inherited: list[bool] = []
        started = threading.Thread(target=lambda: inherited.append(reads(secret)))
        started.start()
        started.join()
        return inherited[0]

    return [
        [sandbox.run_restricted(restrict_and_read) for _ in range(REJOINS)],
        reads(secret),
    ]


def test_a_process_with_a_memory_limit_cannot_take_more() -> None:
    assert elsewhere(_take_memory) == [True, "can't allocate memory"]


def _take_memory() -> list[object]:
    sandbox.limit_memory(256 << 20)
    small = torch.zeros(10 << 20, dtype=READ)
    try:
        torch.ones(1 << 30, dtype=READ)
    except RuntimeError as error:
        return [small.numel() > 0, "can't allocate memory" if "allocate" in str(error) else error]
    return [False, "allocated"]
