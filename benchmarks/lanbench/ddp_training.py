"""Real training as DistributedDataParallel does it: the mean gradient of all, every step.

Same model, data, batch, optimizer and schedule as minga's; buckets as ResNet-18's gradient has
them. Rank 0 prints a line of JSON after each validation.

python -m lanbench.ddp_training MASTER RANK WORLD STEP_S PLAN      PLAN: JSON of `Lesson`
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lanbench.ddp import BUCKET_BYTES, average
from lanbench.fake_device import SUBJECTS
from lanbench.lesson import BATCH, Lesson
from minga.algorithm.localsgd import Schedule, learning_rate
from minga.data.dataset import ImageData, open_data
from minga.data.leases import permutation
from minga.settings.schema import DataConfig, OptimizerConfig
from minga.tasks.zoo import PIXEL_MEAN, PIXEL_STD, build_model

_OPTIMIZER = OptimizerConfig()
_FIRST_BUCKET = BUCKET_BYTES / 4 / SUBJECTS["resnet18"].parameters
_JUDGED_AT_ONCE = 250


class Training:
    """One rank's model and data."""

    def __init__(self, rank: int, world: int, lesson: Lesson) -> None:
        self.rank, self.world, self.lesson = rank, world, lesson
        self.data: ImageData = open_data(DataConfig(path=lesson.data))
        size = self.data.image_size
        self.model = build_model("small-cnn", len(self.data.classes), size, seed=lesson.seed)
        parameters = [*self.model.parameters()]
        self.optimizer = torch.optim.SGD(
            [
                {
                    "params": [each for each in parameters if each.ndim > 1],
                    "weight_decay": _OPTIMIZER.weight_decay,
                },
                {"params": [each for each in parameters if each.ndim == 1], "weight_decay": 0.0},
            ],
            lr=_OPTIMIZER.lr,
            momentum=_OPTIMIZER.momentum,
            nesterov=True,
        )
        self.schedule = Schedule(
            kind=_OPTIMIZER.schedule,
            lr=_OPTIMIZER.lr,
            batch_size=BATCH,
            workers=world,
            epoch_samples=len(self.data.train),
            epochs=lesson.epochs,
            warmup_epochs=_OPTIMIZER.warmup_epochs,
        )

    def step(self, epoch: int, number: int, samples_done: int, step_s: float) -> None:
        """Take one step with everybody else."""
        began_s = time.monotonic()
        order = permutation(self.lesson.seed, epoch, len(self.data.train))
        start = (number * self.world + self.rank) * BATCH
        images, labels = self.data.train.read(order[start : start + BATCH])
        self.model.train()
        self.optimizer.zero_grad()
        outputs = self.model(shown(images))
        smoothing = _OPTIMIZER.label_smoothing
        F.cross_entropy(outputs, torch.from_numpy(labels), label_smoothing=smoothing).backward()
        grads = [each.grad for each in self.model.parameters() if each.grad is not None]
        gradient = torch.cat([each.view(-1) for each in grads])
        first = round(_FIRST_BUCKET * gradient.numel())
        average(gradient.split([first, gradient.numel() - first]), began_s, step_s)
        for grad, mean in zip(grads, gradient.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))
        assert _OPTIMIZER.clip_norm is not None
        nn.utils.clip_grad_norm_(self.model.parameters(), _OPTIMIZER.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(samples_done, self.schedule)
        self.optimizer.step()

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the accuracy on the validation set."""
        self.model.eval()
        count, correct = len(self.data.val), 0
        for part in torch.arange(count).split(_JUDGED_AT_ONCE):
            images, labels = self.data.val.read(part.numpy())
            found = self.model(shown(images)).argmax(dim=1)
            correct += int((found == torch.from_numpy(labels)).sum())
        return correct / count


def shown(images: object) -> Tensor:
    """Return uint8 [n, side, side, 3] as the network takes them."""
    tensor = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    return tensor.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD)


def main(rank: int, world: int, step_s: float, lesson: Lesson) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(minutes=10))
    training = Training(rank, world, lesson)
    count = len(training.data.train)
    dist.barrier()
    started_s, done, judged = time.monotonic(), 0, 0
    for epoch in range(lesson.epochs):
        for number in range(count // (world * BATCH)):
            training.step(epoch, number, done, step_s)
            done += world * BATCH
            if done // (lesson.every_epochs * count) > judged:
                judged += 1
                if rank == 0:
                    point = {"seconds": time.monotonic() - started_s, "samples": done}
                    print(json.dumps({**point, "accuracy": training.accuracy()}), flush=True)
    dist.barrier()


if __name__ == "__main__":
    master, rank, world, step_s, plan = sys.argv[1:]
    os.environ.update(MASTER_ADDR=master, MASTER_PORT="29500")
    main(int(rank), int(world), float(step_s), Lesson(**json.loads(plan)))
