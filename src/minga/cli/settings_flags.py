"""Every setting as a flag: cyclopts names, explains and suggests; the values stay text.

Turning text into values, with ranges and sources, is :mod:`minga.settings.sources`'s work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter, Token

from minga.settings.options import optional
from minga.settings.schema import Settings

ConfigPath = Annotated[Path | None, optional("MINGA_CONFIG")]
"""The YAML file of settings, or none."""

DEFAULT_CONFIG = Path("train.yaml")
"""Taken where no file is named; it may be missing."""


class _Given(str):
    """A flag's text where a setting's value would be: tells given flags from defaults."""

    __slots__ = ()


def _keep_text(_kind: Any, tokens: Sequence[Token]) -> _Given:
    return _Given(tokens[0].value)


SettingsFlags = Annotated[
    Settings | None,
    Parameter(
        name="*",
        converter=_keep_text,
        group=Group("Settings", help="Also in train.yaml, or as MINGA_SECTION_NAME.", sort_key=9),
    ),
]


def given_flags(settings: Settings | None) -> dict[str, str]:
    """Return the text of each setting that a flag gave, by key."""
    if settings is None:
        return {}
    return {
        f"{section.name}.{field.name}": str(text)
        for section in fields(settings)
        for field in fields(getattr(settings, section.name))
        if isinstance(text := getattr(getattr(settings, section.name), field.name), _Given)
    }


def config_file(config: Path | None) -> Path | None:
    """Return the file to read: one that was named must be there, the default need not."""
    if config is DEFAULT_CONFIG and not config.exists():
        return None
    return config
