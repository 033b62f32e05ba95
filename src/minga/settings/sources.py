"""Defaults, YAML, environment and flags become one :class:`Settings` with sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minga.errors import Hint, UsageError
from minga.settings.environment import (
    SCRIPT_SETTINGS,
    USE_WEBDATASET,
    check_variables,
    did_you_mean,
    webdataset_wanted,
)
from minga.settings.fields import NONE, SettingField, setting_fields
from minga.settings.schema import MODE_IMPLIES, Settings

_SEE_ALL = Hint("what exists?", "minga ps --help")
_YAML_NULL = "tag:yaml.org,2002:null"
"""Tag of a value left blank, or written ``null`` or ``~``."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings of a run and where each value comes from.

    A source is ``default``, the YAML file's name, ``env NAME`` or ``flag --NAME``.
    """

    settings: Settings
    sources: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Given:
    """A setting's text as given, and its place."""

    text: str
    source: str
    line: int | None = None

    @property
    def place(self) -> str:
        return f"{self.source} line {self.line}" if self.line else self.source


def resolve_settings(
    yaml_path: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]
) -> Resolved:
    """Resolve every setting: defaults < YAML < environment < flags.

    Args:
        yaml_path: a file like ``train.yaml``; none reads no file.
        flags: text by key, for example ``{"optimizer.lr": "0.1"}``.
        environ: ``MINGA_SECTION_FIELD`` and the start scripts' variables; empty counts as not set.

    Raises:
        UsageError: ``config-file``, ``config-unknown-key``, ``config-unknown-variable`` or
            ``config-value``.
    """
    check_variables(environ)
    given = {
        **(_read_yaml(yaml_path) if yaml_path else {}),
        **_read_environment(environ),
        **_read_flags(flags),
    }
    given |= _implied(given)
    plain: dict[str, dict[str, Any]] = {}
    sources = {}
    for key, field in setting_fields().items():
        section, name = key.split(".")
        plain.setdefault(section, {})[name] = (
            _value(field, given[key]) if key in given else field.default
        )
        sources[key] = given[key].source if key in given else "default"
    return Resolved(Settings.from_dict(plain), sources)


def _implied(given: Mapping[str, _Given]) -> dict[str, _Given]:
    """Return the settings implied by ``exchange.mode``."""
    chosen, aggregate = given.get("exchange.mode"), given.get("exchange.aggregate")
    mode = chosen.text if chosen else setting_fields()["exchange.mode"].default
    if aggregate is not None and aggregate.text != NONE and mode != "sync":
        raise UsageError(
            f"exchange.aggregate ({aggregate.place}) is for exchange.mode sync, not {mode}",
            code="config-value",
            hints=(Hint("rounds of so many pushes?", "minga ps --exchange.mode sync"),),
        )
    because = f"exchange.mode {mode}"
    return {key: _Given(text, because) for key, text in MODE_IMPLIES.get(mode, {}).items()}


def _value(field: SettingField, given: _Given) -> Any:
    try:
        return field.parse(given.text)
    except ValueError:
        raise UsageError(
            f'{field.key} is "{given.text}" ({given.place}); allowed is {field.allowed}',
            code="config-value",
            hints=(_SEE_ALL,),
        ) from None


def _read_flags(flags: Mapping[str, str]) -> dict[str, _Given]:
    given = {}
    for key, text in flags.items():
        source = "flag --" + key.replace("_", "-")
        _require_known(key, source)
        given[key] = _Given(text, source)
    return given


def _read_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    keys = SCRIPT_SETTINGS | {field.variable: key for key, field in setting_fields().items()}
    given = {}
    if webdataset_wanted(environ):
        given["data.format"] = _Given("webdataset", f"env {USE_WEBDATASET}")
    for variable, key in keys.items():  # the start scripts' names first: MINGA_* override them
        if text := environ.get(variable):
            given[key] = _Given(text, f"env {variable}")
    return given


def _read_yaml(path: Path) -> dict[str, _Given]:
    """Read the file as nodes, not objects: this keeps texts and line numbers."""
    try:
        with path.open(encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"cannot read {path}: {reason}", code="config-file") from error
    given = {}
    for section, fields, line in _entries(root, path, "the file"):
        if section not in Settings.__dataclass_fields__:
            _require_known(section, f"{path} line {line}")
        for name, node, line in _entries(fields, path, section):
            key = f"{section}.{name}"
            _require_known(key, f"{path} line {line}")
            if not isinstance(node, yaml.ScalarNode):
                raise UsageError(f"{path} line {line}: {key} takes one value", code="config-value")
            text = NONE if node.tag == _YAML_NULL else node.value
            given[key] = _Given(text, str(path), line)
    return given


def _entries(
    node: yaml.Node | None, path: Path, owner: str
) -> Iterator[tuple[str, yaml.Node, int]]:
    """Yield key, value and line of each entry; nothing for a blank node."""
    if node is None or node.tag == _YAML_NULL:
        return
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(
            f"{path} line {node.start_mark.line + 1}: {owner} must hold lines of `name: value`",
            code="config-file",
        )
    seen: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen:
            raise UsageError(
                f"{path} line {line}: {name} is already set in line {seen[name]}",
                code="config-file",
            )
        seen[name] = line
        yield name, value, line


def _require_known(key: str, place: str) -> None:
    known = setting_fields()
    if key not in known:
        sections = [] if "." in key else list(Settings.__dataclass_fields__)
        raise UsageError(
            f"unknown setting {key} ({place}){did_you_mean(key, [*sections, *known])}",
            code="config-unknown-key",
            hints=(_SEE_ALL,),
        )
