"""Split a folder's files into parts of equal size, each a layer of the image.

A PC unpacks one while the next is being sent. Large files first: after the transfer, only the
last part remains.
"""

from __future__ import annotations

import sys
from pathlib import Path


def split(folder: Path, parts: Path, count: int) -> None:
    """Move all files to ``parts/1/<folder>`` ... ``parts/<count>/<folder>``."""
    sizes = {
        path: path.lstat().st_size
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    total, before = sum(sizes.values()), 0
    for path in sorted(sizes, key=lambda path: (-sizes[path], path)):
        number = 1 + min(count - 1, before * count // total)
        target = parts / str(number) / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        before += sizes[path]


if __name__ == "__main__":
    split(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
