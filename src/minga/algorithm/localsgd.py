"""The rules of asynchronous local SGD: gain, staleness, refusal, schedule, BatchNorm statistics.

Momentum is on the worker (torch's SGD); a push moves the ps's weights by
``gain / active * damping`` times what the worker moved in its window.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCE_BATCH = 128
"""Batch size that the configured learning rate refers to."""
OUTSIZED = 10.0
"""A push this many times the median norm is refused."""
NON_FINITE, OUTSIZED_PUSH = "non-finite", "outsized"
"""Reasons to refuse a push for its content."""
SUSPECT = 3
"""Consecutive non-finite pushes before a worker is reported."""

_OWN_ROUNDS = 4
_RECENT_NORMS = 25
"""Of each worker."""
_NORMS_NEEDED = 8


def damping(staleness: int, active: int) -> float:
    """Return the factor for excess staleness; 1 while each worker pushes once per round."""
    return 1 / math.sqrt(1 + max(0, staleness - (active - 1)))


def push_scale(gain: float, active: int, staleness: int) -> float:
    """Return the factor of a decoded push before it is subtracted."""
    return gain / active * damping(staleness, active)


def pushes_in_round(mode: str, setting: int | None, active: int) -> int:
    """Return K, the number of pushes that closes a round.

    A push moves the weights by gain / active, so K of them by gain * K / active times their mean,
    and waiting for K turns asynchronous local SGD into the synchronous one (K = active) or the one
    with backup workers (K < active; Chen et al. 2016, arXiv:1604.00981). A push that comes late
    counts in the next round, as in FedBuff (arXiv:2106.06639): nothing is discarded.

    Args:
        mode: ``exchange.mode``.
        setting: the user's K, for mode ``sync``.
        active: active workers.
    """
    match mode:
        case "sync":
            return active if setting is None else min(setting, active)
        case "safe":
            return max(1, active - 1)
    return 1


def moving_average_weight(active: int) -> float:
    """Return the weight of a push's BatchNorm buffers in the ps's moving average."""
    return 1 / active


def staleness_limit(active: int, setting: int | None, own: float = 0.0) -> int:
    """Return the largest staleness that is not refused; 8 rounds if the user set none.

    Args:
        active: active workers.
        setting: the user's limit.
        own: pushes that the others make, on average, in one of this worker's rounds: a PC is not
            refused for the staleness that its own speed causes.
    """
    if setting is not None:
        return setting
    return max(64, 8 * active, math.ceil(_OWN_ROUNDS * own))


def refusal(norm: float, staleness: int, limit: int, median_norm: float | None) -> str | None:
    """Return the reason to refuse a push, or None.

    Args:
        norm: L2 norm of the decoded push; nan if it has non-finite values.
        staleness: versions since the push's base.
        limit: see :func:`staleness_limit`.
        median_norm: of recently applied pushes; None while there are too few.
    """
    if not math.isfinite(norm):
        return NON_FINITE
    if staleness > limit:
        return "too old"
    if median_norm is not None and norm > OUTSIZED * median_norm:
        return OUTSIZED_PUSH
    return None


class RecentNorms:
    """Norms of the most recent pushes of each worker.

    Each worker has one voice, however often it pushes, and no voice is louder than OUTSIZED times
    the quietest: one worker alone cannot lift the limit for its own pushes beyond what the others'
    allow.
    """

    def __init__(self) -> None:
        self._norms: dict[int, deque[float]] = {}

    def add(self, rank: int, norm: float) -> None:
        """Note an applied push."""
        self._norms.setdefault(rank, deque(maxlen=_RECENT_NORMS)).append(norm)

    def add_outsized(self, rank: int, norm: float) -> None:
        """Record a push refused as outsized, with the largest norm that is allowed.

        If the pushes of all workers are outsized, they are soon allowed: else a model that has
        learned its data would refuse every push from then on.
        """
        if self.median is not None:
            self.add(rank, min(norm, OUTSIZED * self.median))

    def forget(self, rank: int) -> None:
        """Forget a worker that is gone."""
        self._norms.pop(rank, None)

    @property
    def median(self) -> float | None:
        """The median of the workers' medians; None until there are 8 pushes."""
        if sum(map(len, self._norms.values())) < _NORMS_NEEDED:
            return None
        voices = [statistics.median(each) for each in self._norms.values()]
        loudest = OUTSIZED * min(voices)
        return statistics.median(min(voice, loudest) for voice in voices)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate over a run, indexed by samples of all workers together."""

    kind: str
    """``cosine`` or ``constant``."""
    lr: float
    """Rate of one worker at batch 128; with ``constant``, the rate."""
    batch_size: int
    workers: int
    """Workers expected; frozen when the run begins."""
    epoch_samples: int
    epochs: int
    warmup_epochs: float
    """Epochs from one worker's rate to the scaled rate; at most a fifth of the run."""


def learning_rate(samples_done: int, schedule: Schedule) -> float:
    """Return the rate after so many samples: linear warm-up, then a cosine to 0 at the end."""
    if schedule.kind == "constant":
        return schedule.lr
    alone = schedule.lr * schedule.batch_size / REFERENCE_BATCH
    peak = alone * math.sqrt(schedule.workers)
    total = schedule.epochs * schedule.epoch_samples
    warmup = min(schedule.warmup_epochs, schedule.epochs / 5) * schedule.epoch_samples
    if samples_done < warmup:
        return alone + (peak - alone) * samples_done / warmup
    progress = min(1.0, (samples_done - warmup) / (total - warmup))
    return peak * (1 + math.cos(math.pi * progress)) / 2


def worker_rate(rate: float, own_batch: int, batch: int) -> float:
    """Return the rate of a worker whose batch is not the configured one."""
    return rate * own_batch / batch


def combine_statistics(parts: Sequence[Tensor]) -> Tensor:
    """Return population BatchNorm buffers, fp32 [buffers], from sums of any number of leases.

    Each part is fp64 [1 + 2 * buffers]: images, then sums weighted with images, of ``a`` and of
    ``m`` per buffer; a buffer is ``mean(a) - mean(m)**2``. For a running mean ``a`` is a batch's
    mean and ``m`` is 0; for a running variance they are a batch's mean square and its mean, which
    is the law of total variance (PreciseBN, as in pycls).
    """
    images, sums = torch.stack(list(parts)).sum(dim=0).tensor_split([1])
    first, second = (sums / images).chunk(2)
    return (first - second.square()).float()
