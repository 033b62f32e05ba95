"""Every environment variable that minga reads, in one list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, MutableMapping
from functools import cache
from typing import get_type_hints

from cyclopts import Parameter

from minga.errors import Hint, UsageError
from minga.settings.fields import attribute_docs, setting_fields
from minga.settings.options import PsOptions, WorkerOptions

PREFIX = "MINGA_"

SCRIPT_SETTINGS = {
    "EPOCHS": "train.epochs",
    "DATASET_URL": "data.path",
    "VAL_DATASET_URL": "data.val_path",
}
"""The start scripts' names of three settings; the ``MINGA_*`` name overrides them."""

USE_WEBDATASET = "USE_WEBDATASET"

_ELSEWHERE = {
    USE_WEBDATASET: "true: the data are WebDataset shards.",
    "MINGA_CONFIG": "The YAML file of settings; train.yaml if there is one.",
    "MINGA_CACHE": "Folder of data fetched from buckets and the web (~/.cache/minga).",
    "MINGA_BIN": "The minga command that start_ps.sh and start_worker.sh run.",
}


@cache
def known_variables() -> dict[str, str]:
    """Return every variable's meaning: settings, the start scripts' names, options, the rest."""
    fields = setting_fields()
    meanings = {field.variable: field.meaning for field in fields.values()}
    for variable, key in SCRIPT_SETTINGS.items():
        meanings[variable] = f"As {fields[key].variable}, which overrides it."
    for options in (PsOptions, WorkerOptions):
        docs = attribute_docs(options)
        for name, hint in get_type_hints(options, include_extras=True).items():
            for variable in _variables_of(hint):
                meanings.setdefault(variable, docs[name])
    return meanings | _ELSEWHERE


def _variables_of(hint: object) -> Iterable[str]:
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, Parameter):
            yield from mark.env_var or ()


def check_variables(environ: Mapping[str, str]) -> None:
    """Raise UsageError ``config-unknown-variable`` for a ``MINGA_*`` that nothing reads."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known_variables():
            raise UsageError(
                f"unknown environment variable {name}{did_you_mean(name, known_variables())}",
                code="config-unknown-variable",
                hints=(
                    Hint("which ones exist?", "minga config env"),
                    Hint("not needed?", f"unset {name}"),
                ),
            )


def webdataset_wanted(environ: Mapping[str, str]) -> bool:
    """Return the value of USE_WEBDATASET. Raises UsageError ``config-value``."""
    text = environ.get(USE_WEBDATASET, "").lower()
    if text in ("true", "1", "yes"):
        return True
    if text in ("", "false", "0", "no"):
        return False
    raise UsageError(
        f'{USE_WEBDATASET} is "{environ[USE_WEBDATASET]}"; allowed is true or false',
        code="config-value",
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean ...?`` for the nearest known word, or nothing."""
    names = list(known)
    # without its section ("lr", "MINGA_LR") it is no close match, but clearly meant
    tail = word.removeprefix(PREFIX)
    near = [name for name in names if name.endswith((f".{tail}", f"_{tail}"))]
    near = near or difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def drop_empty(environ: MutableMapping[str, str]) -> None:
    """Remove empty variables of minga's: empty counts as not set."""
    for name in known_variables():
        if environ.get(name) == "":
            del environ[name]
