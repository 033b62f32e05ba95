"""The folder of a run, and how its JSON files are written."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def utc_now() -> str:
    """Return the time as ISO-8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Return the value with non-finite floats as None: JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file whole: a reader sees the old one or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(plain(content), indent=2) + "\n")
    part.replace(path)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``runs/<run id>/``: see docs/stats.md for each file."""

    path: Path

    @classmethod
    def create(cls, runs: Path, run_id: str) -> RunFolder:
        """Make the folder, and point ``stats`` and ``checkpoints`` beside ``runs`` at it."""
        folder = cls(runs / run_id)
        for each in (folder.stats, folder.checkpoints):
            each.mkdir(parents=True, exist_ok=True)
            _point(runs.parent / each.name, each)
        return folder

    @property
    def stats(self) -> Path:
        """One file per process that took part."""
        return self.path / "stats"

    @property
    def checkpoints(self) -> Path:
        """``best.pth`` and ``last.pth``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """What the ps resumes from."""
        return self.checkpoints / "last.pth"

    @property
    def best(self) -> Path:
        """The snapshot with the best validation accuracy."""
        return self.checkpoints / "best.pth"

    @property
    def summary(self) -> Path:
        """Written once, when the run is done."""
        return self.path / "summary.json"

    @property
    def finished(self) -> bool:
        """Whether the run is done (a stopped one is not)."""
        return self.summary.exists()

    def stats_file(self, role: str) -> Path:
        """Return a new name as the guide has it: ``<hostname>_<role>_<timestamp>.json``."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return self.stats / f"{platform.node() or 'localhost'}_{role}_{stamp}.json"


def _point(link: Path, target: Path) -> None:
    """Make or move a symbolic link; something else of that name is the user's and stays."""
    if link.exists() and not link.is_symlink():
        return
    part = link.with_name(f".{link.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    part.replace(link)
