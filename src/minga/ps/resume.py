"""Choose the run of a ps: a finished one, one to resume, or a new one.

Nothing is written here: a ps that cannot start leaves no trace.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minga.errors import Hint, Refused, UsageError
from minga.observe.folder import RunFolder
from minga.ps import checkpoint
from minga.settings.options import PsOptions
from minga.settings.schema import Settings

_NAME = re.compile(r"[\w.@+-]+")


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen run.

    Args:
        folder: of the run; None for a new one without a name yet.
        resumed: content of its checkpoint; None for a new run.
        damage: why it is ``previous.pth`` and not ``last.pth``; None if it is not.
    """

    folder: RunFolder | None
    resumed: dict[str, Any] | None = None
    damage: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.folder is not None and self.folder.finished


def choose(options: PsOptions, wanted: Settings) -> Choice:
    """Find the run that matches the options and the files on disk.

    Raises:
        UsageError: ``config-value``, an invalid name; ``run-exists``, a new run was requested
            with the name of an unfinished one.
        Refused: ``checkpoint-missing``, ``checkpoint-corrupt``, ``checkpoint-format``, or
            ``config-changed``, with the differences.
    """
    named = _named(options)
    if named is not None and named.finished:
        return Choice(named)
    if options.resume == "none":
        if named is not None and named.last.exists():
            raise UsageError(
                f"a new run was requested, but {named.path} exists, with a checkpoint",
                code="run-exists",
                hints=(
                    Hint("resume it?", "leave --resume out"),
                    Hint("another name?", f"--run-id {named.path.name}-2"),
                ),
            )
        return Choice(named)
    damage = None
    if options.resume == "auto":
        newest = _newest(options.runs, named)
        if newest is None:
            return Choice(named)
        last, content, damage = _readable(newest)
    else:
        last = Path(options.resume)
        content = checkpoint.read_resumable(last)
    folder = RunFolder(options.runs / _plain_name(content["run_id"], str(last)))
    if not folder.finished:
        _require_same(wanted, checkpoint.settings_of(content, last), last)
    return Choice(folder, content, damage)


def new_name(settings: Settings) -> str:
    """Return the name of a run that starts now."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{settings.model.name}"


def _named(options: PsOptions) -> RunFolder | None:
    if options.run_id is None:
        return None
    return RunFolder(options.runs / _plain_name(options.run_id, "--run-id"))


def _plain_name(text: str, place: str) -> str:
    """Return the name of a run if it is valid: never a path to another folder."""
    if not _NAME.fullmatch(text) or text.startswith("."):
        raise UsageError(
            f'"{text}" ({place}) is not a valid run name: letters, digits, . _ - + @ are allowed',
            code="config-value",
        )
    return text


def _newest(runs: Path, named: RunFolder | None) -> RunFolder | None:
    """Return the newest unfinished run with a checkpoint, or the named one if it has one."""
    names = sorted((each.name for each in runs.glob("*/")), reverse=True)
    for folder in [named] if named else [RunFolder(runs / name) for name in names]:
        if (folder.last.exists() or folder.previous.exists()) and not folder.finished:
            return folder
    return None


def _readable(folder: RunFolder) -> tuple[Path, dict[str, Any], str | None]:
    """Return path and content of a run's newest readable checkpoint, and what the newest has.

    Raises Refused if neither can be read.
    """
    try:
        return folder.last, checkpoint.read_resumable(folder.last), None
    except Refused as error:
        if error.code == "checkpoint-format" or not folder.previous.exists():
            raise
        damage = error.what
    return folder.previous, checkpoint.read_resumable(folder.previous), damage


def _require_same(wanted: Settings, saved: Settings, last: Path) -> None:
    """Raise Refused ``config-changed`` with the differences, if there are any."""
    differences = []
    for section in fields(Settings):
        ours, theirs = getattr(wanted, section.name), getattr(saved, section.name)
        for field in fields(ours):
            now, then = getattr(ours, field.name), getattr(theirs, field.name)
            if now != then:
                differences.append(f"{section.name}.{field.name} is {now!r}, was {then!r}")
    if differences:
        raise Refused(
            f"the settings are not those of {last}: {'; '.join(differences)}",
            code="config-changed",
            hints=(
                Hint("start a new run", "./start_ps.sh --resume none"),
                Hint(
                    "or restore the settings of the run",
                    f"cat {last.resolve().parents[1]}/config.json",
                ),
            ),
        )
