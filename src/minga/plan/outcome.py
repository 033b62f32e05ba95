"""The outcome of a simulated run, and its bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minga.plan.scenario import Pcs, Scenario

COMPUTE = "compute"
ENCODING = "encoding"
PS_LINK = "ps link"
PS_CPU = "ps CPU"
OWN_LINK = "own link"
ROUND_TRIP = "round trip"

_FREE = 0.05
"""A PC that trains for all but this share of its time has no bottleneck."""
_FULL = 0.75
"""A resource that is busy for more than this share of the time is saturated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load of the ps, as shares of 1.

    Args:
        link_in: of its link, towards it.
        link_out: of its link, away from it.
        cores: of all its cores.
        lock: of the lock under which pushes are applied.
    """

    link_in: float
    link_out: float
    cores: float
    lock: float

    @property
    def full(self) -> str | None:
        """The saturated resource of the ps, if any."""
        link, processor = max(self.link_in, self.link_out), max(self.cores, self.lock)
        if max(link, processor) < _FULL:
            return None
        return PS_LINK if link >= processor else PS_CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class KindOutcome:
    """Outcome for the PCs of one kind.

    Args:
        pcs: the kind.
        samples_per_s: of all of them.
        local_steps: H, the median.
        staleness_mean: of their pushes.
        staleness_max: of their pushes.
        exchange_s: from sending a push to having its reply, the mean.
        encoding: share of their time for copying and rebasing.
        waiting: share of their time spent waiting for a reply.
        limit: their bottleneck.
    """

    pcs: Pcs
    samples_per_s: float
    local_steps: int
    staleness_mean: float
    staleness_max: int
    exchange_s: float
    encoding: float
    waiting: float
    limit: str

    @property
    def share(self) -> float:
        """Share of their rate without exchanges."""
        return self.samples_per_s / (self.pcs.count * self.pcs.images_per_s)

    @property
    def lost_per_s(self) -> float:
        """Samples per second lost to exchanges."""
        return self.pcs.count * self.pcs.images_per_s - self.samples_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Outcome of a scenario.

    Args:
        scenario: the simulated run.
        kinds: by kind of PC.
        load: of the ps.
        staleness_mean: over all pushes.
        why: the pacing's own sentence; none where H is fixed.
        network_bound: whether the longest window is too short for an exchange.
    """

    scenario: Scenario
    kinds: tuple[KindOutcome, ...]
    load: Load
    staleness_mean: float
    why: str | None
    network_bound: bool

    @property
    def samples_per_s(self) -> float:
        """Of all PCs."""
        return sum(kind.samples_per_s for kind in self.kinds)

    @property
    def share(self) -> float:
        """Share of the rate with free exchanges."""
        return self.samples_per_s / self.scenario.ideal_per_s

    @property
    def staleness_max(self) -> int:
        """Over all pushes."""
        return max(kind.staleness_max for kind in self.kinds)

    @property
    def limit(self) -> str:
        """The bottleneck that costs most samples, or ``compute`` if almost none are lost."""
        if self.share > 1 - _FREE:
            return COMPUTE
        return max(self.kinds, key=lambda kind: kind.lost_per_s).limit

    def seconds(self, epochs: int) -> float:
        """Return the training time of so many epochs, without validations."""
        return epochs * self.scenario.train_images / self.samples_per_s

    def to_dict(self, epochs: int) -> dict[str, Any]:
        """Return plain types only."""
        return {
            "pcs": self.scenario.workers,
            "samples_per_s": self.samples_per_s,
            "share_of_ideal": self.share,
            "limit": self.limit,
            "staleness_mean": self.staleness_mean,
            "staleness_max": self.staleness_max,
            "ps_link_in": self.load.link_in,
            "ps_link_out": self.load.link_out,
            "ps_cpu": self.load.cores,
            "ps_lock": self.load.lock,
            "epochs": epochs,
            "hours": self.seconds(epochs) / 3600,
            "why": self.why,
            "kinds": [
                {
                    "pcs": kind.pcs.count,
                    "images_per_s": kind.pcs.images_per_s,
                    "link_mbits": kind.pcs.link_mbits,
                    "samples_per_s": kind.samples_per_s,
                    "share_of_ideal": kind.share,
                    "local_steps": kind.local_steps,
                    "staleness_mean": kind.staleness_mean,
                    "staleness_max": kind.staleness_max,
                    "exchange_s": kind.exchange_s,
                    "encoding_share": kind.encoding,
                    "waiting_share": kind.waiting,
                    "limit": kind.limit,
                }
                for kind in self.kinds
            ],
        }


def limit_of(*, encoding: float, waiting: float, load: Load, thin: bool) -> str:
    """Return the bottleneck of a kind of PC.

    Args:
        encoding: share of its time.
        waiting: share of its time.
        load: of the ps.
        thin: whether its own link takes longer than the rest of its exchange.
    """
    if encoding + waiting < _FREE:
        return COMPUTE
    if encoding > waiting:
        return ENCODING
    if thin:
        return OWN_LINK
    return load.full or ROUND_TRIP
