"""``minga eval`` and ``minga export``."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from minga.console import print_result
from minga.settings.schema import DataConfig


def evaluate(
    checkpoint: Path,
    /,
    *,
    data: str | None = None,
    device: str | None = None,
    batch_size: Annotated[int, Parameter(validator=Number(gte=1))] = 128,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure a checkpoint's accuracy on validation data, in this process.

    Args:
        checkpoint: A run's best.pth or last.pth.
        data: The data; none takes the run's data.path.
        device: cpu, cuda, cuda:1, mps; none takes the best available.
        batch_size: Images at a time.
        json: One JSON object instead of lines.
    """
    from minga.evaluate import evaluate_checkpoint

    source = DataConfig(path=data) if data else None
    measured = evaluate_checkpoint(checkpoint, source, device, batch_size)
    if json:
        print_result(json_format.dumps(measured))
        return
    for name, value in measured.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        print_result(f"{name:20} {text}")


def export(checkpoint: Path, /, *, out: Path | None = None) -> None:
    """Write a checkpoint's weights as safetensors: no pickle, loads anywhere.

    Args:
        checkpoint: A run's best.pth or last.pth.
        out: The file to write; none writes beside the checkpoint.
    """
    from minga.export import export_checkpoint

    print_result(export_checkpoint(checkpoint, out))
