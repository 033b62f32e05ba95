"""The folder of a run, and how its JSON files are written."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import math
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minga.errors import Hint, Refused


def utc_now() -> str:
    """Return the time as ISO-8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Return the value with non-finite floats as None: JSON cannot express them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file atomically: a reader sees the old one or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(plain(content), indent=2) + "\n")
        part.replace(path)
    except OSError:  # a full disk: only the old one stays
        part.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``runs/<run id>/``: see docs/stats.md for each file."""

    path: Path

    @classmethod
    def create(cls, runs: Path, run_id: str) -> RunFolder:
        """Create the folder; link ``stats`` and ``checkpoints`` beside ``runs`` to it."""
        folder = cls(runs / run_id)
        for each in (folder.stats, folder.checkpoints):
            each.mkdir(parents=True, exist_ok=True)
            _point(runs.parent / each.name, each)
        return folder

    @classmethod
    def fresh(cls, runs: Path, stem: str) -> RunFolder:
        """Create a new folder: ``stem``, or ``stem-2`` and so on."""
        runs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = cls(runs / (stem if number == 1 else f"{stem}-{number}"))
            with contextlib.suppress(FileExistsError):
                folder.path.mkdir()
                break
        return folder

    def claim(self) -> int:
        """Lock the folder for this ps until it ends; return the descriptor that holds the lock.

        Raises:
            Refused: ``run-in-use``: another ps on this PC has locked it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)  # not inherited by other programs
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Refused(
                f"{self.path} belongs to a ps that runs already{self._holder()}",
                code="run-in-use",
                hints=(
                    Hint("how is it?", f"cat {self.path}/status.json"),
                    Hint("another run beside it?", "./start_ps.sh --resume none --port 30006"),
                ),
            ) from None
        except OSError:
            pass  # a network share without locks
        return descriptor

    def _holder(self) -> str:
        """Return the process that has the run's events open, if this user can see it."""
        import psutil

        events = str((self.path / "events.jsonl").resolve())
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if any(each.path == events for each in process.open_files()):
                    return f" (process {process.pid})"
        return ""

    @property
    def stats(self) -> Path:
        """One file per process that took part."""
        return self.path / "stats"

    @property
    def checkpoints(self) -> Path:
        """``best.pth``, ``last.pth`` and ``previous.pth``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint that the ps resumes from."""
        return self.checkpoints / "last.pth"

    @property
    def previous(self) -> Path:
        """The checkpoint before ``last``."""
        return self.checkpoints / "previous.pth"

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
        """Return a new path ``<hostname>_<role>_<timestamp>.json``."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return self.stats / f"{platform.node() or 'localhost'}_{role}_{stamp}.json"


def _point(link: Path, target: Path) -> None:
    """Create or move a symbolic link; any other file of that name is the user's and stays."""
    if link.exists() and not link.is_symlink():
        return
    part = link.with_name(f".{link.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    part.replace(link)
