"""The journal of what was counted, apart from the ledger's own counters.

One line of JSON per push: which positions of which epoch's permutation it trained on, with a
CRC of the sample ids that the worker really read. A line ``{"resume": n}`` says that a ps
came back from a checkpoint that had seen the first n lines: what follows them up to this line
was pushed, lost with the ps, and is trained again. :mod:`minga.ps.audit` checks it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minga.observe.lines import LineFile


class Journal:
    """Appends lines; what is written survives the death of this process.

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
        """Say that only the first ``lines`` count; return how many entries are repeated."""
        repeated = self.lines - lines
        if repeated > 0:
            self.write({"resume": lines})
        return max(0, repeated)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
