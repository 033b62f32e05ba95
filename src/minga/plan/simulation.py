"""A run as discrete events: windows, pushes, the ps's cores and link, minga's own pacing.

It simulates a round of :mod:`minga.worker.trainer` and :mod:`minga.ps.session`.
Not simulated: validations, failures, data loading, other load on the PCs.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any, TypeAlias

import simpy

from minga.algorithm.pacing import EVERY_S, FIRST_STEPS, Pace, RecentPaces, balance, worth_a_change
from minga.plan.network import SharedLink
from minga.plan.scenario import Pcs, Scenario, link_bytes_per_s
from minga.transport.reply_turns import HOLD_S, WAIT_S

Events: TypeAlias = Generator[simpy.Event, Any, None]


class Ps:
    """The ps's PC: a link, cores, and the lock under which pushes are applied.

    Attributes:
        version: pushes applied so far.
        core_s: CPU seconds used so far.
        lock_s: seconds that the lock was held so far.
    """

    def __init__(self, env: simpy.Environment, scenario: Scenario) -> None:
        rate = link_bytes_per_s(scenario.ps_link_mbits)
        self.link_in, self.link_out = SharedLink(env, rate), SharedLink(env, rate)
        self.version = 0
        self.core_s = self.lock_s = 0.0
        self._env = env
        self._scenario = scenario
        self._cores = simpy.Resource(env, scenario.ps_cores)
        self._lock = simpy.Resource(env, 1)
        self._turns = simpy.Resource(env, 1)

    def exchange(self, worker: Worker, pace: Pace | None) -> Events:
        """Receive a worker's push and reply."""
        scenario, began_s = self._scenario, self._env.now
        base_version = worker.version
        reply_ns, apply_ns = scenario.costs.reply_ns, scenario.costs.apply_ns
        yield self._env.timeout(scenario.costs.call_s + worker.encode_s)
        yield from self._travel(self.link_in, worker)
        with self._lock.request() as turn:
            yield turn
            locked_s = self._env.now
            yield from self._work(apply_ns * 1e-9 * scenario.parameters)
            self.lock_s += self._env.now - locked_s
            staleness = self.version - base_version
            self.version += 1
        worker.count(staleness, pace)
        answered = (self.version, worker.granted)  # the next work goes along with the reply
        yield from self._work(reply_ns * 1e-9 * scenario.parameters)
        yield from self._reply(worker)
        worker.answered = answered
        worker.exchange_s = self._env.now - began_s

    def _reply(self, worker: Worker) -> Events:
        """Send the reply; replies take turns, as in the session processes."""
        with self._turns.request() as turn:
            yield turn | self._env.timeout(WAIT_S)
            across = self._env.process(self._travel(self.link_out, worker))
            yield across | self._env.timeout(HOLD_S)
        yield across

    def _travel(self, link: SharedLink, worker: Worker) -> Events:
        """Forwarding and the link overlap; the slower one decides."""
        across = link.send(self._scenario.exchange_bytes, worker.link_bytes_per_s)
        yield across & self._env.process(self._work(self._scenario.forward_s))

    def _work(self, seconds: float) -> Events:
        with self._cores.request() as core:
            yield core
            yield self._env.timeout(seconds)
        self.core_s += seconds


class Worker:
    """One PC's trainer.

    Attributes:
        version: of the weights that its next window starts from.
        granted: H of the windows that the ps will hand out next.
        answered: version and H from the last reply.
        paces: of its last windows; empty before its second push.
        marks: time, samples and staleness of each applied push.
        windows: H of each applied push.
        encode_s: seconds to encode a push, while training continues.
        encoding_s: seconds so far of copying and rebasing, without training.
        waiting_s: idle seconds so far.
    """

    def __init__(self, env: simpy.Environment, ps: Ps, scenario: Scenario, pcs: Pcs) -> None:
        self.pcs = pcs
        self.link_bytes_per_s = link_bytes_per_s(pcs.link_mbits)
        self.step_s = scenario.batch_size / pcs.images_per_s
        self.granted = scenario.local_steps or FIRST_STEPS
        self.version = 0
        self.answered = (0, self.granted)
        self.exchange_s = 0.0
        self.paces = RecentPaces()
        self.marks: list[tuple[float, int, int]] = []
        self.windows: list[int] = []
        self.encoding_s = self.waiting_s = 0.0
        self._env = env
        self._ps = ps
        self._scenario = scenario
        self._steps = self.granted
        self._pushed: simpy.Process | None = None
        nanoseconds = 1e-9 * scenario.parameters
        self.encode_s = scenario.costs.encode_ns * nanoseconds
        self._hold_s = scenario.costs.hold_ns * nanoseconds
        self._rebase_s = scenario.costs.rebase_ns * nanoseconds

    def count(self, staleness: int, pace: Pace | None) -> None:
        """Record an applied push."""
        if pace is not None:
            self.paces.add(pace)
        samples = self.windows[-1] * self._scenario.batch_size
        self.marks.append((self._env.now, samples, staleness))

    def run(self, noise: random.Random) -> Events:
        """Train without end."""
        jitter, overlap = self._scenario.jitter, self._scenario.in_flight == "train"
        yield self._env.timeout(noise.random() * self._steps * self.step_s)
        while True:
            step_s = self.step_s * (1 + jitter * noise.uniform(-1, 1))
            done = 0
            while done < self._steps:
                if self._pushed is not None and self._pushed.triggered:
                    yield from self._settle(self._pushed)
                # polls for a reply before each step; with none outstanding, all steps are one
                steps = 1 if self._pushed is not None else max(1, self._steps - done)
                yield self._env.timeout(steps * step_s)
                done += steps
            if self._pushed is not None:
                yield from self._settle(self._pushed)
            yield self._env.timeout(self._hold_s)
            self.encoding_s += self._hold_s
            self.windows.append(done)
            self._pushed = self._env.process(self._ps.exchange(self, self._measured(step_s)))
            if not overlap:
                yield from self._settle(self._pushed)

    def _measured(self, step_s: float) -> Pace | None:
        """Return the pace that a push reports: this window's, and the exchange before."""
        if not self.exchange_s:
            return None
        overhead_s = self._hold_s + self._rebase_s
        return Pace(step_s, self.exchange_s, overhead_s, self._scenario.batch_size)

    def _settle(self, pushed: simpy.Process) -> Events:
        """Wait for the reply and apply it."""
        asked_s = self._env.now
        yield pushed
        self.waiting_s += self._env.now - asked_s
        self._pushed = None
        self.version, self._steps = self.answered
        yield self._env.timeout(self._rebase_s)
        self.encoding_s += self._rebase_s


class Simulation:
    """A scenario in simulated time.

    Attributes:
        env: its clock.
        ps: the ps.
        workers: in the order of the scenario's PCs.
        changed_s: time of the last change of H.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.env = env = simpy.Environment()
        self.scenario = scenario
        self.ps = ps = Ps(env, scenario)
        self.workers = [
            Worker(env, ps, scenario, pcs) for pcs in scenario.pcs for _ in range(pcs.count)
        ]
        self.changed_s = 0.0
        for number, worker in enumerate(self.workers):
            env.process(worker.run(random.Random(number)))
        if scenario.local_steps is None:
            env.process(self._repace())

    def run(self, seconds: float) -> None:
        """Simulate so many seconds more."""
        self.env.run(until=self.env.now + seconds)

    def paces(self) -> dict[int, Pace]:
        """Return the workers' paces by number."""
        typical = {number: worker.paces.typical for number, worker in enumerate(self.workers)}
        return {number: pace for number, pace in typical.items() if pace is not None}

    def _repace(self) -> Events:
        """Choose H like the ps."""
        overlap = self.scenario.in_flight == "train"
        while True:
            yield self.env.timeout(EVERY_S)
            paces = self.paces()
            if not paces:
                continue
            steps = balance(paces, self.scenario.train_images, overlap=overlap).steps
            if worth_a_change(steps, {number: self.workers[number].granted for number in steps}):
                self.changed_s = self.env.now
                for number, chosen in steps.items():
                    self.workers[number].granted = chosen
