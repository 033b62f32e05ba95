"""The books of a run: admission of pushes, counting, leases, the next work.

One event loop owns them, so there are no locks. No tensor passes through here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from minga.algorithm import localsgd
from minga.algorithm.pacing import balance, explain, worth_a_change
from minga.observe.events import EventLog
from minga.protocol import DONE, STOPPED, TRAIN, WAIT, Work
from minga.ps.evaluation import Evaluation
from minga.ps.health import Health
from minga.ps.journal import Journal
from minga.ps.ledger import Ledger
from minga.ps.members import LEFT, LOST, TRAINING, Member, Members
from minga.ps.parameters import SharedParameters
from minga.ps.pushes import record_push, round_s, spans_of
from minga.ps.rounds import Rounds
from minga.ps.run_plan import Plan
from minga.ps.sessions import Handle, Pending
from minga.settings.schema import Mode
from minga.transport.stream import Message

ASYNC: Mode = "async"
_COSTS = ("session_cpu_s", "apply_cpu_s", "reply_cpu_s")
_LEASED_WINDOWS = 2


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
        self.phase = TRAIN
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

    async def answer_async(self, handle: Handle, asked: Message) -> Message:
        """Answer a session's request; wait for a round to close, at most one second."""
        if asked["do"] != "round":
            return self.answer(handle, asked)
        member = handle.member
        closed = await self.rounds.closed(int(asked["number"]))
        member.heard_s = time.monotonic()
        self.ledger.renew(member.owner, member.heard_s)
        return {"closed": closed, **(self.work(member) if closed else {})}

    def answer(self, handle: Handle, asked: Message) -> Message:
        """Answer a session's request. Raises ValueError for an unknown request."""
        member = handle.member
        member.heard_s = time.monotonic()
        match asked["do"]:
            case "ready":
                handle.port = int(asked["port"])
                handle.ready.set()
            case "admit":
                return self._admit(handle, asked["message"])
            case "applied":
                return self._applied(handle, asked)
            case "refused":
                if asked["reason"] == localsgd.OUTSIZED_PUSH:
                    self.norms.add_outsized(float(asked["norm"]))
                return self._refused(handle, str(asked["reason"]), int(asked["staleness"]))
            case "work":
                return self._work_of(handle)
            case "progress":
                self.ledger.renew(member.owner, time.monotonic())
                self.evaluation.renew(member.owner)
            case "result":
                return self._result(member, asked["message"], str(asked["vector"]))
            case "leave":
                self._leave(member, asked["message"].get("failed"))
            case "drifted":
                return self._refused(handle, "reference drifted", 0, asked["message"])
            case "lost" | "stranger" as kind:
                self._log_session(kind, member, asked)
            case other:
                raise ValueError(f"a session asked {other!r}")
        return {}

    def settle(self, handle: Handle, facts: Message | None = None) -> None:
        """Count a pending push if, and only if, the shared memory records it as applied."""
        pending, member = handle.pending, handle.member
        if pending is None or self.parameters.applied(handle.spec.slot) != pending.push:
            return
        handle.pending = None
        message = pending.message
        spans = spans_of(message)
        self.ledger.count(spans, time.monotonic())
        self.last_sequence[member.uuid] = int(message["sequence"])
        samples = sum(span.stop - span.start for span in spans)
        # a session killed before its report: the upper limit, without this push itself
        between = self.parameters.version - 1 - int(message["base_version"])
        facts = facts or {}
        staleness = int(facts.get("staleness", max(0, between)))
        self.journal.write(
            {
                "push": pending.push,
                "worker": member.rank,
                "uuid": member.uuid,
                "sequence": message["sequence"],
                "version": self.parameters.version,
                "spans": [[span.epoch, span.start, span.stop, span.crc] for span in spans],
            }
        )
        member.totals.session_cpu_s += float(facts.get("session_cpu_s", 0.0))
        batch_size = member.batch_size or self.plan.settings.train.batch_size
        record_push(member, message, samples, staleness, batch_size)
        self.events.write(
            "push",
            worker=member.name,
            rank=member.rank,
            version=self.parameters.version,
            base_version=message["base_version"],
            staleness=staleness,
            samples=samples,
            samples_done=self.ledger.counted,
            loss=message.get("loss"),
            lr=message.get("lr"),
            steps=message.get("steps"),
            compute_s=message.get("compute_s"),
            wait_s=message.get("wait_s"),
            exchange_s=message.get("exchange_s"),
            overhead_s=message.get("overhead_s"),
            encode_cpu_s=message.get("encode_cpu_s"),
            **{name: facts.get(name) for name in _COSTS},
        )
        self._note_finite(member, finite=math.isfinite(message.get("loss") or 0.0))
        self.progressed()

    def on_session_end(self, handle: Handle) -> None:
        """Settle the push of an ended session, then take back its leases."""
        member = handle.member
        self.settle(handle)
        handle.pending = None
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

    def work(self, member: Member) -> Message:
        """Return ``{"work": ...}``, this worker's next work."""
        return {"work": self._next(member).to_dict()}

    def _next(self, member: Member) -> Work:
        done = self.ledger.counted
        if self.phase in (DONE, STOPPED):
            return Work(task=self.phase, samples_done=done)
        settings, now_s = self.plan.settings, time.monotonic()
        leases = self.evaluation.grant(member.owner)
        steps = settings.exchange.local_steps or member.steps
        batch_size = member.batch_size or settings.train.batch_size
        missing = _LEASED_WINDOWS * steps * batch_size - self.ledger.held(member.owner)
        leases += self.ledger.grant(member.owner, missing, now_s)
        busy = bool(leases) or self.ledger.held(member.owner) > 0
        return Work(
            task=TRAIN if busy else WAIT,
            lr=localsgd.worker_rate(
                self.plan.learning_rate(done), batch_size, settings.train.batch_size
            ),
            steps=steps,
            leases=[lease.to_list() for lease in leases],
            snapshot=self.evaluation.snapshot,
            samples_done=done,
        )

    def _admit(self, handle: Handle, message: Message) -> Message:
        member, sequence = handle.member, int(message["sequence"])
        if sequence <= self.last_sequence.get(member.uuid, 0):
            return {"verdict": "duplicate", **self.work(member)}
        objection = self.ledger.objection(member.owner, spans_of(message))
        if objection is not None:
            return self._refused(handle, objection, 0, message)
        self.last_push += 1
        handle.pending = Pending(self.last_push, message)
        self.ledger.renew(member.owner, time.monotonic())
        return {
            "verdict": "granted",
            "push": self.last_push,
            "median_norm": self.norms.median,
            "own_staleness": self.members.pushes_per_s() * round_s(message),
        }

    def _applied(self, handle: Handle, asked: Message) -> Message:
        member = handle.member
        self.settle(handle, asked)
        self.norms.add(float(asked["norm"]))
        if self.plan.settings.exchange.mode == ASYNC:
            return {"verdict": "applied", **self.work(member)}
        number = self.rounds.arrive(member.owner)
        self.close_round()
        return {"verdict": "applied", "round": number}

    def _refused(
        self, handle: Handle, reason: str, staleness: int, message: Message | None = None
    ) -> Message:
        """Refuse a push as a whole: its samples are leased again."""
        member = handle.member
        if message is None:
            assert handle.pending is not None, "only a pending push is refused"
            message = handle.pending.message
        handle.pending = None
        spans = spans_of(message)
        self.ledger.refuse(member.owner, spans, time.monotonic())
        member.totals.refused += 1
        self.events.write(
            "refused",
            worker=member.name,
            rank=member.rank,
            reason=reason,
            staleness=staleness,
            samples=sum(span.stop - span.start for span in spans),
        )
        if reason == localsgd.NON_FINITE:
            self._note_finite(member, finite=False)
        return {"verdict": "refused", "reason": reason, **self.work(member)}

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

    def _leave(self, member: Member, failed: Message | None) -> None:
        member.state = LEFT
        if failed is None:
            self.events.write("worker_left", worker=member.name, rank=member.rank)
            return
        code, what = str(failed["code"]), str(failed["what"])
        self.events.write("worker_failed", code=code, what=what, **member.identity)

    def _work_of(self, handle: Handle) -> Message:
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
                generation=member.generation,
            )
            self.parameters.active_workers = self.members.active(time.monotonic())
        work = self.work(member)
        self.close_round()  # without a lease it makes no push that others could wait for
        return work

    def _result(self, member: Member, message: Message, vector: str) -> Message:
        span = self.evaluation.take(member.owner, message, vector)
        self.ledger.renew(member.owner, time.monotonic())
        if span is not None:
            self.journal_evaluation(member, message)
        return self.work(member)

    def journal_evaluation(self, member: Member, message: Message) -> None:
        """Log which worker evaluated which samples, for audits of a validation."""
        self.events.write(
            str(message["kind"]),
            worker=member.name,
            rank=member.rank,
            snapshot=self.evaluation.snapshot,
            start=message["start"],
            stop=message["stop"],
        )

    def _log_session(self, kind: str, member: Member, asked: Message) -> None:
        facts = member.identity
        if kind == "lost" and member.state == LEFT:
            return  # it has left before
        if kind == "lost":
            self.events.write("session_lost", reason=asked["reason"], **facts)
        else:
            self.events.write("rpc_refused", name=asked["name"], peers=asked["peers"], **facts)
