"""What several test files share: plain names and functions; fixtures are in conftest.py."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The project's folder."""

RunMinga = Callable[..., subprocess.CompletedProcess[str]]
"""The fixture ``run_minga``."""
