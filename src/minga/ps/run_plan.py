"""The plan of a run: its data, length, leases and learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from minga.algorithm import localsgd
from minga.data.facts import DataFacts
from minga.settings.schema import Settings

_CHUNKS_PER_EPOCH = 100
_BATCHES_PER_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Data, length and schedule of a run; fixed when the first worker has joined.

    Args:
        settings: of the run.
        facts: of the data.
        nominal_workers: expected; frozen in the learning rate's schedule.
    """

    settings: Settings
    facts: DataFacts
    nominal_workers: int

    @property
    def total_samples(self) -> int:
        """Samples of the whole run."""
        return self.facts.train * self.settings.train.epochs

    @property
    def chunk(self) -> int:
        """Samples per lease."""
        least = _BATCHES_PER_CHUNK * self.settings.train.batch_size
        return self.settings.ledger.chunk or max(least, -(-self.facts.train // _CHUNKS_PER_EPOCH))

    def learning_rate(self, samples_done: int) -> float:
        """Return the schedule's rate for a worker with the configured batch."""
        chosen = self.settings.optimizer
        return localsgd.learning_rate(
            samples_done,
            localsgd.Schedule(
                kind=chosen.schedule,
                lr=chosen.lr,
                batch_size=self.settings.train.batch_size,
                workers=self.nominal_workers,
                epoch_samples=self.facts.train,
                epochs=self.settings.train.epochs,
                warmup_epochs=chosen.warmup_epochs,
            ),
        )
