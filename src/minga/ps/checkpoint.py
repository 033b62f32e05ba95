"""Write and read checkpoints: atomically, plain types only, checked by their checksums.

A checkpoint is a zip archive, as torch writes it, with a CRC-32 of every entry; torch itself does
not compare them. ``model`` is an ordinary state dict: with a stock stem it loads into the plain
torchvision model. ``last.pth`` also holds the state to resume from; ``best.pth`` its evaluation.
"""

from __future__ import annotations

import os
import zipfile
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from minga.errors import Hint, Refused
from minga.settings.schema import Settings

FORMAT = 1
_TO_GO_ON = {"ledger", "last_sequence", "last_push", "journal_lines", "members", "version"}


def write(path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write to a temporary file, sync, read it back, rename.

    Args:
        path: the checkpoint.
        content: plain types and tensors.
        keep: where the checkpoint that it replaces stays.

    Raises:
        OSError: the disk is full, or what was written cannot be read back: the old one stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with _Target(part, "wb") as file:
            try:
                torch.save({"format": FORMAT, **content}, file)
            except RuntimeError as error:  # torch hides why a write failed
                raise file.failed or error from error
            os.fsync(file.fileno())
        try:
            read(part)
        except Refused as error:
            raise OSError(f"what was written cannot be read back: {error.what}") from error
        if keep is not None and path.exists():
            _keep(path, keep)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _keep(path: Path, keep: Path) -> None:
    """Give a file a second name, so that it never is without one."""
    part = keep.with_name(f".{keep.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(path)
    except OSError:  # a file system without links
        path.replace(part)
    part.replace(keep)


class _Target(FileIO):
    """A file that writes everything it is given, and stores why a write failed."""

    failed: OSError | None = None

    def write(self, content: Any, /) -> int:
        """Write all of it."""
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while left:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.failed = error
            raise
        return size


def read_resumable(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a run can resume from. Raises Refused like :func:`read`."""
    content = read(path)
    if not content.keys() >= _TO_GO_ON:
        raise Refused(
            f"{path} holds weights and nothing of the run that made them",
            code="checkpoint-format",
            hints=(Hint("a run resumes from its last.pth", f"ls {path.parent}"),),
        )
    return content


def settings_of(content: dict[str, Any], path: Path) -> Settings:
    """Return a checkpoint's settings. Raises Refused if this version does not know all of them."""
    try:
        return Settings.from_dict(content["settings"])
    except (KeyError, TypeError) as error:
        raise Refused(
            f"{path} was written by minga {content.get('minga', '?')}, "
            f"with other settings: {error}",
            code="checkpoint-format",
            hints=(Hint("which version is this?", "minga --version"),),
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing any of its content.

    Raises:
        Refused: ``checkpoint-missing``, ``checkpoint-corrupt`` or ``checkpoint-format``.
    """
    if not path.exists():
        raise Refused(
            f"no checkpoint at {path}",
            code="checkpoint-missing",
            hints=(Hint("which ones exist?", "ls runs/*/checkpoints"),),
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is not what was written: its checksum differs")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; each means the file cannot be read
        raise Refused(
            f"{path} cannot be read: {next(iter(str(error).splitlines()), 'it ends too early')}",
            code="checkpoint-corrupt",
            hints=(
                Hint("is there another?", f"ls {path.parent}"),
                Hint("or start a new run", "./start_ps.sh --resume none"),
            ),
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Refused(
            f"{path} is not a minga checkpoint of format {FORMAT}", code="checkpoint-format"
        )
    return content
