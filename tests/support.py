"""What several test files share: plain names and functions; fixtures are in conftest.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The project's folder."""

RunMinga = Callable[..., subprocess.CompletedProcess[str]]
"""The fixture ``run_minga``."""


def copy_project(folder: Path) -> Path:
    """Copy what is committed or about to be, set up already with this interpreter's environment."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder
