"""``minga config``: every setting with its source, every variable with its meaning."""

from __future__ import annotations

import json as json_format
import os
from typing import Annotated

from cyclopts import App, Parameter
from rich.table import Table
from rich.text import Text

from minga.cli.settings_flags import (
    DEFAULT_CONFIG,
    ConfigPath,
    SettingsFlags,
    config_file,
    given_flags,
)
from minga.console import print_result, results
from minga.settings.environment import known_variables
from minga.settings.fields import NONE
from minga.settings.sources import resolve_settings

app = App(
    name="config", help="Show settings, their sources, and environment variables.", sort_key=7
)


@app.command
def show(
    *,
    config: ConfigPath = DEFAULT_CONFIG,
    json: Annotated[bool, Parameter(negative=())] = False,
    settings: SettingsFlags = None,
) -> None:
    """Show every setting that a ps with these flags would use, and its source.

    Args:
        config: YAML file of settings, or none; the default may be missing.
        json: One JSON object instead of a table.
        settings: As for `minga ps`.
    """
    resolved = resolve_settings(config_file(config), given_flags(settings), os.environ)
    sections = resolved.settings.to_dict()
    shown = {}
    for key, source in resolved.sources.items():
        section, name = key.split(".")
        shown[key] = {"value": sections[section][name], "source": source}
    if json:
        print_result(json_format.dumps(shown, indent=2))
        return
    table = Table("SETTING", "VALUE", "SOURCE", box=None, pad_edge=False, header_style="heading")
    for key, row in shown.items():
        value = NONE if row["value"] is None else str(row["value"])
        source_style = "quiet" if row["source"] == "default" else ""
        table.add_row(key, Text(value), Text(row["source"], style=source_style))
    results().print(table)


@app.command
def env() -> None:
    """Show every environment variable that minga reads."""
    table = Table("VARIABLE", "MEANING", box=None, pad_edge=False, header_style="heading")
    for variable, meaning in known_variables().items():
        table.add_row(variable, Text(meaning))
    results().print(table)
