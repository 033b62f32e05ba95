"""What a run is about: the data that its workers have, its length, its learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from minga.algorithm import localsgd
from minga.config import Settings
from minga.transport.stream import Message

_CHUNKS_PER_EPOCH = 100
_BATCHES_PER_CHUNK = 4


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the first worker said of the data; every other must say the same."""

    train: int
    val: int
    classes: int
    class_hash: str
    image_size: int

    @classmethod
    def from_message(cls, message: Message) -> DataFacts:
        """Read a worker's report. Raises KeyError, TypeError or ValueError."""
        return cls(
            train=int(message["train"]),
            val=int(message["val"]),
            classes=int(message["classes"]),
            class_hash=str(message["class_hash"]),
            image_size=int(message["image_size"]),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained on, for how long and how fast; fixed when the first worker has joined.

    Args:
        settings: of the run.
        facts: what the data are.
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
