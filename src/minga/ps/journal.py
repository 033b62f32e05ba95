"""The journal of what was counted, apart from the ledger's own counters, and its audit.

One line of JSON per push: which positions of which epoch's permutation it trained on, with a
CRC of the sample ids that the worker really read. A line ``{"resume": n}`` says that a ps
came back from a checkpoint that had seen the first n lines: what follows them up to this line
was pushed, lost with the ps, and is trained again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minga.data.leases import ids_crc, permutation
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


@dataclass(slots=True)
class Audit:
    """What an audit found; ``exact`` when every sample of every epoch counted once."""

    epochs: int = 0
    samples: int = 0
    double: int = 0
    missing: int = 0
    wrong_ids: int = 0
    repeated_pushes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether nothing is double, missing or different from what was leased."""
        return not (self.double or self.missing or self.wrong_ids)


def audit(lines: Iterable[str], *, seed: int, samples: int, epochs: int) -> Audit:
    """Check a journal against the epochs' permutations.

    Args:
        lines: the journal.
        seed: the run's seed.
        samples: size of the training set.
        epochs: epochs that are expected to be complete.
    """
    found = Audit(epochs=epochs)
    counts = np.zeros((epochs, samples), dtype=np.int32)
    orders = [permutation(seed, epoch, samples) for epoch in range(epochs)]
    entries = _effective(lines, found)
    for entry in entries:
        for epoch, start, stop, crc in entry["spans"]:
            ids = orders[epoch][start:stop]
            counts[epoch][ids] += 1
            found.samples += stop - start
            if ids_crc(ids) != crc:
                found.wrong_ids += stop - start
                found.problems.append(f"push {entry['push']}: other samples than were leased")
    for epoch in range(epochs):
        double, missing = int((counts[epoch] > 1).sum()), int((counts[epoch] == 0).sum())
        found.double += double
        found.missing += missing
        if double or missing:
            found.problems.append(f"epoch {epoch}: {double} counted twice, {missing} never")
    return found


def _effective(lines: Iterable[str], found: Audit) -> Iterator[dict[str, Any]]:
    """Return the entries that count: those that no resume undid."""
    kept: list[dict[str, Any] | None] = []
    for line in lines:
        entry = json.loads(line)
        if "resume" in entry:
            undone = [i for i in range(entry["resume"], len(kept)) if kept[i] is not None]
            for index in undone:
                kept[index] = None
            found.repeated_pushes += len(undone)
            kept.append(None)
        else:
            kept.append(entry)
    return iter([entry for entry in kept if entry is not None])
