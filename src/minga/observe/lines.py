"""A file of lines that survives a full disk: lines wait in memory until they can be written."""

from __future__ import annotations

import os
from pathlib import Path


class LineFile:
    """Appends lines, each whole and in order, for one thread.

    When the disk is full the lines stay in memory, and every later call tries again. A line
    that a killed process left half written is cut off when the file is opened.

    Args:
        path: the file; created if missing.

    Attributes:
        trouble: the reason for keeping lines in memory, or None.
        lines: lines of the file and those kept.
    """

    def __init__(self, path: Path) -> None:
        self.trouble: OSError | None = None
        self._kept = bytearray()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.lines = self._whole_lines()

    @property
    def kept(self) -> bool:
        """Whether lines wait in memory."""
        return bool(self._kept)

    def write(self, line: str) -> None:
        """Append a line (without its end); a full disk is not an error."""
        self._kept += line.encode() + b"\n"
        self.lines += 1
        self.flush()

    def flush(self) -> bool:
        """Write the waiting lines; return whether all of them are in the file."""
        try:
            while self._kept:  # a disk that fills up accepts a part first
                del self._kept[: os.write(self._descriptor, self._kept)]
        except OSError as error:
            self.trouble = error
            return False
        self.trouble = None
        return True

    def close(self) -> None:
        """Write the waiting lines if possible, then close the file."""
        self.flush()
        os.close(self._descriptor)

    def _whole_lines(self) -> int:
        lines = whole = 0
        with open(self._descriptor, "rb", closefd=False) as file:
            for line in file:
                if line.endswith(b"\n"):
                    lines, whole = lines + 1, whole + len(line)
        os.ftruncate(self._descriptor, whole)
        return lines
