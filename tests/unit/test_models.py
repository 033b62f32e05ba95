"""Networks by name, and their flat layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from minga.algorithm.layout import Layout
from minga.errors import UsageError
from minga.tasks.zoo import build_model, stock_stem


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "image_size", "stem", "expected"),
    [
        ("small-cnn", 10, 8, "auto", 10_266),
        ("resnet18", 200, 64, "auto", 11_271_432),
        ("resnet18", 200, 64, "stock", 11_279_112),
        ("resnet18", 200, 65, "auto", 11_279_112),
    ],
)
def test_parameter_counts_are_the_known_ones(
    name: str, classes: int, image_size: int, stem: str, expected: int
) -> None:
    assert parameters(build_model(name, classes, image_size, stem=stem, seed=0)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "densenet121",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "regnet_y_400mf",
    ],
)
def test_a_small_stem_keeps_the_image_larger(name: str) -> None:
    def side_after_first_convolution(stem: str) -> int:
        model = build_model(name, 10, 32, stem=stem, seed=0)
        first = next(each for each in model.modules() if isinstance(each, nn.Conv2d))
        sides: list[int] = []
        first.register_forward_hook(lambda _, __, outputs: sides.append(outputs.shape[-1]))
        model.eval()(torch.zeros(1, 3, 32, 32))
        return sides[0]

    assert side_after_first_convolution("stock") == 16
    assert side_after_first_convolution("small") == 32


@pytest.mark.parametrize(
    ("name", "stem", "image_size", "stock"),
    [
        ("resnet18", "auto", 64, False),
        ("resnet18", "auto", 65, True),
        ("resnet18", "stock", 32, True),
        ("resnet18", "small", 224, False),
        ("vgg11", "auto", 32, True),
        ("small-cnn", "auto", 8, True),
    ],
)
def test_auto_takes_the_small_stem_up_to_64_px_where_there_is_one(
    name: str, stem: str, image_size: int, stock: bool
) -> None:
    assert stock_stem(name, stem, image_size) is stock


@pytest.mark.parametrize(
    ("name", "stem", "image_size", "code", "text"),
    [
        ("resnet81", "auto", 32, "model-unknown", "resnet81"),
        ("quantized_resnet18", "auto", 32, "model-unknown", "quantized_resnet18"),
        ("fcn_resnet50", "auto", 32, "model-unknown", "fcn_resnet50"),
        ("vgg11", "small", 32, "stem-unsupported", "vgg11"),
        ("small-cnn", "small", 8, "stem-unsupported", "small-cnn"),
        ("vit_b_32", "auto", 50, "model-image-size", "50 px"),
        ("alexnet", "auto", 32, "model-image-size", "32 px"),
    ],
)
def test_what_cannot_be_built_is_a_usage_error(
    name: str, stem: str, image_size: int, code: str, text: str
) -> None:
    with pytest.raises(UsageError, match=text) as raised:
        build_model(name, 10, image_size, stem=stem, seed=0)
    assert raised.value.code == code


def test_a_mistyped_model_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as raised:
        build_model("resnet-18", 10, 32, seed=0)
    assert raised.value.hints[0].command == "model.name: resnet18"


def test_networks_with_auxiliary_outputs_are_built_without_them() -> None:
    model = build_model("googlenet", 10, 64, seed=0)
    assert isinstance(model(torch.zeros(2, 3, 64, 64)), torch.Tensor)


def test_the_seed_decides_the_weights_and_the_global_state_is_untouched() -> None:
    before = torch.random.get_rng_state()
    first, same, other = (build_model("small-cnn", 10, 8, seed=seed) for seed in (1, 1, 2))

    weight = "0.weight"
    assert torch.equal(first.get_parameter(weight), same.get_parameter(weight))
    assert not torch.equal(first.get_parameter(weight), other.get_parameter(weight))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_built_model_is_in_training_mode_with_untouched_statistics() -> None:
    model = build_model("small-cnn", 10, 8, seed=0)
    assert model.training
    assert torch.equal(model.get_buffer("1.running_var"), torch.ones(16))


def test_a_flat_stock_model_loads_into_torchvisions_own() -> None:
    model = build_model("resnet18", 7, 64, stem="stock", seed=3)
    model(torch.rand(2, 3, 64, 64))
    layout = Layout(model)

    weights, buffers = layout.flatten(model.state_dict())
    plain = get_model("resnet18", weights=None, num_classes=7)
    plain.load_state_dict(layout.state_dict(weights, buffers))

    assert (weights.numel(), buffers.numel()) == (parameters(model), 9600)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(plain.eval()(images), model.eval()(images))
    assert plain.state_dict()["bn1.num_batches_tracked"].dtype == torch.int64


def test_a_state_dict_has_its_own_memory() -> None:
    layout = Layout(build_model("small-cnn", 10, 8, seed=0))
    weights, buffers = torch.zeros(10_266), torch.zeros(96)

    state = layout.state_dict(weights, buffers)
    weights.fill_(1.0)

    assert not state["0.weight"].any()
    assert state["0.weight"].untyped_storage().nbytes() == 4 * 3 * 16 * 9


def test_a_network_without_batchnorm_has_no_buffers() -> None:
    layout = Layout(nn.Sequential(nn.Linear(3, 2)))
    weights, buffers = layout.flatten({"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)})

    assert (weights.numel(), buffers.numel()) == (8, 0)
    assert set(layout.state_dict(weights, buffers)) == {"0.weight", "0.bias"}
