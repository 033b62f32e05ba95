"""The worker's model: all parameters in one flat vector, local steps, measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from minga.config import OptimizerConfig
from minga.errors import Hint, UsageError
from minga.models import IMAGE_MEAN, IMAGE_STD


def pick_device(wanted: str | None) -> torch.device:
    """Return the device to train on: as told, or cuda, mps, cpu, whichever there is first.

    Raises:
        UsageError: ``device-missing``.
    """
    if wanted is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"there is no device {wanted!r} here: {str(error).splitlines()[0]}",
            code="device-missing",
            hints=(Hint("let minga choose", "leave --device out"),),
        ) from error
    return device


class Replica:
    """A model whose parameters are views into one flat fp32 vector on its device.

    Args:
        model: taken over; its parameters move into the flat vector.
        optimizer: momentum, weight decay, clipping, label smoothing.
        device: where it lives.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig, device: torch.device) -> None:
        self.device = device
        self._model = model.to(device)
        self._config = optimizer
        self._autocast = _autocast_type(device)
        self._scaler = torch.amp.GradScaler(enabled=self._autocast == torch.float16)
        parameters = list(self._model.parameters())
        self.weights = torch.cat([each.detach().reshape(-1) for each in parameters])
        at = 0
        for each in parameters:
            each.data = self.weights[at : at + each.numel()].view_as(each)
            at += each.numel()
        self._float_buffers = [b for b in self._model.buffers() if b.is_floating_point()]
        self._loss = nn.CrossEntropyLoss(label_smoothing=optimizer.label_smoothing)
        self._optimizer = torch.optim.SGD(
            [
                {"params": [p for p in parameters if p.ndim > 1]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=0.0,
            momentum=optimizer.momentum,
            nesterov=optimizer.momentum > 0,
            weight_decay=optimizer.weight_decay,
        )

    def load(self, weights: torch.Tensor, buffers: torch.Tensor) -> None:
        """Take weights (fp32 [P]) and floating-point buffers (fp32 [B]) over."""
        self.weights.copy_(weights)
        self.set_buffers(buffers)

    def cpu_weights(self) -> torch.Tensor:
        """Return the flat weights on the CPU (no copy where they are there already)."""
        return self.weights.detach().cpu()

    def buffers(self) -> torch.Tensor:
        """Return a copy of the floating-point buffers, fp32 [B] on the CPU."""
        return torch.cat(
            [torch.zeros(0), *(each.detach().reshape(-1).cpu() for each in self._float_buffers)]
        )

    def set_buffers(self, buffers: torch.Tensor) -> None:
        """Take the floating-point buffers over."""
        at = 0
        for each in self._float_buffers:
            each.copy_(buffers[at : at + each.numel()].view_as(each))
            at += each.numel()

    def reset_momentum(self) -> None:
        """Forget the momentum: this worker starts from other weights."""
        self._optimizer.state.clear()

    def step(self, images: torch.Tensor, labels: torch.Tensor, lr: float) -> torch.Tensor:
        """Take one optimizer step; return the loss, still on the device.

        Args:
            images: uint8 [B, 3, H, W].
            labels: int64 [B].
            lr: learning rate of this step.
        """
        if len(images) == 1:  # BatchNorm needs two values
            images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
        self._model.train()
        with self._precision():
            loss: torch.Tensor = self._loss(self._model(self._inputs(images)), self._to(labels))
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimizer)
        if self._config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[int, float]:
        """Return (correct, sum of the cross-entropies) of a batch."""
        self._model.eval()
        with self._precision():
            output = self._model(self._inputs(images)).float()
        labels = self._to(labels)
        correct = int((output.argmax(1) == labels).sum())
        return correct, float(functional.cross_entropy(output, labels, reduction="sum"))

    @torch.no_grad()
    def batch_statistics(self, batches: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return sums over batches that make population BatchNorm statistics.

        PreciseBN as in pycls: the weights stay, each batch's mean and variance are read.

        Returns:
            fp64 [1 + 2B]: images n; n E[x] for means and n E[x^2] for variances; 0 for means
            and n E[x] for variances. Sums of several leases add up
            (:func:`minga.algorithm.localsgd.combine_statistics`).
        """
        norms = [m for m in self._model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        kept = [norm.momentum for norm in norms]
        width = sum(each.numel() for each in self._float_buffers)
        total = torch.zeros(1 + 2 * width, dtype=torch.float64)
        self._model.train()
        try:
            for norm in norms:
                norm.momentum = 1.0  # the running statistics become the batch's own
            for images in batches:
                with self._precision():
                    self._model(self._inputs(images))
                first, second = self._moments(norms)
                total += len(images) * torch.cat([torch.ones(1), first, second]).double()
        finally:
            for norm, momentum in zip(norms, kept, strict=True):
                norm.momentum = momentum
        return total

    def _moments(self, norms: list[nn.Module]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return first and second parts of a batch's statistics, fp32 [B] each."""
        means = {id(norm.running_var): norm.running_mean for norm in norms}
        first, second = [torch.zeros(0)], [torch.zeros(0)]
        for each in self._float_buffers:
            mean = means.get(id(each))
            if isinstance(mean, torch.Tensor):
                first.append((each + mean**2).cpu())
                second.append(mean.cpu())
            else:
                first.append(each.reshape(-1).cpu())
                second.append(torch.zeros(each.numel()))
        return torch.cat(first), torch.cat(second)

    def _inputs(self, images: torch.Tensor) -> torch.Tensor:
        """Carry uint8 to the device, normalise there."""
        on_cuda = self.device.type == "cuda"
        layout = torch.channels_last if on_cuda else torch.contiguous_format
        moved = images.to(self.device, non_blocking=on_cuda).float()
        return moved.div_(255).sub_(IMAGE_MEAN).div_(IMAGE_STD).contiguous(memory_format=layout)

    def _to(self, labels: torch.Tensor) -> torch.Tensor:
        return labels.to(self.device)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)


def _autocast_type(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
