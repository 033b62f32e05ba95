"""What runs on an NVIDIA GPU: skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from minga.algorithm.codec import CODECS, GPU_CHUNK, apply_delta, encode_push, make_codec
from minga.settings.schema import OptimizerConfig
from minga.tasks import zoo
from minga.worker.replica import Replica, pick_device

pytestmark = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="this PC has no NVIDIA GPU")

NUMEL = GPU_CHUNK + 700


@pytest.mark.parametrize("name", CODECS)
def test_a_gpu_and_a_processor_encode_and_decode_the_same_bits(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base, local = (torch.randn(NUMEL, generator=generator) for _ in range(2))
    results = []
    for device in ("cpu", "cuda"):
        codec = make_codec(name, NUMEL, device)
        payload = torch.zeros(codec.nbytes, dtype=torch.uint8, device=device)
        residual, target = (torch.zeros(NUMEL, device=device) for _ in range(2))
        encode_push(codec, base.to(device), local.to(device), residual, payload)
        apply_delta(codec, payload, target)
        results.append((payload.cpu(), residual.cpu(), target.cpu()))
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert torch.equal(on_cpu.view(torch.uint8), on_gpu.view(torch.uint8))


def test_a_worker_takes_the_gpu_by_itself_and_learns_there() -> None:
    device = pick_device(None)
    assert device.type == "cuda"
    model = zoo.build_model("resnet18", 4, 32, seed=0)
    replica = Replica(model, OptimizerConfig(), device)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 4
    images = torch.randint(0, 64, (32, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images += (labels * 48).to(torch.uint8).view(-1, 1, 1, 1)
    losses = [float(replica.step(images, labels, 0.05)) for _ in range(30)]
    assert replica.weights.is_cuda
    assert losses[-1] < losses[0] / 2
    assert torch.isfinite(replica.weights.cpu()).all()
    assert replica.evaluate(images, labels)[0] >= 30
