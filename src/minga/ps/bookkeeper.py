"""The books of a run: admission of pushes, counting, leases, the next work.

One event loop owns them, so there are no locks. No tensor passes through here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from minga import messages
from minga.algorithm import localsgd
from minga.algorithm.pacing import balance, explain, worth_a_change
from minga.messages import Answer, Malformed, Push
from minga.observe.events import EventLog
from minga.protocol import DONE, STOPPED, TRAIN, WAIT
from minga.ps import requests
from minga.ps.evaluation import Evaluation
from minga.ps.health import Health
from minga.ps.journal import Journal
from minga.ps.ledger import Ledger
from minga.ps.members import LEFT, LOST, TRAINING, Member, Members
from minga.ps.parameters import SharedParameters
from minga.ps.pushes import facts_of, record_push
from minga.ps.rounds import Rounds
from minga.ps.run_plan import Plan
from minga.ps.sessions import Handle, Pending
from minga.settings.schema import Mode

ASYNC: Mode = "async"
_LEASED_WINDOWS = 2
MOST_MISFITS = 3
"""Malformed messages, after which a worker is sent away."""
MOST_SPOILT = 32
"""Pushes in a row that are refused for their content while another worker's count."""


class Bookkeeper:
    """The run's books: ledger, journal, members, schedule, last push of each worker process.

    Attributes:
        phase: ``train`` until the run is over, then ``done``; ``stopped`` after a stop request.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        parameters: SharedParameters,
        journal: Journal,
        events: EventLog,
        members: Members,
    ) -> None:
        settings, facts = plan.settings, plan.facts
        self.plan = plan
        self.parameters = parameters
        self.journal = journal
        self.events = events
        self.members = members
        self.phase: messages.Task = TRAIN
        self.norms = localsgd.RecentNorms()
        self.health = Health()
        self.last_sequence: dict[str, int] = {}
        self.progressed: Callable[[], None] = lambda: None
        self.ledger = Ledger(
            "train",
            samples=facts.train,
            epochs=settings.train.epochs,
            chunk=plan.chunk,
            lease_s=settings.ledger.lease_s,
        )
        self.evaluation = Evaluation(
            parameters,
            train=facts.train,
            validate=facts.val,
            recalibration_images=settings.evaluation.recalibration_images,
            lease_s=settings.ledger.lease_s,
        )
        self.last_push = 0
        self.rounds = Rounds()

    def state(self) -> dict[str, Any]:
        """Return the books for a checkpoint (plain types only)."""
        return {
            "ledger": self.ledger.state(),
            "last_sequence": dict(self.last_sequence),
            "last_push": self.last_push,
            "journal_lines": self.journal.lines,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`; the journal's owner truncates the journal."""
        self.ledger.restore(state["ledger"])
        self.last_sequence = dict(state["last_sequence"])
        self.last_push = int(state["last_push"])

    async def answer_async(self, handle: Handle, request: requests.Request) -> requests.Reply:
        """Answer a session's request; wait for a round to close, at most one second."""
        member = handle.member
        match request:
            case requests.AskRound():
                closed = await self.rounds.closed(request.number)
                member.heard_s = time.monotonic()
                self.ledger.renew(member.owner, member.heard_s)
                return Answer(work=self.work(member)) if closed else requests.NotYet()
            case requests.ForbiddenName():
                peers = await asyncio.to_thread(handle.peers)
                self.events.write("rpc_refused", name=request.name, peers=peers, **member.identity)
                return Answer()
        return self.answer(handle, request)

    def answer(self, handle: Handle, request: requests.Request) -> requests.Reply:
        """Answer a session's request. Raises ValueError if it does not fit the session's state."""
        member = handle.member
        member.heard_s = time.monotonic()
        match request:
            case requests.Ready():
                handle.port = request.port
                handle.ready.set()
            case requests.Admit():
                return self._admit(handle, request.push)
            case requests.Applied():
                return self._applied(handle, request)
            case requests.Refuse():
                return self._refused_for_content(handle, request)
            case requests.AskWork():
                return self._work_of(handle)
            case requests.Renew():
                self.ledger.renew(member.owner, time.monotonic())
                self.evaluation.renew(member.owner)
            case requests.Evaluated():
                return self._result(handle, request)
            case requests.Left():
                self._leave(member, request.failed)
            case requests.Drifted():
                return self._refused(handle, "reference drifted", 0, request.push)
            case requests.Misfit():
                self._misfit(handle, request.what)
            case requests.Lost():
                if member.state != LEFT:
                    self.events.write("session_lost", reason=request.reason, **member.identity)
            case other:
                raise ValueError(f"a session asked {other!r}")
        return Answer()

    def settle(self, handle: Handle, applied: requests.Applied | None = None) -> None:
        """Count a pending push if, and only if, the shared memory records it as applied."""
        pending, member = handle.pending, handle.member
        if pending is None or self.parameters.applied(handle.spec.slot) != pending.push:
            return
        handle.pending = None
        push = pending.message
        self.ledger.count(push.progress, time.monotonic())
        self.last_sequence[member.uuid] = push.sequence
        version = self.parameters.version
        # a session killed before its report: the upper limit, without this push itself
        staleness = applied.staleness if applied else max(0, version - 1 - push.base_version)
        self.journal.write(
            {
                "push": pending.push,
                "worker": member.rank,
                "uuid": member.uuid,
                "sequence": push.sequence,
                "version": version,
                "spans": [[s.epoch, s.start, s.stop, s.crc] for s in push.progress],
            }
        )
        member.totals.session_cpu_s += applied.session_cpu_s if applied else 0.0
        member.spoilt = 0
        batch_size = member.batch_size or self.plan.settings.train.batch_size
        record_push(member, push, staleness, batch_size)
        if stands_for := member.pushed.due(time.monotonic()):
            self.events.write(
                "push",
                worker=member.name,
                rank=member.rank,
                version=version,
                staleness=staleness,
                samples_done=self.ledger.counted,
                pushes=stands_for,
                **facts_of(push, applied),
            )
        self._note_finite(member, finite=push.loss is not None)
        self.progressed()

    def on_session_end(self, handle: Handle) -> None:
        """Settle the push of an ended session, then take back its leases."""
        member = handle.member
        if handle.failure:
            self.events.write("session_lost", reason=handle.failure, **member.identity)
        self.settle(handle)
        handle.pending = None
        self.norms.forget(member.rank)
        back = self.ledger.give_back(member.owner)
        self.evaluation.give_back(member.owner)
        self.rounds.leave(member.owner)
        self.close_round()
        if self.members.current(member) and member.state == TRAINING:
            member.state = LOST
            self.events.write(
                "worker_lost", worker=member.name, rank=member.rank, samples_back=back
            )

    def close_round(self) -> None:
        """Close the round if no other worker will push."""
        exchange, waiting = self.plan.settings.exchange, self.rounds.waiting
        others = self.phase == TRAIN and any(
            member.state == TRAINING
            and member.owner not in waiting
            and self.ledger.held(member.owner)
            for member in self.members
        )
        active = self.parameters.active_workers
        wanted = localsgd.pushes_in_round(exchange.mode, exchange.aggregate, active)
        self.rounds.close_if(wanted, others=others)

    def repace(self) -> None:
        """Choose H for all training workers, and log the choice if it differs much."""
        exchange = self.plan.settings.exchange
        training = {member.rank: member for member in self.members if member.state == TRAINING}
        typical = {rank: member.paces.typical for rank, member in training.items()}
        paces = {rank: pace for rank, pace in typical.items() if pace is not None}
        if exchange.local_steps is not None or not paces:
            return
        pacing = balance(
            paces,
            self.plan.facts.train,
            overlap=exchange.in_flight == "train",
            alike=exchange.mode != ASYNC,
        )
        if not worth_a_change(pacing.steps, {rank: training[rank].steps for rank in paces}):
            return
        for rank, steps in pacing.steps.items():
            training[rank].steps = steps
        self.events.write(
            "pacing",
            window_s=pacing.window_s,
            steps={str(rank): steps for rank, steps in pacing.steps.items()},
            short_by=pacing.short_by,
            why=explain(pacing, paces),
        )

    def work(self, member: Member) -> messages.Work:
        """Return this worker's next work."""
        done = self.ledger.counted
        if self.phase in (DONE, STOPPED):
            return messages.Work(task=self.phase, samples_done=done)
        settings, now_s = self.plan.settings, time.monotonic()
        leases = self.evaluation.grant(member.owner)
        steps = settings.exchange.local_steps or member.steps
        batch_size = member.batch_size or settings.train.batch_size
        missing = _LEASED_WINDOWS * steps * batch_size - self.ledger.held(member.owner)
        leases += self.ledger.grant(member.owner, missing, now_s)
        busy = bool(leases) or self.ledger.held(member.owner) > 0
        return messages.Work(
            task=TRAIN if busy else WAIT,
            lr=localsgd.worker_rate(
                self.plan.learning_rate(done), batch_size, settings.train.batch_size
            ),
            steps=steps,
            leases=leases,
            snapshot=self.evaluation.snapshot,
            samples_done=done,
        )

    def _admit(self, handle: Handle, push: Push) -> requests.Reply:
        member = handle.member
        if push.sequence <= self.last_sequence.get(member.uuid, 0):
            return Answer(verdict="duplicate", work=self.work(member))
        objection = self.ledger.objection(member.owner, push.progress)
        if objection is not None:
            return self._refused(handle, objection, 0, push)
        self.last_push += 1
        handle.pending = Pending(self.last_push, push)
        self.ledger.renew(member.owner, time.monotonic())
        return requests.Grant(
            push=self.last_push,
            median_norm=self.norms.median,
            own_staleness=self.members.pushes_per_s() * push.round_s,
        )

    def _applied(self, handle: Handle, applied: requests.Applied) -> Answer:
        member = handle.member
        self.settle(handle, applied)
        self.norms.add(member.rank, applied.norm)
        if self.plan.settings.exchange.mode == ASYNC:
            return Answer(verdict="applied", work=self.work(member))
        number = self.rounds.arrive(member.owner)
        self.close_round()
        return Answer(verdict="applied", round=number)

    def _refused_for_content(self, handle: Handle, refused: requests.Refuse) -> Answer:
        member = handle.member
        if refused.reason == localsgd.OUTSIZED_PUSH and refused.norm is not None:
            self.norms.add_outsized(member.rank, refused.norm)
        if handle.pending is None:
            raise ValueError("a session refused a push that was not granted")
        answer = self._refused(handle, refused.reason, refused.staleness, handle.pending.message)
        if refused.reason in (localsgd.OUTSIZED_PUSH, localsgd.NON_FINITE):
            member.spoilt += 1
            others = [
                each for each in self.members if each.state == TRAINING and each is not member
            ]
            if member.spoilt >= MOST_SPOILT and not all(each.spoilt for each in others):
                self._send_away(handle, f"{member.spoilt} pushes in a row were {refused.reason}")
        return answer

    def _refused(self, handle: Handle, reason: str, staleness: int, push: Push) -> Answer:
        """Refuse a push as a whole: its samples are leased again."""
        member = handle.member
        handle.pending = None
        self.ledger.refuse(member.owner, push.progress, time.monotonic())
        member.totals.refused += 1
        if stands_for := member.refused.due(time.monotonic()):
            self.events.write(
                "refused",
                worker=member.name,
                rank=member.rank,
                reason=reason,
                staleness=staleness,
                samples=push.samples,
                pushes=stands_for,
            )
        if reason == localsgd.NON_FINITE:
            self._note_finite(member, finite=False)
        return Answer(verdict="refused", reason=reason, work=self.work(member))

    def _misfit(self, handle: Handle, what: str) -> None:
        """Count a malformed message; its sender is sent away after the third."""
        member = handle.member
        member.misfits += 1
        self.events.write("malformed", what=what, count=member.misfits, **member.identity)
        if member.misfits >= MOST_MISFITS:
            self._send_away(handle, f"{member.misfits} malformed messages, the last one {what}")

    def _send_away(self, handle: Handle, why: str) -> None:
        self.members.send_away(handle.member, why)
        self.events.write("sent_away", reason=why, **handle.member.identity)
        handle.kill()

    def _note_finite(self, member: Member, *, finite: bool) -> None:
        if finite:
            self.health.good(member.rank)
            return
        why = self.health.bad(member, self.members)
        if why is not None:
            row = self.health.row(member.rank)
            self.events.write("worker_not_finite", in_a_row=row, why=why, **member.identity)
        if self.health.diverged:
            self.progressed()

    def _leave(self, member: Member, failed: messages.Problem | None) -> None:
        member.state = LEFT
        if failed is None:
            self.events.write("worker_left", worker=member.name, rank=member.rank)
            return
        self.events.write("worker_failed", code=failed.code, what=failed.what, **member.identity)

    def _work_of(self, handle: Handle) -> Answer:
        member = handle.member
        if not handle.in_use.is_set():
            handle.in_use.set()
            member.state = TRAINING
            self.events.write(
                "worker_join",
                worker=member.name,
                rank=member.rank,
                host=member.host,
                device=member.device,
                token=member.token,
                generation=member.generation,
            )
            self.parameters.active_workers = self.members.active(time.monotonic())
        work = self.work(member)
        self.close_round()  # without a lease it makes no push that others could wait for
        return Answer(work=work)

    def _result(self, handle: Handle, evaluated: requests.Evaluated) -> Answer:
        member, result = handle.member, evaluated.result
        self.ledger.renew(member.owner, time.monotonic())
        try:
            counted = self.evaluation.take(member.owner, result, evaluated.statistics)
        except Malformed as error:
            self._misfit(handle, str(error))
            counted = False
        if counted:  # for audits of a validation
            self.events.write(
                result.kind,
                worker=member.name,
                rank=member.rank,
                snapshot=self.evaluation.snapshot,
                start=result.start,
                stop=result.stop,
            )
        return Answer(work=self.work(member))
