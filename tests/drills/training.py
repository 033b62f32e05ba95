"""The training that the drills disturb, and how it must end all the same."""

from __future__ import annotations

import signal
from collections.abc import Callable

from cluster.harness import Cluster, sessions, wait_until
from cluster.steps import Steps

TRAIN, EPOCHS = 1442, 2
SETTINGS = {
    "model__name": "resnet18",
    "model__stem": "stock",
    "train__epochs": EPOCHS,
    "train__batch_size": 64,
    "exchange__local_steps": 1,
    "evaluation__every_epochs": 0.5,
    "evaluation__recalibration_images": 128,
    "checkpoint__every_s": 2,
    "ledger__lease_s": 15,
}
"""A push of 11 MB after every step, and much of it: most of the time something is on its way."""
STEP_S = 0.5

Faulty = Callable[..., None]


def start(lan: Cluster, *ranks: int, steps: Steps | None = None) -> None:
    """Start the ps and these workers."""
    lan.start_ps(world_size=1 + len(ranks))
    for rank in ranks:
        lan.start_worker(rank, entry=steps.entry if steps else None)


def start_together(lan: Cluster, *ranks: int, steps: Steps) -> None:
    """Start the ps and these workers, whose first step begins when all have joined."""
    together = lan.folder / "together"
    start(lan, *ranks, steps=steps.gated(0, together))
    lan.joined(*ranks)
    together.touch()


def died(lan: Cluster, process: str, name: str) -> None:
    """Wait until a process has killed itself at this point."""
    started = lan.processes[process]
    wait_until(lambda: started.poll() is not None, f"{name} to strike", timeout_s=200)
    assert started.returncode == -signal.SIGKILL, lan.log(process)


def kill_and_restart(lan: Cluster, victim: str) -> None:
    """Kill ``ps``, ``worker<rank>`` or a ``session``, which comes back by itself."""
    if victim == "session":
        wait_until(lambda: sessions(lan.processes["ps"]), "a session")[0].kill()
        return
    lan.kill(victim)
    if victim == "ps":
        lan.start_ps(world_size=3)
    else:
        lan.start_worker(int(victim[-1]))


def complete(
    lan: Cluster, *workers: int, samples: int = TRAIN, epochs: int = EPOCHS, seed: int = 0
) -> None:
    """Wait for everybody's end; audit what counted."""
    assert lan.finish("ps", 300) == 0, lan.log("ps")
    for rank in workers:
        assert lan.finish(f"worker{rank}") == 0, lan.log(f"worker{rank}")
    found = lan.audit(samples, epochs, seed)
    assert found.exact, found.problems
    assert lan.summary()["samples"] == epochs * samples
