"""Leases, and the samples of each. No torch and no files: the ps uses this too.

Everything random here is keyed by work (seed, epoch, position), never by worker, so a lease
means the same samples for every worker.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

Ids = npt.NDArray[np.int64]
Kind = Literal["train", "validate", "calibrate"]

# Second number of every seed sequence: one random stream per purpose.
_EPOCH_STREAM = 0
_CALIBRATION_STREAM = 4


class Lease(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One chunk of work handed to one worker: positions ``start`` to ``stop`` (exclusive).

    Args:
        id: unique within a run.
        kind: ``train`` (positions of the epoch's permutation), ``validate`` (indices of the
            validation set) or ``calibrate`` (positions of one fixed permutation of the
            training set).
        epoch: 0 for all but ``train``.
        start, stop: the positions.
    """

    id: Annotated[int, Meta(ge=0)]
    kind: Kind
    epoch: Annotated[int, Meta(ge=0)]
    start: Annotated[int, Meta(ge=0)]
    stop: Annotated[int, Meta(ge=0)]


class Span(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A part of a lease: positions ``start`` to ``stop`` (exclusive) of an epoch.

    Args:
        lease: its id.
        epoch: of the lease.
        start, stop: the positions.
        crc: CRC-32 of the sample ids that were read for them.
    """

    lease: Annotated[int, Meta(ge=0)]
    epoch: Annotated[int, Meta(ge=0)]
    start: Annotated[int, Meta(ge=0)]
    stop: Annotated[int, Meta(ge=0)]
    crc: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0

    @property
    def samples(self) -> int:
        """Number of its positions."""
        return self.stop - self.start


def permutation(seed: int, epoch: int, count: int) -> Ids:
    """Return the order of an epoch's samples: int64 [count], read-only."""
    return _order(seed, _EPOCH_STREAM, epoch, count)


def sample_ids(lease: Lease, seed: int, count: int) -> Ids:
    """Return the samples of a lease: int64 [stop - start].

    Args:
        lease: of any kind.
        seed: the run's.
        count: size of the set that the lease is about.
    """
    assert 0 <= lease.start <= lease.stop <= count, f"{lease} of a set of {count}"
    if lease.kind == "validate":
        return np.arange(lease.start, lease.stop)
    if lease.kind == "calibrate":
        return _order(seed, _CALIBRATION_STREAM, 0, count)[lease.start : lease.stop]
    assert lease.kind == "train", lease
    return permutation(seed, lease.epoch, count)[lease.start : lease.stop]


def ids_crc(ids: npt.ArrayLike) -> int:
    """Return the CRC-32 of sample ids as little-endian int64."""
    return zlib.crc32(np.ascontiguousarray(ids, dtype="<i8").tobytes())


@lru_cache(maxsize=4)  # 1,281,167 ids take 78 ms and 10 MB; a batch may span two epochs
def _order(seed: int, stream: int, epoch: int, count: int) -> Ids:
    order = np.random.default_rng([seed, stream, epoch]).permutation(count)
    order.flags.writeable = False  # shared by all callers
    return order
