"""torch RPC between exactly two processes; the only module that imports it.

A session is a 2-member *dynamic* group (``world_size=None``): no Gloo, no collective, no
barrier. Its TensorPipe agents listen on loopback; forwarders carry their bytes through TLS.
RPC unpickles what it receives, and unpickling is code execution, so every process that runs
an agent installs an unpickler that allows only the names of a join and :func:`start_call`.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import rpc
from torch.distributed.rendezvous import register_rendezvous_handler

from minga.messages import Answer, Signed, decode, encode
from minga.timing import RPC_JOIN_S
from minga.transport import sandbox

PS = "ps"
WORKER = "worker"

Tensors = tuple[torch.Tensor, ...]
Handler = Callable[[str, Tensors], tuple[Answer, Tensors]]

_SCHEME = "minga"
_THREADS = 4
_LOST_CHECK_S = 0.5

_ALLOWED = {
    ("minga.transport.rpc", "_handle"),
    ("torch.distributed.rpc.internal", "PythonUDF"),
    ("torch.distributed.rpc.internal", "RemoteException"),
    ("torch.distributed.rpc.internal", "_InternalRPCPickler"),
    ("torch.distributed.rpc.backend_registry", "_get_device_infos"),
    ("torch.distributed.rpc._utils", "_update_group_membership"),
    ("torch._C._distributed_rpc", "WorkerInfo"),
    ("builtins", "RuntimeError"),
    ("builtins", "ValueError"),
    ("builtins", "ConnectionError"),
    ("builtins", "PermissionError"),
}

_store: dist.Store | None = None
_handler: Handler | None = None
_refused: Callable[[str], None] | None = None


def start(name: str, store: dist.Store, *, handler: Handler | None = None) -> None:
    """Start this process's agent and, on the worker, join the ps.

    Args:
        name: PS or WORKER.
        store: this session's rendezvous store.
        handler: answers the other side's calls; runs on RPC threads.

    Raises:
        RuntimeError: the group was not formed within 30 s, or an agent runs already.
    """
    global _store, _handler
    _install()
    _store, _handler = store, handler
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=_THREADS,
        rpc_timeout=RPC_JOIN_S,
        init_method=f"{_SCHEME}://",
        _transports=["uv"],  # one listener on loopback; no shared memory, no 16 more ports
        _channels=["basic"],
    )
    rpc.init_rpc(name, rank=0 if name == PS else 1, rpc_backend_options=options)


def start_restricted(name: str, store: dist.Store) -> None:
    """Start the agent with its threads in the sandbox, and this process outside of it.

    One thread restricts itself and starts the agent: the kernel takes 16 layers per thread, so a
    process that restricted itself at each rejoin would end at the 17th. Raises like :func:`start`.
    """

    def restrict_and_start() -> None:
        sandbox.restrict()
        start(name, store)

    sandbox.run_restricted(restrict_and_start)


def on_refused(report: Callable[[str], None]) -> None:
    """Report every name that the unpickler refuses."""
    global _refused
    _refused = report


def own_port(store: dist.Store, name: str) -> int:
    """Return the loopback port of this process's agent, as published.

    Raises:
        RuntimeError: the agent listens on another address than loopback.
    """
    published = store.get(f"addrs/{name}").decode()
    host, _, port = published.rpartition("://")[2].rpartition(":")
    if host != "127.0.0.1":
        raise RuntimeError(f"torch RPC listens on {published}, not on loopback")
    return int(port)


class Pending:
    """A call in progress."""

    def __init__(self, future: torch.futures.Future[Any], lost: threading.Event) -> None:
        self._future = future
        self._lost = lost
        self._finished = threading.Event()
        self.finished_s = 0.0
        """Time of the answer, by the monotonic clock."""
        future.add_done_callback(self._note)

    @property
    def done(self) -> bool:
        """Whether :meth:`result` returns or raises immediately."""
        return self._finished.is_set() or self._lost.is_set()

    def result(self) -> tuple[Answer, Tensors]:
        """Wait for the answer.

        Raises:
            ConnectionError: the link broke, the handler failed, the call timed out, or the session
                was lost meanwhile (torch itself waits for a frozen peer).
        """
        while not self._finished.wait(_LOST_CHECK_S):
            if self._lost.is_set():
                raise ConnectionError("the session is lost")
        try:
            body, answered = self._future.wait()
        except RuntimeError as error:
            raise broken_link(error) from error
        return decode(body, Answer), answered

    def _note(self, _: object) -> None:
        self.finished_s = time.monotonic()
        self._finished.set()


def start_call(
    signed: Signed, tensors: Tensors, timeout_s: float, lost: threading.Event
) -> Pending:
    """Call the ps's handler; the tensors must not change until the call is done.

    Args:
        signed: the call, with the session's key.
        tensors: on the CPU.
        timeout_s: after which the call fails.
        lost: set when the session is lost.

    Raises:
        ConnectionError: there is no agent any more.
    """
    try:
        future = rpc.rpc_async(
            PS, _handle, args=(encode(signed).decode(), tensors), timeout=timeout_s
        )
    except RuntimeError as error:
        raise broken_link(error) from error
    return Pending(future, lost)


def broken_link(error: RuntimeError, what: str = "") -> ConnectionError:
    """Return torch's RuntimeError as a ConnectionError with its first line."""
    return ConnectionError(what + next(iter(str(error).splitlines()), type(error).__name__))


def stop() -> None:
    """End this process's agent without a handshake (``graceful=True`` waits for dead peers)."""
    if rpc.api._is_current_rpc_agent_set():
        rpc.shutdown(graceful=False)


def _handle(body: str, tensors: Tensors) -> tuple[str, Tensors]:
    """Handle a call on the called side; the only function of minga that a peer may name."""
    assert _handler is not None, "a call arrived before the handler was set"
    answer, answered = _handler(body, tensors)
    return encode(answer).decode(), answered


class _AllowListUnpickler(pickle.Unpickler):
    """Unpickler with an allow-list of names for joins and calls; refuses all others by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _tensor_receiver  # the pickle of a bound class method
        _refuse(f"{module}.{name}")


def _tensor_receiver(owner: object, name: str) -> Any:
    internal = rpc.internal
    if owner is internal._InternalRPCPickler and name == "_tensor_receiver":
        return internal._InternalRPCPickler._tensor_receiver
    _refuse(f"getattr({owner!r}, {name!r})")


def _refuse(name: str) -> NoReturn:
    if _refused is not None:
        _refused(name)
    raise pickle.UnpicklingError(f"{name} is not allowed in a minga session")


def _install() -> None:
    """Guard unpickling, register the rendezvous, pin TensorPipe to loopback; once per process."""
    if rpc.internal._unpickler is _AllowListUnpickler:
        return
    rpc.internal._unpickler = _AllowListUnpickler
    os.environ["TP_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    register_rendezvous_handler(_SCHEME, _rendezvous)


def _rendezvous(
    url: str, rank: int = -1, world_size: int = -1, **_: Any
) -> Iterator[tuple[dist.Store, int, int | None]]:
    assert _store is not None, "start() sets the store"
    yield _store, rank, None
