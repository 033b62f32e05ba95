"""A real training on PCs of given speeds: by minga in its modes, or by DDP/Gloo."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lanbench.fake_device import SUBJECTS
from lanbench.place import Place, place
from lanbench.systems import PORT, STEP_S, seconds_of, whole_lines
from minga.tasks.zoo import sizes
from minga.transport.identity import Identity

BATCH = 32
_LIMIT_S = 1800.0
_LOOK_S = 0.2
_GIGABIT = 1e9


@dataclass(frozen=True)
class Lesson:
    """What is trained.

    Args:
        data: folder of the images.
        epochs: over it.
        seed: of weights and order.
        every_epochs: between two validations.
        enough: accuracy with which the lesson is over before its end.
    """

    data: str
    epochs: int
    seed: int = 0
    every_epochs: float = 0.25
    enough: float = 1.1


@dataclass(frozen=True)
class Point:
    """A validation: seconds from when all were there until it began, samples, accuracy."""

    seconds: float
    samples: int
    accuracy: float


def link_bits(classes: int, image_size: int, step_s: float) -> float:
    """Return the rate at which this model's bytes take as much of a step as ResNet-18's do.

    That is ResNet-18/200, 128 ms a step, on 1 Gbit/s.
    """
    parameters = sizes("small-cnn", classes, image_size)[0]
    return _GIGABIT * parameters / SUBJECTS["resnet18"].parameters * STEP_S / step_s


def by_minga(
    lesson: Lesson,
    steps_s: tuple[float, ...],
    rate_bits: float = _GIGABIT,
    *flags: str,
    **environment: str,
) -> list[Point]:
    """Train with a real ps and a real worker on each PC; return the validations.

    Args:
        lesson: what.
        steps_s: seconds of a local step, of each PC.
        rate_bits: of all links.
        flags: of the ps, on top of minga's defaults.
        environment: of the ps.
    """
    with place(len(steps_s) + 1, rate_bits) as there:
        identity = Identity.load_or_create(there.folder / "state")
        there.start(
            0,
            "minga",
            "ps",
            f"--port={PORT}",
            f"--runs={there.folder / 'runs'}",
            f"--state={there.folder / 'state'}",
            f"--world-size={len(steps_s) + 1}",
            "--config=none",
            "--model.name=small-cnn",
            f"--data.path={lesson.data}",
            "--data.augment=none",
            f"--train.batch_size={BATCH}",
            f"--train.epochs={lesson.epochs}",
            f"--train.seed={lesson.seed}",
            f"--evaluation.every_epochs={lesson.every_epochs}",
            *flags,
            **environment,
        )
        for rank, step_s in enumerate(steps_s, 1):
            where = (f"--address={there.pcs[0].address}", f"--port={PORT}", f"--rank={rank}")
            runs = f"--runs={there.folder / f'worker{rank}'}"
            words = (step_s, "worker", *where, "--device=cpu", runs)
            there.start(rank, "lanbench.paced", *words, MINGA_TOKEN=str(identity.secret))

        finish(there, lambda: reached(events_of(there), lesson.enough))
        return points_of(events_of(there), len(steps_s))


def events_of(there: Place) -> list[dict[str, Any]]:
    """Return what the ps's run has told so far."""
    paths = (there.folder / "runs").glob("*/events.jsonl")
    return [event for path in paths for event in whole_lines(path)]


def points_of(events: list[dict[str, Any]], workers: int) -> list[Point]:
    """Return the validations of a run in which nobody was refused or lost."""
    old = [each for each in events if (each["kind"], each.get("reason")) == ("refused", "too old")]
    assert not old, "no PC is refused for being as slow as it is"
    joins = [seconds_of(each["time"]) for each in events if each["kind"] == "worker_join"]
    assert len(joins) == workers, "nobody came twice"
    frozen = {  # when the weights were as they were judged: DDP's points have that time, too
        each["samples_done"]: seconds_of(each["time"]) - max(joins)
        for each in events
        if each["kind"] == "evaluation_start"
    }
    return [
        Point(frozen[each["samples_done"]], each["samples_done"], each["accuracy"])
        for each in events
        if each["kind"] == "evaluation"
    ]


def by_ddp(lesson: Lesson, steps_s: tuple[float, ...], rate_bits: float) -> list[Point]:
    """Train with DDP's exchange; return rank 0's validations."""
    world = len(steps_s)
    with place(world, rate_bits) as there:
        for rank, step_s in enumerate(steps_s):
            words = (there.pcs[0].address, rank, world, step_s, json.dumps(asdict(lesson)))
            there.start(rank, "lanbench.ddp_training", *words)
        log = there.log(0)
        finish(there, lambda: reached(whole_lines(log), lesson.enough))
        return [Point(**line) for line in whole_lines(log)]


def reached(lines: Iterable[dict[str, Any]], accuracy: float) -> bool:
    """Whether a validation found this accuracy."""
    return any(line.get("accuracy", 0.0) >= accuracy for line in lines)


def finish(there: Place, enough: Callable[[], bool]) -> None:
    """Return when every process has ended well, or it is enough.

    Raises:
        RuntimeError: a process failed, or goes on for more than 30 min.
    """
    deadline = time.monotonic() + _LIMIT_S
    for number, pc in enumerate(there.pcs):
        for process in pc.processes:
            while process.poll() is None:
                if enough():
                    return
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{pc.name} goes on for ever")
                time.sleep(_LOOK_S)
            if process.returncode:
                said = there.log(number).read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{pc.name} ended with {process.returncode}:\n{said}")


def seconds_to(points: list[Point], accuracy: float) -> float | None:
    """Return when this accuracy was first reached, on the line between two validations."""
    before = Point(0.0, 0, 0.0)
    for each in points:
        if each.accuracy >= accuracy:
            share = (accuracy - before.accuracy) / (each.accuracy - before.accuracy)
            return before.seconds + share * (each.seconds - before.seconds)
        before = each
    return None


def write(path: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write results."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
