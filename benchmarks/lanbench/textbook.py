"""The parameter server of torch's RPC tutorials: one process, fp32, push and pull each step.

python -m lanbench.textbook MASTER RANK WORLD SUBJECT STEP_S       rank 0 is the ps
"""

from __future__ import annotations

import os
import sys
import threading

import torch
from torch.distributed import rpc

from lanbench.fake_device import SUBJECTS, Device, Subject
from lanbench.steps import told

_WAIT_S = 3600.0
_RATE = 1e-3


class ParameterServer:
    """Weights under a lock; a push is applied when it comes, and answered with the weights."""

    def __init__(self, parameters: int) -> None:
        self.weights = torch.zeros(parameters)
        self.lock = threading.Lock()

    def push_and_pull(self, gradient: torch.Tensor) -> torch.Tensor:
        """Apply one gradient; return the weights."""
        with self.lock:
            self.weights.sub_(gradient, alpha=_RATE)
            return self.weights.clone()


_server: ParameterServer | None = None


def push_and_pull(gradient: torch.Tensor) -> torch.Tensor:
    """Run at the ps."""
    assert _server is not None, "called at the ps"
    return _server.push_and_pull(gradient)


def train(subject: Subject, step_s: float) -> None:
    """Compute, push and pull, for ever."""
    device, gradient = Device(step_s), torch.randn(subject.parameters)

    def step() -> None:
        device.step()
        gradient.copy_(rpc.rpc_sync("ps", push_and_pull, args=(gradient,), timeout=_WAIT_S))

    told(step)


def main(rank: int, world: int, subject: Subject, step_s: float) -> None:
    global _server
    torch.set_num_threads(1)
    if rank == 0:
        _server = ParameterServer(subject.parameters)
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=max(16, world), rpc_timeout=_WAIT_S, _transports=["uv"]
    )
    name = "ps" if rank == 0 else f"worker{rank}"
    rpc.init_rpc(name, rank=rank, world_size=world, rpc_backend_options=options)
    if rank:
        train(subject, step_s)
    threading.Event().wait()


if __name__ == "__main__":
    master, rank, world, subject, step_s = sys.argv[1:]
    os.environ.update(MASTER_ADDR=master, MASTER_PORT="29500")
    # the module by its name: that is how the functions are called from another PC
    from lanbench import textbook

    textbook.main(int(rank), int(world), SUBJECTS[subject], float(step_s))
