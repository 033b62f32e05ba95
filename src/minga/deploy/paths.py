"""Where a deployment keeps its files on the control PC; how its modules run as commands.

Nothing here imports docker or zstandard, which only the `deploy` extra installs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minga.console import show_error
from minga.errors import INTERRUPTED, MingaError

ROOT = Path(__file__).parents[3]
STAGED = ROOT / "build" / "image"
CURRENT, CONFIG = "current.json", "config.json"
"""Files of ``STAGED/<variant>``: the image's description, and its OCI configuration."""


def described(variant: str) -> tuple[dict[str, Any], bytes]:
    """Return an image's description, as the playbooks get it, and its configuration.

    Raises:
        FileNotFoundError: the image is not built.
    """
    folder = STAGED / variant
    return json.loads((folder / CURRENT).read_text()), (folder / CONFIG).read_bytes()


def run(command: Callable[[], object]) -> int:
    """Run a command of this package; return its exit status."""
    try:
        command()
    except MingaError as error:
        show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
