"""The worker's model: one flat parameter vector, local steps, evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minga.algorithm.layout import Entries, Layout, split
from minga.errors import Hint, UsageError
from minga.settings.schema import OptimizerConfig
from minga.tasks.zoo import PIXEL_MEAN, PIXEL_STD

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def pick_device(wanted: str | None) -> torch.device:
    """Return the requested device, or the best available: cuda, then mps, then cpu.

    Raises:
        UsageError: ``device-missing``: this PC does not have it.
    """
    counts = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if wanted is None:
        return torch.device(next(kind for kind, count in counts.items() if count))
    with contextlib.suppress(RuntimeError):  # not a device name
        device = torch.device(wanted)
        if (device.index or 0) < counts.get(device.type, 0):
            return device
    raise UsageError(
        f"this PC has no device {wanted!r}",
        code="device-missing",
        hints=(
            Hint("does the driver see the GPU?", "nvidia-smi"),
            Hint("train on the processor?", "minga worker --device cpu"),
        ),
    )


class Replica:
    """A model that trains locally; every parameter is a view into one flat vector.

    Args:
        model: from :func:`minga.tasks.zoo.build_model`; owned from now on.
        optimizer: the run's.
        device: where it trains.

    Attributes:
        model: the network.
        weights: fp32 [parameters] on the device; the network's own memory.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig, device: torch.device) -> None:
        self.model = model.to(device)
        self._config = optimizer
        self._device = device
        layout = Layout(self.model)
        self.weights = layout.flatten(self.model.state_dict())[0].to(device)
        own = dict(self.model.named_parameters())
        for name, view in split(self.weights, layout.parameters):
            own[name].data = view
        buffers = dict(self.model.named_buffers())
        self._buffers = [buffers[name] for name, _ in layout.buffers]
        self._entries = layout.buffers
        self._optimizer = _sgd(list(own.values()), optimizer)
        self._mixed = device.type == "cuda"
        bf16 = self._mixed and torch.cuda.is_bf16_supported(including_emulation=False)
        self._dtype = torch.bfloat16 if bf16 else torch.float16
        self._scaler = torch.amp.GradScaler("cuda", enabled=self._mixed and not bf16)

    def step(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """Take one local step; return the loss, on the device, without synchronising.

        Args:
            images: uint8 [n, 3, side, side].
            labels: int64 [n].
            lr: learning rate of this step.
        """
        if len(images) == 1:  # BatchNorm needs two values per channel
            images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
        self.model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        with self._autocast():
            outputs = self.model(self._shown(images))
        loss = F.cross_entropy(
            outputs.float(),
            labels.to(self._device, non_blocking=True),
            label_smoothing=self._config.label_smoothing,
        )
        self._scaler.scale(loss).backward()
        if self._config.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    def load(self, weights: Tensor, buffers: Tensor) -> None:
        """Set weights and buffers; keep the momentum."""
        self.set_weights(weights)
        self.set_buffers(buffers)

    def set_weights(self, weights: Tensor) -> None:
        """Set the weights from fp32 [parameters] on any device."""
        self.weights.copy_(weights)

    def buffers(self) -> Tensor:
        """Return a copy of the floating-point buffers, fp32 [buffers], on the CPU."""
        if not self._buffers:
            return torch.empty(0)
        return torch.cat([each.reshape(-1).float() for each in self._buffers]).cpu()

    def set_buffers(self, buffers: Tensor) -> None:
        """Set the floating-point buffers from fp32 [buffers] on any device."""
        there = buffers.to(self._device)
        for own, (_, part) in zip(self._buffers, split(there, self._entries), strict=True):
            own.copy_(part)

    def reset_momentum(self) -> None:
        """Reset the momentum, for a rejoin."""
        self._optimizer.state.clear()

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[int, float]:
        """Return the number of correct predictions and the summed cross-entropy.

        ``images`` and ``labels`` are as in :meth:`step`; no label smoothing here.
        """
        self.model.eval()
        with self._autocast():
            outputs = self.model(self._shown(images)).float()
        labels = labels.to(self._device)
        correct = int((outputs.argmax(dim=1) == labels).sum())
        return correct, float(F.cross_entropy(outputs, labels, reduction="sum"))

    @torch.no_grad()
    def batch_statistics(self, batches: Iterable[Tensor]) -> Tensor:
        """Measure BatchNorm statistics at the present weights; buffers stay unchanged.

        Args:
            batches: uint8 [n, 3, side, side] each.

        Returns:
            fp64 [1 + 2 * buffers] on the CPU, a part for
            :func:`minga.algorithm.localsgd.combine_statistics`.
        """
        before = self.buffers()
        with _BatchNormReader(self.model, self._entries) as reader:
            for images in batches:
                shown = images.repeat(2, 1, 1, 1) if len(images) == 1 else images
                with self._autocast():
                    self.model(self._shown(shown))
                reader.add(len(images), self.buffers())
        self.set_buffers(before)
        return reader.sums

    def _shown(self, images: Tensor) -> Tensor:
        """Bring uint8 images to the device and normalise them there."""
        there = images.to(self._device, non_blocking=True)
        order = torch.channels_last if self._mixed else torch.contiguous_format
        shown = there.contiguous(memory_format=order).float()
        return shown.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._mixed)


class _BatchNormReader:
    """Sums the statistics of each batch in the BatchNorm layers.

    While it is entered they train with momentum 1, so that their buffers are the last batch's
    statistics; all other layers are in evaluation mode.
    """

    def __init__(self, model: nn.Module, entries: Entries) -> None:
        places, end = {}, 0
        for name, shape in entries:
            places[name], end = end, end + shape.numel()
        self._model = model
        self._layers = [
            (layer, places[f"{name}.running_mean"], places[f"{name}.running_var"])
            for name, layer in model.named_modules()
            if isinstance(layer, _BATCH_NORM)
        ]
        self._seen: dict[nn.Module, int] = {}
        self._undo = contextlib.ExitStack()
        self.sums = torch.zeros(1 + 2 * end, dtype=torch.float64)

    def __enter__(self) -> Self:
        self._model.eval()
        for layer, _, _ in self._layers:
            self._undo.callback(setattr, layer, "momentum", layer.momentum)
            self._undo.callback(layer.register_forward_pre_hook(self._count).remove)
            layer.momentum = 1.0
            layer.train()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def add(self, images: int, buffers: Tensor) -> None:
        """Add a batch, whose statistics are ``buffers``."""
        first = buffers.double()
        second = torch.zeros_like(first)
        for layer, mean_at, variance_at in self._layers:
            mean = first[mean_at : mean_at + layer.num_features]
            variance = first[variance_at : variance_at + layer.num_features]
            seen = self._seen[layer]
            variance.mul_((seen - 1) / seen).add_(mean.square())  # torch's is unbiased
            second[variance_at : variance_at + layer.num_features] = mean
        self.sums[0] += images
        self.sums[1:] += images * torch.cat([first, second])

    def _count(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen[layer] = inputs[0].numel() // inputs[0].size(1)


def _sgd(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.SGD:
    """Return Nesterov SGD without weight decay on BatchNorm parameters and biases."""
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if each.ndim > 1]},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )
