"""Jinja filter ``nearest``: the known name closest to a misspelled one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most like ``name``, or nothing if none is."""
    return next(iter(get_close_matches(name, list(known), n=1)), "")


class FilterModule:
    """The class that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return the filters by name."""
        return {"nearest": nearest}
