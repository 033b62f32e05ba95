"""The journal of counted pushes, independent of the ledger's counters.

One line of JSON per push: which positions of which epoch's permutation it trained on, with a
CRC of the sample ids that the worker read. A line ``{"resume": n}`` means that a ps
resumed from a checkpoint with the first n lines: the entries between them and this line
were lost with the ps, and are trained again. :mod:`minga.ps.audit` checks the journal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minga.observe.lines import LineFile


class Journal:
    """Appends lines; written ones survive the death of this process.

    Attributes:
        file: the lines; they are kept in memory while the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.file = LineFile(path)

    @property
    def lines(self) -> int:
        """Entries so far."""
        return self.file.lines

    def write(self, entry: dict[str, Any]) -> None:
        """Append one entry."""
        self.file.write(json.dumps(entry, separators=(",", ":")))

    def resume(self, lines: int) -> int:
        """Record that only the first ``lines`` count; return the number of repeated entries."""
        repeated = self.lines - lines
        if repeated > 0:
            self.write({"resume": lines})
        return max(0, repeated)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
