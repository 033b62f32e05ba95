"""Networks by name, and their first layers (stems) for small images.

Any torchvision classification model, and ``small-cnn`` for tests and the demo.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
import torchvision  # type: ignore[import-untyped]  # it ships no types
from torch import nn

from minga.algorithm.layout import count_values
from minga.errors import Hint, UsageError

SMALL_IMAGE = 64
"""Side in pixels up to which ``auto`` takes the small stem."""
SMALL_CNN = "small-cnn"
PIXEL_MEAN, PIXEL_STD = 0.45, 0.27
"""Every channel is shown as ``(value / 255 - mean) / std``."""


def build_model(
    name: str, classes: int, image_size: int, *, stem: str = "auto", seed: int
) -> nn.Module:
    """Build a network with seeded random weights, fp32, on the CPU, in training mode.

    Args:
        name: ``small-cnn`` or any torchvision classification model.
        classes: outputs.
        image_size: side of the square images in pixels.
        stem: ``small`` adapts the first layers to small images, ``stock`` does not, ``auto``
            adapts up to 64 px where it is known how.
        seed: of the weights; the global random state is left as it was.

    Raises:
        UsageError: ``model-unknown``, ``stem-unsupported``, or ``model-image-size``: the network
            cannot take images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name == SMALL_CNN:
            model = _small_cnn(classes, image_size)
        else:
            model = _torchvision_model(name, classes, image_size)
        if not stock_stem(name, stem, image_size):
            adapt = _adaptation(name)
            if adapt is None:
                raise _no_small_stem(name)
            adapt(model)
    _check_size(name, model, image_size)
    return model


def require_known(name: str, stem: str) -> None:
    """Raise UsageError for a network that :func:`build_model` refuses for its name or stem."""
    if name != SMALL_CNN and name not in _known():
        raise _unknown(name)
    if stem == "small" and _adaptation(name) is None:
        raise _no_small_stem(name)


def stock_stem(name: str, stem: str, image_size: int) -> bool:
    """Return whether :func:`build_model` leaves the network's first layers as published."""
    if stem == "auto":
        return image_size > SMALL_IMAGE or _adaptation(name) is None
    return stem == "stock"


def sizes(name: str, classes: int, image_size: int) -> tuple[int, int]:
    """Return how many values of a model travel: parameters, and floating-point buffers.

    Raises:
        UsageError: as :func:`build_model`.
    """
    try:
        with torch.device("meta"):  # shapes without memory: a large model takes no time either
            model = build_model(name, classes, image_size, seed=0)
    except NotImplementedError:  # a few compute their shapes with tensors
        model = build_model(name, classes, image_size, seed=0)
    return count_values(model)


def _torchvision_model(name: str, classes: int, image_size: int) -> nn.Module:
    if name not in _known():
        raise _unknown(name)
    special: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        special = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        special = {"image_size": image_size}
    elif name.startswith("maxvit_"):
        special = {"input_size": (image_size, image_size)}
    try:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes, **special)
    except (AssertionError, ValueError) as error:
        raise _wrong_size(name, image_size, error) from error
    assert isinstance(model, nn.Module)
    return model


def _known() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _unknown(name: str) -> UsageError:
    close = difflib.get_close_matches(name, [SMALL_CNN, *_known()], n=1, cutoff=0.4)
    return UsageError(
        f"no model is called {name!r}",
        code="model-unknown",
        hints=tuple(Hint("was this meant?", f"model.name: {each}") for each in close),
    )


def _no_small_stem(name: str) -> UsageError:
    return UsageError(
        f"minga has no small stem for {name}",
        code="stem-unsupported",
        hints=(Hint("take it as it is?", "model.stem: stock"),),
    )


def _check_size(name: str, model: nn.Module, image_size: int) -> None:
    """Show one black image; raises UsageError if the network cannot take its size."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _wrong_size(name, image_size, error) from error
    model.train()


def _wrong_size(name: str, image_size: int, error: Exception) -> UsageError:
    return UsageError(
        f"{name} cannot take images of {image_size} px: {error}",
        code="model-image-size",
        hints=(Hint("show it larger ones?", "data.image_size: 224"),),
    )


def _small_cnn(classes: int, image_size: int) -> nn.Module:
    """Two convolutions with BatchNorm; 10 266 parameters for 8 px and 10 classes."""
    side = (image_size + 1) // 2
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * side * side, classes),
    )


def _adaptation(name: str) -> Callable[[Any], None] | None:
    """Return what gives this network a small stem, or None where there is nothing."""
    return next((adapt for prefix, adapt in _SMALL_STEMS.items() if name.startswith(prefix)), None)


def _adapt_resnet(model: Any) -> None:
    model.conv1 = _small_convolution(model.conv1)
    model.maxpool = nn.Identity()


def _adapt_densenet(model: Any) -> None:
    model.features.conv0 = _small_convolution(model.features.conv0)
    model.features.pool0 = nn.Identity()


def _adapt_features(model: Any) -> None:
    model.features[0][0].stride = (1, 1)


def _adapt_regnet(model: Any) -> None:
    model.stem[0].stride = (1, 1)


def _small_convolution(stock: nn.Conv2d) -> nn.Conv2d:
    """Return a 3x3 convolution of stride 1 in place of a 7x7 one of stride 2."""
    small = nn.Conv2d(3, stock.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    return small


_SMALL_STEMS: dict[str, Callable[[Any], None]] = {
    "resnet": _adapt_resnet,
    "resnext": _adapt_resnet,
    "wide_resnet": _adapt_resnet,
    "densenet": _adapt_densenet,
    "mobilenet_v": _adapt_features,
    "efficientnet_": _adapt_features,
    "regnet_": _adapt_regnet,
}
