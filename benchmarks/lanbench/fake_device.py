"""Stand-ins for a GPU and its data: a local step is a wait, images are never made.

Everything else is the product's own. The wait is that of a device which is busy for ``step_s``
after each launch; nothing is launched ahead, so whatever delays the loop delays the next step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minga.algorithm.layout import Layout
from minga.data.dataset import ImageData
from minga.tasks import zoo

_SLICES = 16
"""A step changes one of so many parts of the weights: few bytes, yet all of them in the end."""
_STEP_SIZE = 1e-4


@dataclass(frozen=True)
class Subject:
    """A model and its data set, by size."""

    model: str
    classes: int
    image_size: int
    train: int
    parameters: int


SUBJECTS = {
    "resnet18": Subject("resnet18", 200, 64, 100_000, 11_271_432),
    "small-cnn": Subject("small-cnn", 10, 64, 100_000, 332_826),
    "resnet50": Subject("resnet50", 1000, 224, 1_281_167, 25_557_032),
}


class Device:
    """A device that computes for ``step_s``, once at a time."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def step(self) -> None:
        """Return when a step that is launched now would be done."""
        done_s = time.monotonic() + self._step_s
        while (left_s := done_s - time.monotonic()) > 0:
            time.sleep(left_s)


class Replica:
    """In place of :class:`minga.worker.replica.Replica`: same vectors, no network."""

    def __init__(self, subject: Subject, step_s: float) -> None:
        model = zoo.build_model(subject.model, subject.classes, subject.image_size, seed=0)
        self.weights, self._buffers = Layout(model).flatten(model.state_dict())
        assert self.weights.numel() == subject.parameters, self.weights.numel()
        self._device = Device(step_s)
        size = -(-self.weights.numel() // _SLICES)
        self._parts = self.weights.split(size)
        self._change = torch.randn(size).mul_(_STEP_SIZE)
        self._steps = 0

    def step(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """Wait as long as a step takes, and change some weights."""
        part = self._parts[self._steps % len(self._parts)]
        part.add_(self._change[: part.numel()], alpha=1.0 if self._steps & 16 else -1.0)
        self._steps += 1
        self._device.step()
        return torch.tensor(1.0)

    def load(self, weights: Tensor, buffers: Tensor) -> None:
        """Set both."""
        self.weights.copy_(weights)
        self.set_buffers(buffers)

    def buffers(self) -> Tensor:
        """Return a copy of the buffers."""
        return self._buffers.clone()

    def set_buffers(self, buffers: Tensor) -> None:
        """Set the buffers."""
        self._buffers.copy_(buffers)

    def reset_momentum(self) -> None:
        """There is none."""

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[int, float, int]:
        """Find nothing right."""
        return 0, float(len(labels)), len(labels)

    def batch_statistics(self, batches: Iterable[Tensor]) -> Tensor:
        """Find zeros."""
        count = sum(len(images) for images in batches)
        sums = torch.zeros(1 + 2 * self._buffers.numel(), dtype=torch.float64)
        sums[0] = count
        return sums


class Split:
    """In place of :class:`minga.data.split.Split`: labels, and images of one pixel."""

    def __init__(self, samples: int, classes: int) -> None:
        self.labels = np.arange(samples, dtype=np.int64) % classes
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Any, numbers: Any = None) -> tuple[Any, Any]:
        """Return as many pixels as samples were asked for, and their labels."""
        return np.zeros((len(indices), 1, 1, 3), dtype=np.uint8), self.labels[indices]


def image_data(subject: Subject) -> ImageData:
    """Return the stand-in data set."""
    classes = tuple(str(number) for number in range(subject.classes))
    train, val = Split(subject.train, subject.classes), Split(1000, subject.classes)
    return ImageData(classes, train, val, subject.image_size)
