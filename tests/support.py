"""What several test files share: plain names and functions; fixtures are in conftest.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
"""The project's folder."""

ALLOW_ROOT = {"MINGA_ALLOW_ROOT": "1"}
"""Network namespaces and CI's machines need root: processes of tests may be root, too."""

RunMinga = Callable[..., subprocess.CompletedProcess[str]]
"""The fixture ``run_minga``."""


def needs(*distributions: str) -> None:
    """Skip the test, or the module, that calls this where a distribution is not installed.

    Asked by its metadata: the project's own folders `ansible` and `docker` can be imported, too.
    """
    for name in distributions:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"needs {name}: make lint installs it", allow_module_level=True)


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


def play(
    inventory: Path | str, *words: Path | str, timeout_s: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook with the project's settings; ``env`` adds variables."""
    own = {"ANSIBLE_CONFIG": str(ROOT / "ansible" / "ansible.cfg")}
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "--inventory", inventory, *words],
        cwd=ROOT,
        env={**os.environ, **own, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "400", **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
