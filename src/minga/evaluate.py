"""``minga eval``: measure a checkpoint on a validation set, in this process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from minga.data.dataset import open_data
from minga.data.leases import Lease
from minga.data.loader import evaluation_batches
from minga.errors import Hint, Refused
from minga.ps import checkpoint
from minga.settings.schema import DataConfig
from minga.tasks import zoo
from minga.worker.replica import Replica, pick_device


def evaluate_checkpoint(
    path: Path, data: DataConfig | None, device: str | None, batch_size: int
) -> dict[str, Any]:
    """Return accuracy and loss of a checkpoint, beside those that it reports.

    Args:
        path: ``best.pth`` or ``last.pth``.
        data: the images; None takes the run's own setting.
        device: as for a worker.
        batch_size: images at a time.

    Raises:
        Refused: the checkpoint cannot be read, or its classes are not those of the data.
        DataError: the data cannot be read.
    """
    started_s = time.monotonic()
    content = checkpoint.read(path)
    settings, facts = checkpoint.settings_of(content, path), content["facts"]
    images = open_data(data or settings.data, needs=("val",))
    if images.facts.class_hash != facts["class_hash"]:
        raise Refused(
            f"{path} was trained on other classes ({facts['classes']}) "
            f"than these data have ({len(images.classes)})",
            code="classes-differ",
            hints=(Hint("on the data it was trained on?", f"minga eval {path} --data ..."),),
        )
    model = zoo.build_model(
        settings.model.name,
        facts["classes"],
        facts["image_size"],
        stem=settings.model.stem,
        seed=settings.train.seed,
    )
    model.load_state_dict(content["model"])
    replica = Replica(model, settings.optimizer, pick_device(device))
    count = len(images.val)
    lease = Lease(0, "validate", 0, 0, count)
    correct, loss_sum = 0, 0.0
    for batch, labels in evaluation_batches(
        images.val, lease, seed=settings.train.seed, batch_size=batch_size
    ):
        right, loss = replica.evaluate(batch, labels)
        correct, loss_sum = correct + right, loss_sum + loss
    return {
        "checkpoint": str(path),
        "run_id": content["run_id"],
        "samples": count,
        "accuracy": correct / count,
        "loss": loss_sum / count,
        "reported_accuracy": content.get("accuracy"),
        "seconds": time.monotonic() - started_s,
    }
