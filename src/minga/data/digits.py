"""scikit-learn's handwritten digits as image folders: real data without a download."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from minga.data.folders import require_unused

_SEED = 0
_IMAGES = 1797
_VAL_IMAGES = 355


def prepare_digits(folder: Path) -> Path:
    """Write 1797 real 8x8 grey images to ``folder/{train,val}/<digit>/``; return the folder.

    1442 to train on and 355 to validate on, the same on every PC, each digit in the same
    share. A complete folder is left as it is.

    Raises:
        UsageError: the folder exists with other content.
    """
    if _complete(folder):
        return folder
    require_unused(folder, "the digits")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    halves = train_test_split(
        np.arange(len(pixels)),
        test_size=_VAL_IMAGES,
        random_state=_SEED,
        stratify=digits.target,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    part.chmod(0o755)
    try:
        for half, indices in zip(("train", "val"), halves, strict=True):
            for index in indices:
                path = part / half / str(digits.target[index]) / f"{index:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[index]).save(path)
        part.rename(folder)
    except OSError:
        if not _complete(folder):  # else another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _complete(folder: Path) -> bool:
    return sum(1 for _ in folder.glob("*/*/*.png")) == _IMAGES
