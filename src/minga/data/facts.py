"""The facts of a data set that the ps compares between workers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Sizes and classes of a data set, equal on every PC of a run.

    The first worker of a run reports them to the ps; every other worker must report the same.
    Checkpoints keep them.
    """

    train: int
    """Training images."""
    val: int
    """Validation images."""
    classes: int
    class_hash: str
    """SHA-256 of the class names: :func:`hash_of_classes`."""
    image_size: int
    """Side of the square images in pixels."""

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DataFacts:
        """Read what :meth:`to_dict` gave. Raises KeyError, TypeError or ValueError."""
        return cls(
            train=int(plain["train"]),
            val=int(plain["val"]),
            classes=int(plain["classes"]),
            class_hash=str(plain["class_hash"]),
            image_size=int(plain["image_size"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types only."""
        return asdict(self)

    def differences(self, other: DataFacts) -> str:
        """Return each fact that differs from ``other``, in words; empty if none does."""
        theirs = other.to_dict()
        return ", ".join(
            f"{name} {value} instead of {theirs[name]}"
            for name, value in self.to_dict().items()
            if value != theirs[name]
        )


def hash_of_classes(classes: Sequence[str]) -> str:
    """Return the SHA-256 of class names, one per line: where it differs, labels differ."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()
