"""The worker's model: one flat vector, local steps, measurements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from minga.algorithm.layout import Layout
from minga.algorithm.localsgd import combine_statistics
from minga.errors import UsageError
from minga.settings.schema import OptimizerConfig
from minga.tasks.zoo import PIXEL_MEAN, PIXEL_STD, build_model
from minga.worker.replica import Replica, pick_device

CPU = torch.device("cpu")
PARAMETERS, BUFFERS = 10_266, 96


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def replica(model: nn.Module | None = None, **options: float | None) -> Replica:
    chosen = OptimizerConfig(**options)
    return Replica(model or build_model("small-cnn", 10, 8, seed=0), chosen, CPU)


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)


def labels(count: int) -> Tensor:
    return torch.randint(0, 10, (count,))


def shown(raw: Tensor) -> Tensor:
    return (raw.float() / 255 - PIXEL_MEAN) / PIXEL_STD


def test_the_flat_vector_is_the_models_own_memory() -> None:
    one = replica()
    one.set_weights(torch.zeros(PARAMETERS))
    assert all(not each.any() for each in one.model.parameters())

    one.model.get_parameter("7.bias").data.fill_(3.0)
    assert one.weights[-10:].tolist() == [3.0] * 10
    assert one.weights.cpu().data_ptr() == one.weights.data_ptr()


def test_the_flat_vector_holds_what_the_model_held() -> None:
    model = build_model("small-cnn", 10, 8, seed=5)
    expected = Layout(model).flatten(model.state_dict())[0]
    assert torch.equal(replica(model).weights, expected)


def test_the_flat_vector_stays_the_models_memory_after_steps() -> None:
    one = replica()
    before = one.weights.clone()
    one.step(images(4), labels(4), 0.1)
    assert not torch.equal(one.weights, before)
    assert torch.equal(Layout(one.model).flatten(one.model.state_dict())[0], one.weights)


def test_buffers_go_in_and_out_in_order() -> None:
    one = replica()
    one.set_buffers(torch.arange(BUFFERS, dtype=torch.float32))
    assert one.buffers().tolist() == list(range(BUFFERS))
    assert one.model.get_buffer("1.running_var").tolist() == list(range(16, 32))


def test_a_model_without_batchnorm_has_empty_buffers() -> None:
    one = replica(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)))
    one.set_buffers(one.buffers())
    assert one.buffers().shape == (0,)
    assert one.batch_statistics([images(4)]).tolist() == [4.0]


def plain_steps(options: OptimizerConfig, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Do by hand what a replica should do; return the flat weights."""
    model = build_model("small-cnn", 10, 8, seed=0)
    velocity = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    for raw, wanted in batches:
        model.zero_grad()
        smooth = torch.full((len(wanted), 10), options.label_smoothing / 10)
        smooth[range(len(wanted)), wanted] += 1 - options.label_smoothing
        loss = -(smooth * model(shown(raw)).log_softmax(dim=1)).sum(dim=1).mean()
        loss.backward()
        gradients = {name: each.grad for name, each in model.named_parameters()}
        norm = torch.stack([each.norm() for each in gradients.values() if each is not None]).norm()
        shrink = min(1.0, options.clip_norm / float(norm)) if options.clip_norm else 1.0
        for name, each in model.named_parameters():
            assert each.grad is not None
            gradient = each.grad * shrink
            if each.ndim > 1:
                gradient = gradient + options.weight_decay * each.data
            velocity[name] = options.momentum * velocity[name] + gradient
            each.data -= options.lr * (gradient + options.momentum * velocity[name])
    return Layout(model).flatten(model.state_dict())[0]


@pytest.mark.parametrize(
    "options",
    [
        OptimizerConfig(),
        OptimizerConfig(clip_norm=0.1),
        OptimizerConfig(clip_norm=None, weight_decay=0.1),
        OptimizerConfig(momentum=0.0),
    ],
    ids=["default", "clipped", "decayed", "no momentum"],
)
def test_a_step_is_nesterov_with_clipped_gradients_and_decay_of_matrices_only(
    options: OptimizerConfig,
) -> None:
    batches = [(images(16), labels(16)) for _ in range(5)]
    one = Replica(build_model("small-cnn", 10, 8, seed=0), options, CPU)
    for raw, wanted in batches:
        one.step(raw, wanted, options.lr)

    torch.testing.assert_close(one.weights, plain_steps(options, batches), rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_smoothed_cross_entropy_before_the_step() -> None:
    one, raw, wanted = replica(), images(16), labels(16)
    expected = nn.functional.cross_entropy(
        build_model("small-cnn", 10, 8, seed=0)(shown(raw)), wanted, label_smoothing=0.1
    )
    assert float(one.step(raw, wanted, 0.1)) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_rate_of_zero_changes_no_weight() -> None:
    one = replica()
    before = one.weights.clone()
    one.step(images(4), labels(4), 0.0)
    assert torch.equal(one.weights, before)


def test_without_momentum_left_the_next_step_is_a_first_one() -> None:
    raw, wanted = images(8), labels(8)

    def second_step(between: Callable[[Replica], None]) -> Tensor:
        one = replica()
        start = one.weights.clone()
        one.step(raw, wanted, 0.05)
        between(one)
        one.load(start, torch.zeros(BUFFERS))
        one.step(raw, wanted, 0.05)
        return one.weights - start

    fresh = replica()
    start = fresh.weights.clone()
    fresh.step(raw, wanted, 0.05)

    torch.testing.assert_close(second_step(Replica.reset_momentum), fresh.weights - start)
    assert not torch.allclose(second_step(lambda _: None), fresh.weights - start)


def test_a_single_image_can_be_learnt_from() -> None:
    narrow = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 8 * 8), nn.Linear(3 * 8 * 8, 10))
    with pytest.raises(ValueError, match="more than 1 value"):
        narrow(shown(images(1)))
    one = replica(narrow)
    assert torch.isfinite(one.step(images(1), labels(1), 0.1))
    assert torch.isfinite(one.batch_statistics([images(1)])).all()


def test_an_evaluation_counts_right_answers_and_changes_nothing() -> None:
    one = replica()
    before = (one.weights.clone(), one.buffers())
    raw, wanted = images(50), labels(50)

    correct, loss_sum = one.evaluate(raw, wanted)

    outputs = one.model.eval()(shown(raw))
    assert correct == int((outputs.argmax(1) == wanted).sum())
    expected = nn.functional.cross_entropy(outputs, wanted, reduction="sum")
    assert loss_sum == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.equal(one.weights, before[0])
    assert torch.equal(one.buffers(), before[1])


def test_statistics_of_leases_are_those_of_the_whole_population() -> None:
    one, raw = replica(), images(90)
    one.step(images(16), labels(16), 0.1)

    parts = [one.batch_statistics(raw[:50].split(20)), one.batch_statistics([raw[50:]])]
    combined = combine_statistics(parts)

    first_layer = one.model.get_submodule("0")(shown(raw)).detach()
    torch.testing.assert_close(combined[:16], first_layer.mean((0, 2, 3)))
    torch.testing.assert_close(combined[16:32], first_layer.var((0, 2, 3), correction=0))


def test_averaging_variances_alone_would_miss_the_spread_of_the_means() -> None:
    """The control of the test above: dark and bright batches."""
    one = replica(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10)))
    raw = torch.cat([images(20) // 8, 224 + images(20) // 8])

    combined = combine_statistics([one.batch_statistics(raw.split(20))])

    population = shown(raw).var((0, 2, 3), correction=0)
    within = torch.stack([shown(each).var((0, 2, 3), correction=0) for each in raw.split(20)])
    torch.testing.assert_close(combined[3:], population)
    assert (within.mean(0) < population / 10).all()


def test_measuring_statistics_leaves_the_model_as_it_was() -> None:
    one = replica()
    one.step(images(16), labels(16), 0.1)
    before = (one.weights.clone(), one.buffers())

    one.batch_statistics([images(16)])

    assert torch.equal(one.weights, before[0])
    assert torch.equal(one.buffers(), before[1])
    layer = one.model.get_submodule("1")
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.momentum == 0.1
    assert not layer._forward_pre_hooks


def test_buffers_that_are_no_statistics_come_back_as_they_are() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.tensor([2.5, -1.0]))
            self.normal = nn.BatchNorm2d(3)
            self.last = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.normal(x).mean((2, 3)))

    combined = combine_statistics([replica(Shifted()).batch_statistics([images(4), images(3)])])

    assert combined[:2].tolist() == [2.5, -1.0]


def test_the_processor_is_always_there_and_what_is_missing_is_said() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device(None).type in ("cuda", "mps", "cpu")
    for missing in ("cuda:77", "toaster", "cpu:3"):
        with pytest.raises(UsageError, match=missing) as raised:
            pick_device(missing)
        assert raised.value.code == "device-missing"


def test_a_graphics_card_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device(None) == torch.device("cuda")
    assert pick_device("cuda:0") == torch.device("cuda:0")
