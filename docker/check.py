"""Fail the build if the slimmed stack misses something that minga needs, on a PC without a GPU."""

import importlib
import sys

import torch

MODULES = (
    "torch.distributed.rpc",
    "torch.utils.tensorboard",
    "torchvision.io",
    "torchvision.models",
    "torchvision.transforms.v2",
    "webdataset",
    "google.cloud.storage",
    "boto3",
    "sklearn.datasets",
    "matplotlib.pyplot",
    "cryptography.x509",
    "cyclopts",
    "psutil",
    "rich.live",
    "safetensors.torch",
    "yaml",
)

for module in MODULES:
    importlib.import_module(module)

cuda = torch.version.cuda or "none"
assert cuda == sys.argv[1], f"torch has CUDA {cuda}, the Dockerfile's ARG CUDA says otherwise"
layer = torch.nn.Conv2d(3, 8, 3)
layer(torch.randn(2, 3, 8, 8)).square().mean().backward()
torch.linalg.svd(torch.randn(8, 8))
