"""What the PCs answered to a playbook, which notes it in ``build/``."""

from __future__ import annotations

import json
from typing import Any

from minga.console import results
from minga.deploy.paths import ROOT

_WIDTH = 200


def read_answers(name: str) -> dict[str, Any]:
    """Return what a playbook noted in ``build/<name>.json``."""
    answers: dict[str, Any] = json.loads((ROOT / "build" / f"{name}.json").read_text())
    return answers


def spread_out() -> None:
    """Do not squeeze tables into 80 columns where nobody's terminal is that wide."""
    if not results().is_terminal:
        results().width = _WIDTH
