"""The audit of a journal: how often every sample of every epoch counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from minga.data.leases import ids_crc, permutation

_SHOWN_PROBLEMS = 20


@dataclass(slots=True)
class EpochTally:
    """How often the samples of one epoch counted."""

    epoch: int
    complete: bool
    """Whether every sample is expected; an open epoch may have missing ones."""
    once: int = 0
    double: int = 0
    missing: int = 0
    wrong_ids: int = 0
    """Samples in spans whose CRC is not that of the leased ids."""

    @property
    def exact(self) -> bool:
        """Whether no sample is double or wrong, nor missing from a complete epoch."""
        return not (self.double or self.wrong_ids or (self.complete and self.missing))


@dataclass(slots=True)
class Repeat:
    """Pushes that a resume undid: they were lost with the ps and trained again."""

    line: int
    """Number of the journal's ``resume`` line, from 1."""
    pushes: int
    samples: int


@dataclass(slots=True)
class Audit:
    """Result of an audit; ``exact`` if every sample of every complete epoch counted once."""

    epochs: list[EpochTally] = field(default_factory=list)
    samples: int = 0
    repeats: list[Repeat] = field(default_factory=list)
    damaged: int = 0
    """Lines that are not entries of a journal, or name samples that the run does not have."""
    problems: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether nothing is damaged, double, missing or different from what was leased."""
        return not self.damaged and all(each.exact for each in self.epochs)

    @property
    def double(self) -> int:
        """Samples that counted more than once, all epochs together."""
        return sum(each.double for each in self.epochs)

    @property
    def missing(self) -> int:
        """Samples of complete epochs that never counted."""
        return sum(each.missing for each in self.epochs if each.complete)

    @property
    def wrong_ids(self) -> int:
        """Samples in spans whose CRC is not that of the leased ids."""
        return sum(each.wrong_ids for each in self.epochs)

    @property
    def repeated_pushes(self) -> int:
        """Pushes that a resume undid."""
        return sum(each.pushes for each in self.repeats)

    def blame(self, problem: str) -> None:
        """Note a problem; after twenty the rest is counted, not listed."""
        if len(self.problems) < _SHOWN_PROBLEMS:
            self.problems.append(problem)


def audit(
    lines: Iterable[str], *, seed: int, samples: int, epochs: int, complete: int | None = None
) -> Audit:
    """Check a journal against the epochs' permutations.

    Args:
        lines: the journal.
        seed: the run's seed.
        samples: size of the training set.
        epochs: epochs of the run.
        complete: how many of them, from the first, must be complete; None: all.
    """
    found = Audit()
    complete = epochs if complete is None else complete
    spans: list[list[tuple[int, int]]] = [[] for _ in range(epochs)]
    wrong = [0] * epochs
    for number, entry in _effective(lines, found):
        for span in entry["spans"]:
            epoch, start, stop, crc = span
            if not (0 <= epoch < epochs and 0 <= start < stop <= samples):
                found.damaged += 1
                found.blame(f"line {number}: {span} is outside {epochs} epochs of {samples}")
                continue
            spans[epoch].append((start, stop))
            found.samples += stop - start
            if ids_crc(permutation(seed, epoch, samples)[start:stop]) != crc:
                wrong[epoch] += stop - start
                found.blame(f"line {number}, push {entry['push']}: other samples than leased")
    for epoch in range(epochs):
        once, double = _coverage(spans[epoch])
        missing = samples - once - double
        tally = EpochTally(epoch, epoch < complete, once, double, missing, wrong[epoch])
        found.epochs.append(tally)
        if double or (tally.complete and tally.missing):
            found.blame(f"epoch {epoch + 1}: {double} samples twice, {tally.missing} never")
    return found


def _coverage(spans: list[tuple[int, int]]) -> tuple[int, int]:
    """Return how many positions lie in exactly one interval, and in more than one."""
    edges = sorted([(start, 1) for start, _ in spans] + [(stop, -1) for _, stop in spans])
    once = more = depth = last = 0
    for at, change in edges:
        if depth == 1:
            once += at - last
        elif depth > 1:
            more += at - last
        depth, last = depth + change, at
    return once, more


def _effective(lines: Iterable[str], found: Audit) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of the entries that count: those that no resume undid."""
    kept: list[dict[str, Any] | None] = []
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            found.damaged += 1
            found.blame(f"line {number} is not a journal entry: {line[:60]!r}")
            kept.append(None)
        elif "resume" in entry:
            undone = [at for at in range(entry["resume"], len(kept)) if kept[at] is not None]
            again = 0
            for at in undone:
                again += sum(stop - start for _, start, stop, _ in (kept[at] or {})["spans"])
                kept[at] = None
            found.repeats.append(Repeat(number, len(undone), again))
            kept.append(None)
        else:
            kept.append(entry)
    return ((at + 1, entry) for at, entry in enumerate(kept) if entry is not None)


def _entry(line: str) -> dict[str, Any] | None:
    """Return a line as a push or a resume; None if it is neither."""
    try:
        entry = json.loads(line)
        if isinstance(entry["resume"] if "resume" in entry else entry["push"], int) and all(
            len(span) == 4 and all(isinstance(each, int) for each in span)
            for span in entry.get("spans", [] if "resume" in entry else None)
        ):
            return dict(entry)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return None
