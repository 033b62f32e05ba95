"""The rules of asynchronous local Nesterov-SGD (algorithms.md, section 7): numbers only.

A worker pushes D = base - local after H local steps; the ps moves by
``(kappa / N_active) * s(tau) * D``. With H = 1 and kappa = N this is DANA-Slim (Hakimi et al.
2019); there is no momentum at the ps.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

import torch

_OUTSIZED = 10.0
_REMEMBERED_NORMS = 101
_ENOUGH_NORMS = 8


def damping(staleness: int, active: int) -> float:
    """Return s(tau): only staleness beyond what N - 1 other workers cause is damped."""
    return 1.0 / math.sqrt(1.0 + max(0, staleness - (active - 1)))


def push_scale(gain: float, active: int, staleness: int) -> float:
    """Return the factor that a push's decoded delta is applied with."""
    return gain / active * damping(staleness, active)


def staleness_limit(active: int, setting: int | None) -> int:
    """Return R, the staleness above which a push is refused."""
    return setting if setting is not None else max(64, 8 * active)


def moving_average_weight(active: int) -> float:
    """Return the weight of one worker's BatchNorm buffers in the ps's moving average."""
    return 1.0 / active


def refusal(norm: float, staleness: int, limit: int, median_norm: float | None) -> str | None:
    """Return why a push is refused, or None.

    Args:
        norm: L2 norm of the decoded push; nan if anything was not finite.
        staleness: pushes applied since the one that this started from.
        limit: R.
        median_norm: of recent pushes; None while there are too few.
    """
    if not math.isfinite(norm):
        return "non-finite"
    if staleness > limit:
        return "too old"
    if median_norm is not None and norm > _OUTSIZED * median_norm:
        return "outsized"
    return None


class RecentNorms:
    """The norms of the last applied pushes."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=_REMEMBERED_NORMS)

    def add(self, norm: float) -> None:
        """Remember an applied push's norm."""
        self._norms.append(norm)

    @property
    def median(self) -> float | None:
        """Their median, or None while there are fewer than 8."""
        return statistics.median(self._norms) if len(self._norms) >= _ENOUGH_NORMS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What the learning rate depends on, apart from the samples counted."""

    kind: str
    lr: float
    batch_size: int
    workers: int
    epoch_samples: int
    epochs: int
    warmup_epochs: float


def learning_rate(samples_done: int, schedule: Schedule) -> float:
    """Return the rate after ``samples_done`` samples, all workers together.

    Linear warm-up from the single-worker rate to sqrt(workers) times it (Goyal et al. 2017),
    at most a fifth of the run, then cosine to 0. ``constant`` is the rate as given.
    """
    if schedule.kind == "constant":
        return schedule.lr
    single = schedule.lr * schedule.batch_size / 128
    peak = single * math.sqrt(schedule.workers)
    total = schedule.epoch_samples * schedule.epochs
    warm = min(schedule.warmup_epochs, schedule.epochs / 5) * schedule.epoch_samples
    if samples_done < warm:
        return single + (peak - single) * samples_done / warm
    left = min(1.0, (samples_done - warm) / max(1.0, total - warm))
    return peak * 0.5 * (1.0 + math.cos(math.pi * left))


def worker_rate(rate: float, own_batch: int, batch: int) -> float:
    """Return the rate of a worker whose batch is smaller than the configured one."""
    return rate * own_batch / batch


def combine_statistics(parts: list[torch.Tensor]) -> torch.Tensor:
    """Combine BatchNorm sums over leases into population means and variances (PreciseBN).

    Args:
        parts: fp64 [1 + 2 * buffers] each, as ``Replica.batch_statistics`` gives them: images n;
            n E[x] for a mean and n E[x^2] for a variance; 0 for a mean and n E[x] for a variance.

    Returns:
        fp32 [buffers]: E[x] for means, E[x^2] - E[x]^2 for variances.
    """
    total = torch.stack(parts).sum(0)
    first, second = (total[1:] / total[0]).chunk(2)
    return (first - second**2).float()
