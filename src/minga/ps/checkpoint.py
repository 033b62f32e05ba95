"""Write and read checkpoints: whole or not at all, plain types only.

``model`` is an ordinary state dict: where the stem is stock it loads into the plain torchvision
model. ``last.pth`` also holds what the ps needs to go on; ``best.pth`` holds what was measured.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from minga.errors import Hint, Refused

FORMAT = 1


def write(path: Path, content: dict[str, Any]) -> None:
    """Write to a temporary file, sync, rename. Raises OSError (disk full): the old one stays."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running anything it holds.

    Raises:
        Refused: ``checkpoint-missing``, ``checkpoint-corrupt`` or ``checkpoint-format``.
    """
    if not path.exists():
        raise Refused(
            f"no checkpoint at {path}",
            code="checkpoint-missing",
            hints=(Hint("which are there?", "ls runs/*/checkpoints"),),
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; each means the file cannot be read
        raise Refused(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            code="checkpoint-corrupt",
            hints=(Hint("is there another?", f"ls {path.parent}"),),
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Refused(
            f"{path} is not a minga checkpoint of format {FORMAT}", code="checkpoint-format"
        )
    return content
