"""Each setting's name, kind, range, default and meaning, and the parsing of its text."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from minga.settings.schema import Rule, Settings

NONE = "none"
""""Off" in flags, variables and YAML."""

_KIND_IN_WORDS = {int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingField:
    """One setting, for example ``optimizer.lr``."""

    key: str
    kind: type
    """int, float or str."""
    optional: bool
    """Whether it may be ``none``."""
    choices: tuple[str, ...]
    """The allowed texts; empty if any text is."""
    rule: Rule | None
    default: Any
    meaning: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "MINGA_" + self.key.replace(".", "_").upper()

    @property
    def allowed(self) -> str:
        """Its allowed values, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = _KIND_IN_WORDS[self.kind]
        if self.rule:
            words += f" {self.rule.words}"
        return f"{words}, or none" if self.optional else words

    def parse(self, text: str) -> Any:
        """Parse a text. Raises ValueError if it is not allowed."""
        if self.choices:
            if text not in self.choices:
                raise ValueError(text)
            return text
        if text == NONE and self.optional:
            return None
        if text in ("", NONE):
            raise ValueError(text)
        value = self.kind(text)
        if self.kind is float and not math.isfinite(value):
            raise ValueError(text)
        if self.rule and not self.rule.holds(value):
            raise ValueError(text)
        return value


@cache
def setting_fields() -> dict[str, SettingField]:
    """Return every setting by its key, in the order of :class:`minga.settings.schema.Settings`."""
    fields = {}
    for section, config in get_type_hints(Settings).items():
        meanings = attribute_docs(config)
        defaults = config()
        for name, hint in get_type_hints(config, include_extras=True).items():
            key = f"{section}.{name}"
            fields[key] = _describe(key, hint, getattr(defaults, name), meanings[name])
    return fields


def _describe(key: str, hint: Any, default: Any, meaning: str) -> SettingField:
    bare, rule = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    parts = get_args(bare) or (bare,)
    choices = parts if get_origin(bare) is Literal else ()
    return SettingField(
        key=key,
        kind=str if choices else parts[0],
        optional=NoneType in parts,
        choices=choices,
        rule=rule,
        default=default,
        meaning=meaning,
    )


def attribute_docs(owner: type) -> dict[str, str]:
    """Return the docstring under each attribute of a class, which Python does not keep."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for attribute, text in pairwise(tree.body):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[attribute.target.id] = inspect.cleandoc(str(text.value.value)).replace("``", "")
    return docs
