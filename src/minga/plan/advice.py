"""Advice for a run limited by its network or its ps: each suggestion is simulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from minga.plan.outcome import COMPUTE, OWN_LINK, PS_CPU, PS_LINK, Outcome
from minga.plan.prediction import predict
from minga.plan.scenario import Costs, Scenario

_LINKS_MBITS = (100.0, 1000.0, 2500.0, 10_000.0)
_GAIN = 1.05
_AS_MUCH = 0.95


@dataclass(frozen=True, slots=True)
class Change:
    """A suggestion and its outcome.

    Args:
        what: in words.
        samples_per_s: of all PCs with it.
    """

    what: str
    samples_per_s: float


def helps(outcome: Outcome) -> list[Change]:
    """Return suggestions that give 5 % more samples per second, or as many with half of the PCs."""
    if outcome.limit == COMPUTE:
        return []
    found = []
    for what, scenario in _changes(outcome):
        changed = predict(scenario).samples_per_s
        fewer = scenario.workers < outcome.scenario.workers
        if changed > (_AS_MUCH if fewer else _GAIN) * outcome.samples_per_s:
            found.append(Change(what, changed))
    return found


def _changes(outcome: Outcome) -> Iterator[tuple[str, Scenario]]:
    now, limit = outcome.scenario, outcome.limit
    if now.codec != "int8":
        yield "the codec int8", replace(now, codec="int8", costs=Costs.of("int8"))
    if now.local_steps is not None:
        yield "H left to minga", replace(now, local_steps=None)
    if now.in_flight != "train":
        yield "training while a push is in flight", replace(now, in_flight="train")
    if limit == PS_LINK and (link := _faster(now.ps_link_mbits)):
        yield f"a ps link of {link:g} Mbit/s", replace(now, ps_link_mbits=link)
    if limit == PS_CPU:
        cores = 2 * now.ps_cores
        yield f"{cores} cores at the ps", replace(now, ps_cores=cores)
    if limit == OWN_LINK:
        slow = min(kind.link_mbits for kind in now.pcs)
        if link := _faster(slow):
            kinds = (replace(each, link_mbits=max(link, each.link_mbits)) for each in now.pcs)
            yield f"{link:g} Mbit/s in place of {slow:g}", replace(now, pcs=tuple(kinds))
    if limit in (PS_LINK, PS_CPU) and now.workers > 1:
        half = tuple(replace(kind, count=max(1, kind.count // 2)) for kind in now.pcs)
        fewer = replace(now, pcs=half)
        yield f"only {fewer.workers} of the PCs", fewer


def _faster(mbits: float) -> float | None:
    return next((each for each in _LINKS_MBITS if each > mbits), None)
