"""Predict a scenario's outcome: warm up until H is settled, then measure some rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from minga.algorithm.pacing import balance, explain
from minga.plan.outcome import KindOutcome, Load, Outcome, limit_of
from minga.plan.scenario import Pcs, Scenario
from minga.plan.simulation import Simulation, Worker

_SETTLED_S = 12.0
"""H is chosen every 5 s; without a change for so long, and for two windows, it is settled."""
_WARM_ROUNDS = 3
_ROUNDS = 20
_MOST_WARM_PUSHES = 10_000
_MOST_ROUNDS, _MOST_PUSHES = 100, 2_000
"""Upper limit, settled or not, even if a PC on a very slow link had few rounds."""
_SLICE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters at one moment; those of workers in their order."""

    at_s: float
    carried_bytes: tuple[float, float]
    core_s: float
    lock_s: float
    pushes: list[int]
    encoding_s: list[float]
    waiting_s: list[float]

    @classmethod
    def take(cls, run: Simulation) -> Self:
        """Read all counters."""
        return cls(
            at_s=run.env.now,
            carried_bytes=(run.ps.link_in.carried_bytes, run.ps.link_out.carried_bytes),
            core_s=run.ps.core_s,
            lock_s=run.ps.lock_s,
            pushes=[len(worker.marks) for worker in run.workers],
            encoding_s=[worker.encoding_s for worker in run.workers],
            waiting_s=[worker.waiting_s for worker in run.workers],
        )


def predict(scenario: Scenario) -> Outcome:
    """Simulate a run until it is steady; return its outcome. Deterministic."""
    run = Simulation(scenario)
    while not _settled(run) and run.ps.version < _MOST_WARM_PUSHES:
        run.run(_SLICE_S)
    before = _Reading.take(run)
    most = run.ps.version + max(_MOST_PUSHES, _MOST_ROUNDS * scenario.workers)
    while _rounds(run, before) < _ROUNDS and run.ps.version < most:
        run.run(_SLICE_S)
    return _outcome(run, before, _Reading.take(run))


def _settled(run: Simulation) -> bool:
    if any(len(worker.marks) < _WARM_ROUNDS for worker in run.workers):
        return False
    round_s = max(worker.marks[-1][0] - worker.marks[-2][0] for worker in run.workers)
    return run.env.now - run.changed_s >= max(_SETTLED_S, 2 * round_s)


def _rounds(run: Simulation, since: _Reading) -> int:
    return min(
        len(worker.marks) - pushes for worker, pushes in zip(run.workers, since.pushes, strict=True)
    )


def _outcome(run: Simulation, before: _Reading, after: _Reading) -> Outcome:
    scenario, took_s = run.scenario, after.at_s - before.at_s
    towards, away = (
        (b - a) / took_s / run.ps.link_in.bytes_per_s
        for a, b in zip(before.carried_bytes, after.carried_bytes, strict=True)
    )
    load = Load(
        link_in=towards,
        link_out=away,
        cores=(after.core_s - before.core_s) / took_s / scenario.ps_cores,
        lock=(after.lock_s - before.lock_s) / took_s,
    )
    kinds, first = [], 0
    for pcs in scenario.pcs:
        numbers = range(first, first + pcs.count)
        first += pcs.count
        kinds.append(_kind(run, pcs, numbers, (before, after), load))
    paces, why, network_bound = run.paces(), None, False
    if scenario.local_steps is None and paces:
        overlap = scenario.in_flight == "train"
        pacing = balance(paces, scenario.train_images, overlap=overlap)
        why, network_bound = explain(pacing, paces), pacing.short_by > 1
    return Outcome(
        scenario=scenario,
        kinds=tuple(kinds),
        load=load,
        staleness_mean=statistics.fmean(
            staleness
            for worker, pushes in zip(run.workers, before.pushes, strict=True)
            for _, _, staleness in worker.marks[pushes:] or [(0.0, 0, 0)]
        ),
        why=why,
        network_bound=network_bound,
    )


def _kind(
    run: Simulation,
    pcs: Pcs,
    numbers: Sequence[int],
    readings: tuple[_Reading, _Reading],
    load: Load,
) -> KindOutcome:
    before, after = readings
    workers = [run.workers[number] for number in numbers]
    seen = [run.workers[n].marks[before.pushes[n] :] for n in numbers]
    staleness = [each for marks in seen for _, _, each in marks] or [0]
    all_s = len(workers) * (after.at_s - before.at_s)
    encoding = sum(after.encoding_s[n] - before.encoding_s[n] for n in numbers) / all_s
    waiting = sum(after.waiting_s[n] - before.waiting_s[n] for n in numbers) / all_s
    exchange_s = statistics.fmean(_exchange_s(worker) for worker in workers)
    travel_s = 2 * run.scenario.exchange_bytes / workers[0].link_bytes_per_s
    thin = pcs.link_mbits < run.scenario.ps_link_mbits and travel_s > exchange_s / 2
    return KindOutcome(
        pcs=pcs,
        samples_per_s=sum(rate(marks, after.at_s - before.at_s) for marks in seen),
        local_steps=round(
            statistics.median(
                steps
                for n, marks in zip(numbers, seen, strict=True)
                for steps in run.workers[n].windows[before.pushes[n] :][: len(marks)] or [0]
            )
        ),
        staleness_mean=statistics.fmean(staleness),
        staleness_max=max(staleness),
        exchange_s=exchange_s,
        encoding=encoding,
        waiting=waiting,
        limit=limit_of(encoding=encoding, waiting=waiting, load=load, thin=thin),
    )


def rate(marks: Sequence[tuple[float, int, int]], watched_s: float) -> float:
    """Return samples per second from the first to the last mark, as the benchmark counts them."""
    samples = [each for _, each, _ in marks]
    if len(marks) < 2:
        return sum(samples) / watched_s
    return sum(samples[1:]) / (marks[-1][0] - marks[0][0])


def _exchange_s(worker: Worker) -> float:
    pace = worker.paces.typical
    return pace.exchange_s if pace is not None else worker.exchange_s
