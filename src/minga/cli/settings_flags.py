"""Every setting as a flag, through cyclopts; values stay text.

:mod:`minga.settings.sources` parses them.
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
"""Default file; it may be missing."""


class _Given(str):
    """The text of a flag in place of a setting's value: distinguishes given flags from defaults."""

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
    """Return the text of each given flag, by setting."""
    if settings is None:
        return {}
    return {
        f"{section.name}.{field.name}": str(text)
        for section in fields(settings)
        for field in fields(getattr(settings, section.name))
        if isinstance(text := getattr(getattr(settings, section.name), field.name), _Given)
    }


def config_file(config: Path | None) -> Path | None:
    """Return the file to read: a named one must exist, the default may be missing."""
    if config is DEFAULT_CONFIG and not config.exists():
        return None
    return config
