"""What every test gets: a clean environment, one torch thread, no process left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from minga.data.digits import prepare_digits
from support import ALLOW_ROOT, ROOT, RunMinga

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in child processes
os.environ |= ALLOW_ROOT  # for fixtures of modules and sessions, too

_OURS = ("RANK", "WORKER_RANK", "WORLD_SIZE", "EPOCHS", "USE_WEBDATASET")
_OURS_BY_START = ("MINGA_", "MASTER_", "DATASET_URL", "VAL_DATASET_URL")
_MAKES_OWN = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # `make test` is not the parent of a test's make
_PYTHON_KEEPS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("netns"):
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        if shutil.which("ip") is None:
            pytest.skip("network namespaces need `ip` (package iproute2)")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in ALLOW_ROOT:
            continue
        if name in _OURS + _MAKES_OWN or name.startswith(_OURS_BY_START):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_process_left_behind() -> Iterator[None]:
    """Kill whatever a test started and did not end, so that the next one has the machine."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    yield
    for child in set(me.children(recursive=True)) - before:
        try:
            if not any(word in " ".join(child.cmdline()) for word in _PYTHON_KEEPS):
                child.kill()
        except psutil.NoSuchProcess:
            continue


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits as PNG files: 1442 to train on, 355 to validate on."""
    return prepare_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def run_minga(tmp_path: Path) -> RunMinga:
    """Run ``python -m minga ...`` in an empty folder; ``env`` adds variables."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "minga", *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", **(env or {})},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run
