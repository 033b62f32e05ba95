"""The ledger of samples and workers: every sample of every epoch counts exactly once.

The ps leases the positions of each epoch's permutation. A faster worker simply
asks more often; the leases of a dead or silent worker return and are leased again. At an epoch's
end the next one begins without a barrier, so two epochs overlap by the outstanding
leases. The same ledger leases the samples of a validation (one epoch of its own).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from minga.data.leases import Kind, Lease, Span

Interval = tuple[int, int]


@dataclass(slots=True)
class _Outstanding:
    lease: Lease
    owner: str
    done: int
    expires_s: float


class Ledger:
    """Leases samples and counts them. Not thread-safe: its owner is one event loop.

    Args:
        kind: what the leases are for (``Lease.kind``).
        samples: positions per epoch.
        epochs: how many epochs there are.
        chunk: maximum positions of one lease.
        lease_s: seconds without progress until a lease is taken back.
    """

    def __init__(
        self, kind: Kind, *, samples: int, epochs: int, chunk: int, lease_s: float
    ) -> None:
        self.kind = kind
        self.samples = samples
        self.epochs = epochs
        self.refused = 0
        self.chunk = chunk
        self._lease_s = lease_s
        self._free: dict[int, list[Interval]] = {0: [(0, samples)]}
        self._counted: dict[int, int] = {0: 0}
        self._leases: dict[int, _Outstanding] = {}
        self._next_id = 1

    @property
    def counted(self) -> int:
        """Samples counted so far, all epochs together."""
        return self.complete_epochs * self.samples + sum(self._counted.values())

    @property
    def complete_epochs(self) -> int:
        """Epochs of which every sample is counted (they complete in order)."""
        return min(self._counted, default=self.epochs)

    @property
    def finished(self) -> bool:
        """Whether every sample of every epoch is counted."""
        return self.complete_epochs >= self.epochs

    def grant(self, owner: str, want: int, now_s: float) -> list[Lease]:
        """Lease about ``want`` positions to ``owner``, fewer if fewer are free."""
        granted: list[Lease] = []
        while want > 0 and (taken := self._take(want)) is not None:
            epoch, start, stop = taken
            lease = Lease(self._next_id, self.kind, epoch, start, stop)
            self._next_id += 1
            self._leases[lease.id] = _Outstanding(lease, owner, start, now_s + self._lease_s)
            granted.append(lease)
            want -= stop - start
        return granted

    def held(self, owner: str) -> int:
        """Return the number of the owner's unreported positions."""
        return sum(
            each.lease.stop - each.done for each in self._leases.values() if each.owner == owner
        )

    def objection(self, owner: str, spans: Iterable[Span]) -> str | None:
        """Return the reason why these spans cannot count for ``owner``, or None."""
        reached: dict[int, int] = {}
        for span in spans:
            held = self._leases.get(span.lease)
            if held is None or held.owner != owner:
                return "lease expired"
            at = reached.get(span.lease, held.done)
            if span.epoch != held.lease.epoch:
                return "lease of another epoch"
            if span.start != at or not at < span.stop <= held.lease.stop:
                return "lease out of order"
            reached[span.lease] = span.stop
        return None

    def count(self, spans: Iterable[Span], now_s: float) -> None:
        """Count spans without an objection."""
        owners = set()
        for span in spans:
            owners.add(self._advance(span))
            self._counted[span.epoch] += span.samples
        for owner in owners:
            self.renew(owner, now_s)
        while self._counted.get(self.complete_epochs) == self.samples:
            finished = self.complete_epochs
            del self._counted[finished]
            self._free.pop(finished, None)
            if finished + 1 < self.epochs:
                self._open(finished + 1)

    def refuse(self, owner: str, spans: Iterable[Span], now_s: float) -> None:
        """Take back the spans of a refused push, for other workers."""
        for span in spans:
            held = self._leases.get(span.lease)
            self.refused += span.samples
            if held is None or held.owner != owner or held.done != span.start:
                continue  # already taken back
            self._return(held.lease.epoch, span.start, span.stop)
            self._advance(span)
        self.renew(owner, now_s)

    def give_back(self, owner: str) -> int:
        """Take back the unreported positions of ``owner``; return their number."""
        return sum(
            self._drop(lease) for lease, held in [*self._leases.items()] if held.owner == owner
        )

    def expire(self, now_s: float) -> dict[str, int]:
        """Take back leases without progress for ``lease_s``; return owner -> positions."""
        taken: dict[str, int] = {}
        for lease, held in [*self._leases.items()]:
            if held.expires_s < now_s:
                taken[held.owner] = taken.get(held.owner, 0) + self._drop(lease)
        return taken

    def renew(self, owner: str, now_s: float) -> None:
        """Renew the owner's leases."""
        for held in self._leases.values():
            if held.owner == owner:
                held.expires_s = now_s + self._lease_s

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint (plain types). Outstanding leases count as free."""
        free = {epoch: list(intervals) for epoch, intervals in self._free.items()}
        for held in self._leases.values():
            free.setdefault(held.lease.epoch, []).append((held.done, held.lease.stop))
        return {
            "samples": self.samples,
            "free": {str(epoch): [list(each) for each in free[epoch]] for epoch in free},
            "counted": {str(epoch): count for epoch, count in self._counted.items()},
            "next_id": self._next_id,
            "refused": self.refused,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self._free = {
            int(epoch): _merged((int(a), int(b)) for a, b in intervals)
            for epoch, intervals in state["free"].items()
        }
        self._counted = {int(epoch): int(count) for epoch, count in state["counted"].items()}
        self._next_id = int(state["next_id"])
        self.refused = int(state["refused"])

    def _open(self, epoch: int) -> None:
        if epoch not in self._counted:
            self._free[epoch] = [(0, self.samples)]
            self._counted[epoch] = 0

    def _take(self, want: int) -> tuple[int, int, int] | None:
        """Take an interval from the lowest epoch with free positions."""
        newest = max(self._counted, default=self.epochs)
        if newest < self.epochs - 1 and not any(self._free.values()):
            self._open(newest + 1)
        for epoch in sorted(self._free):
            if self._free[epoch]:
                start, stop = self._free[epoch].pop(0)
                end = min(stop, start + self.chunk, start + max(want, 1))
                if end < stop:
                    self._free[epoch].insert(0, (end, stop))
                return epoch, start, end
        return None

    def _advance(self, span: Span) -> str:
        """Move the lease on; return its owner."""
        held = self._leases[span.lease]
        held.done = span.stop
        if held.done == held.lease.stop:
            del self._leases[span.lease]
        return held.owner

    def _drop(self, lease: int) -> int:
        held = self._leases.pop(lease)
        self._return(held.lease.epoch, held.done, held.lease.stop)
        return held.lease.stop - held.done

    def _return(self, epoch: int, start: int, stop: int) -> None:
        self._free[epoch] = _merged([*self._free.get(epoch, []), (start, stop)])


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Sort intervals and merge adjacent ones."""
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        elif start < stop:
            merged.append((start, stop))
    return merged
