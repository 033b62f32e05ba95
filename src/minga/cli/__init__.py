"""The ``minga`` command. Nothing imports this package; it imports the rest, late."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    from minga.cli.boundary import run

    return run(argv)
