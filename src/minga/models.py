"""Models by name, with a first layer that fits small images, and their flat layout."""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import nn

from minga.errors import Hint, UsageError

SMALL_CNN = "small-cnn"
SMALL_IMAGE = 64
"""Up to this side in pixels ``stem: auto`` takes the small stem."""

IMAGE_MEAN = 0.45
IMAGE_STD = 0.27

_WITH_AUXILIARY_HEAD = ("googlenet", "inception_v3")


def build_model(
    name: str, classes: int, image_size: int, *, stem: str = "auto", seed: int
) -> nn.Module:
    """Return a model with seeded initial weights; the global random state is not touched.

    Args:
        name: a torchvision classification model, or ``small-cnn``.
        classes: outputs of its last layer.
        image_size: side of the images in pixels.
        stem: ``stock``, ``small`` (3x3, stride 1, no max-pool) or ``auto``.
        seed: of the initial weights.

    Raises:
        UsageError: ``model-unknown`` or ``stem-unsupported``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == SMALL_CNN:
            return _small_cnn(classes, image_size)
        model = _torchvision_model(name, classes)
        if stem == "small" or (stem == "auto" and image_size <= SMALL_IMAGE):
            adapted = _adapt_stem(model)
            if not adapted and stem == "small":
                raise UsageError(
                    f"there is no small stem for {name}",
                    code="stem-unsupported",
                    hints=(Hint("take the stock one", "--model.stem stock"),),
                )
        return model


def _torchvision_model(name: str, classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, [*known, SMALL_CNN], n=1)
        raise UsageError(
            f"there is no model {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
            code="model-unknown",
            hints=(Hint("which are there?", "minga config models"),),
        )
    extra: dict[str, Any] = {"aux_logits": False} if name in _WITH_AUXILIARY_HEAD else {}
    model = models.get_model(name, weights=None, num_classes=classes, init_weights=True, **extra) if extra else models.get_model(name, weights=None, num_classes=classes)
    assert isinstance(model, nn.Module)
    return model


def _adapt_stem(model: nn.Module) -> bool:
    """Take the down-sampling out of the first layers; return whether the family is known."""
    from torchvision.models import DenseNet, EfficientNet, MobileNetV2, MobileNetV3, ResNet

    if isinstance(model, ResNet):
        model.conv1 = _first_convolution(model.conv1.out_channels)
        model.maxpool = nn.Identity()
        return True
    if isinstance(model, DenseNet):
        model.features.conv0 = _first_convolution(model.features.conv0.out_channels)
        model.features.pool0 = nn.Identity()
        return True
    if isinstance(model, MobileNetV2 | MobileNetV3 | EfficientNet):
        first = model.features[0][0]
        assert isinstance(first, nn.Conv2d)
        first.stride = (1, 1)
        return True
    return False


def _first_convolution(channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(3, channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _small_cnn(classes: int, image_size: int) -> nn.Module:
    side = math.ceil(image_size / 2)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32 * side * side, classes),
    )


class Layout:
    """Where each parameter and each floating-point buffer lies in the flat vectors.

    Attributes:
        weights: elements of all parameters together.
        buffers: elements of all floating-point buffers (BatchNorm statistics) together.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [(name, each.shape) for name, each in model.named_parameters()]
        self._buffers = [(n, b.shape) for n, b in model.named_buffers() if b.is_floating_point()]
        self._counters = [n for n, b in model.named_buffers() if not b.is_floating_point()]
        self._order = list(model.state_dict())
        self.weights = sum(shape.numel() for _, shape in self._parameters)
        self.buffers = sum(shape.numel() for _, shape in self._buffers)

    def flatten(self, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (weights, buffers), fp32, of a state dict."""
        return tuple(  # type: ignore[return-value]
            torch.cat([torch.zeros(0), *(state[name].float().reshape(-1) for name, _ in part)])
            for part in (self._parameters, self._buffers)
        )

    def state_dict(self, weights: torch.Tensor, buffers: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a state dict (CPU copies) that loads into the model itself."""
        found: dict[str, torch.Tensor] = {}
        for part, flat in ((self._parameters, weights), (self._buffers, buffers)):
            at = 0
            for name, shape in part:
                found[name] = flat[at : at + shape.numel()].reshape(shape).clone()
                at += shape.numel()
        for name in self._counters:
            found[name] = torch.zeros((), dtype=torch.int64)
        return {name: found[name] for name in self._order}
