"""The facts of a data set that the ps compares between workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from msgspec import Meta

MOST_CLASSES = 100_000
"""The last layer of a ResNet-18 with so many takes 205 MB, in each of the ps's copies."""

_Images = Annotated[int, Meta(ge=1, le=2**40)]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Sizes and classes of a data set, equal on every PC of a run.

    The first worker of a run reports them to the ps; every other worker must report the same.
    Checkpoints keep them.
    """

    train: _Images
    """Training images."""
    val: _Images
    """Validation images."""
    classes: Annotated[int, Meta(ge=1, le=MOST_CLASSES)]
    class_hash: Annotated[str, Meta(max_length=64)]
    """SHA-256 of the class names: :func:`hash_of_classes`."""
    image_size: Annotated[int, Meta(ge=1, le=16_384)]
    """Side of the square images in pixels."""

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
