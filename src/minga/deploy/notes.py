"""The answers of PCs to a playbook, noted in ``build/``."""

from __future__ import annotations

import json
from typing import Any

from minga.console import results
from minga.deploy.paths import ROOT

_WIDTH = 200


def read_answers(name: str) -> dict[str, Any]:
    """Return a playbook's notes, ``build/<name>.json``."""
    answers: dict[str, Any] = json.loads((ROOT / "build" / f"{name}.json").read_text())
    return answers


def spread_out() -> None:
    """Use wide tables when stdout is not a terminal."""
    if not results().is_terminal:
        results().width = _WIDTH
