"""The ps's main process: joins, training, checkpoints, end.

Membership, ledger, schedule, checkpoints and statistics live on one event loop. Tensors stay
in the session processes and in the memory that they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from minga.algorithm import pacing
from minga.data.facts import DataFacts
from minga.errors import Hint, MingaError, Refused
from minga.messages import (
    Admission,
    Hello,
    Malformed,
    Preparation,
    Problem,
    Refusal,
    Terms,
    Version,
    Welcome,
    decode,
)
from minga.observe.events import EventLog
from minga.protocol import DONE, FAILED, STOPPED, loopback_id
from minga.ps.bookkeeper import Bookkeeper
from minga.ps.chores import Chores
from minga.ps.compatible import require_compatible
from minga.ps.evaluation import Measured
from minga.ps.members import LEFT, LOST, Member, Members
from minga.ps.refused import Refusals, RefusedConnections
from minga.ps.report import Report
from minga.ps.run_state import RunState
from minga.ps.session import SessionSpec
from minga.ps.sessions import Handle, Sessions
from minga.timing import PREPARE_S, PS_FAREWELL_S
from minga.transport.door import Door, JoinStream
from minga.transport.identity import Identity

_TICK_S = 1.0


class Coordinator:
    """One run of the ps, from the first join to the last.

    Args:
        state: the run's settings, folder and what a checkpoint held.
        identity: certificate and token.
        world_size: 1 + workers expected; for the schedule and for "3 of 4 are here".
    """

    def __init__(self, state: RunState, identity: Identity, world_size: int) -> None:
        self.state = state
        self.report = Report(state)
        self.events: EventLog = state.events
        self.members: Members = state.members
        self.measured: list[Measured] = state.measured
        self.bookkeeper: Bookkeeper | None = None
        self.refused = RefusedConnections()
        self.show: Callable[[dict[str, Any]], None] = lambda status: None
        self._identity = identity
        self._world_size = world_size
        self._sessions: Sessions | None = None
        self._door = Door(identity, self._joined, self._streamed, self._turned_away)
        self._preparing = asyncio.Lock()
        self._progress = asyncio.Event()
        self._stop = asyncio.Event()
        self.chores = Chores(state.events)

    def open(self, listener: socket.socket) -> int:
        """Accept joins from this listener; return the port."""
        return self._door.open(listener)

    def stop(self) -> None:
        """Ask the run to write a checkpoint and end."""
        self._stop.set()

    async def run(self) -> str:
        """Serve until the run is done, stopped or failed; return which."""
        chores = [
            asyncio.create_task(self.chores.every(_TICK_S, self._tick)),
            asyncio.create_task(self.chores.every(pacing.EVERY_S, self._repace)),
            asyncio.create_task(self._save_regularly()),
        ]
        self.chores.watchdog.start()
        training = asyncio.create_task(self._train())
        ends: list[asyncio.Task[Any]] = [training, asyncio.create_task(self._stop.wait())]
        try:
            finished, _ = await asyncio.wait([*ends, *chores], return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
            phase = training.result() if training.done() else STOPPED
            if self.bookkeeper is not None:
                self.bookkeeper.phase = DONE if phase == DONE else STOPPED
                if phase != FAILED:  # else the checkpoints stay unchanged
                    await self.state.save(self.bookkeeper, self._pending)
                await self._say_goodbye()
        finally:
            self.chores.watchdog.close()
            for task in (*ends, *chores):
                task.cancel()
            await asyncio.gather(*ends, *chores, return_exceptions=True)
            await self._door.close()
            if self._sessions is not None:
                self._sessions.kill_all()
                await self._sessions.all_ended(PS_FAREWELL_S)
        return phase

    # -- the run

    async def _train(self) -> str:
        """Validate when due, until every epoch is counted and evaluated, or the run diverges."""
        bookkeeper = await self._started()
        every = self.state.settings.evaluation.every_epochs * bookkeeper.plan.facts.train
        due = every * (bookkeeper.ledger.counted // every + 1)
        while True:
            while bookkeeper.ledger.counted < min(due, bookkeeper.plan.total_samples):
                self._progress.clear()
                await self._progress.wait()
                if bookkeeper.health.diverged:
                    return FAILED
            counted = bookkeeper.ledger.counted
            due = every * (counted // every + 1)
            await self._measure(bookkeeper, counted)
            if counted >= bookkeeper.plan.total_samples:
                return DONE

    async def _started(self) -> Bookkeeper:
        while self.bookkeeper is None:
            self._progress.clear()
            await self._progress.wait()
        return self.bookkeeper

    async def _measure(self, bookkeeper: Bookkeeper, counted: int) -> None:
        self.events.write("evaluation_start", samples_done=counted)
        result = await bookkeeper.evaluation.run(counted)
        best = all(result.accuracy > earlier.accuracy for earlier in self.measured)
        self.measured.append(result)
        self.events.write(
            "evaluation",
            version=result.version,
            samples_done=result.samples_done,
            accuracy=result.accuracy,
            loss=result.loss,
            best=best,
        )
        if best:
            await self.state.save_best(bookkeeper, result)

    # -- joins

    async def _joined(self, join: JoinStream) -> None:
        member: Member | None = None
        try:
            hello, member = self._welcome(join)
            await join.send(Welcome(welcome=self._terms(member)))
            facts = await self._data_report(join)
            sessions = await self._prepare(facts)
            handle = await sessions.start(member)
            await join.send(
                Admission(
                    id=handle.spec.id,
                    key=handle.spec.key,
                    port=handle.port,
                    here=hello.loopback == loopback_id(),
                    sequence=self._known_sequence(member),
                )
            )
            await sessions.reached(handle, handle.in_use, join)
        except MingaError as error:
            self._turned_away(join.host, error.what)
            hints = [(hint.question, hint.command) for hint in error.hints]
            refused = Problem(code=error.code, what=error.what, hints=hints)
            with contextlib.suppress(OSError):
                await join.send(Refusal(refused=refused))
        except (OSError, EOFError, ValueError) as error:
            self._turned_away(join.host, f"join failed: {str(error) or type(error).__name__}")
        finally:
            if member is not None and member.state == "joining":
                member.state = LEFT

    def _welcome(self, join: JoinStream) -> tuple[Hello, Member]:
        require_compatible(decode(join.hello, Version), join.host)
        try:
            hello = decode(join.hello, Hello)
        except Malformed as error:
            raise Refused(
                f"this worker's join is malformed: {error}", code="join-malformed"
            ) from error
        for old in self._handles_of(hello.uuid):
            if old.member.token == join.token.name:  # else admit refuses the join
                old.kill()  # the same process rejoins: its last session is over
                old.member.state = LOST
        return hello, self.members.admit(hello, join.host, time.monotonic(), join.token)

    def _terms(self, member: Member) -> Terms:
        return Terms(
            run_id=self.state.run_id,
            rank=member.rank,
            name=member.name,
            generation=member.generation,
            world_size=self._world_size,
            settings=self.state.settings.to_dict(),
        )

    async def _data_report(self, join: JoinStream) -> DataFacts:
        while True:
            message = await join.receive(Preparation, PREPARE_S)
            if (failed := message.failed) is not None:
                raise Refused(failed.what, code=failed.code)
            if message.data is not None:
                return message.data

    async def _prepare(self, facts: DataFacts) -> Sessions:
        """Create the parameters with the first worker's data facts."""
        async with self._preparing:
            if self.bookkeeper is None or self._sessions is None:
                self.bookkeeper = await asyncio.to_thread(
                    self.state.prepare, facts, max(1, self._world_size - 1)
                )
                self.bookkeeper.progressed = self._progress.set
                self._sessions = self._make_sessions(self.bookkeeper)
                self._progress.set()
        if differences := facts.differences(self.bookkeeper.plan.facts):
            raise Refused(
                f"this worker's data differ from the run's: {differences}",
                code="data-differs",
                hints=(Hint("is it the same folder on every PC?", "minga data verify"),),
            )
        return self._sessions

    def _make_sessions(self, bookkeeper: Bookkeeper) -> Sessions:
        exchange, parameters = self.state.settings.exchange, bookkeeper.parameters
        template = SessionSpec(
            id="",
            key="",
            slot=0,
            host="",
            codec=exchange.codec,
            gain=exchange.gain,
            max_staleness=exchange.max_staleness,
            weights=parameters.weights,
            buffers=parameters.buffers,
            identity=self._identity,
        )
        return Sessions(template, parameters, bookkeeper.answer_async, bookkeeper.on_session_end)

    def _streamed(self, session: str, raw: socket.socket, host: str) -> bool:
        return self._sessions is not None and self._sessions.pass_on(session, raw, host)

    def _turned_away(self, host: str, reason: str) -> None:
        self._report_refused(self.refused.add(host, reason, time.monotonic()))

    def _report_refused(self, refused: Refusals | None) -> None:
        if refused is not None:
            self.events.write("turned_away", **asdict(refused))

    # -- chores

    async def _tick(self) -> None:
        self.chores.note_alive()
        bookkeeper = self.bookkeeper
        if bookkeeper is not None:
            now_s = time.monotonic()
            bookkeeper.parameters.active_workers = self.members.active(now_s)
            bookkeeper.evaluation.expire()
            bookkeeper.close_round()
            for owner, samples in bookkeeper.ledger.expire(now_s).items():
                self.events.write("lease_expired", owner=owner, samples=samples)
        if self._sessions is not None and (frozen := self._sessions.kill_frozen()) is not None:
            why = "frozen while it held the lock"
            self.events.write("session_lost", reason=why, **frozen.member.identity)
        self._end_revoked()
        for refused in self.refused.due(time.monotonic()):
            self._report_refused(refused)
        self.show(self.report.publish(bookkeeper, self.refused.total))

    def _end_revoked(self) -> None:
        """End the sessions whose token is not valid any more; their leases come back."""
        valid = self._door.tokens.valid()
        for handle in self._pending():
            if handle.member.token_id not in valid and not handle.failure:
                handle.failure = f"the token of {handle.member.token} was revoked"
                handle.kill()

    async def _repace(self) -> None:
        if self.bookkeeper is not None:
            self.bookkeeper.repace()

    async def _save_regularly(self) -> None:
        bookkeeper = await self._started()

        async def save() -> None:
            if not bookkeeper.health.doubtful:
                await self.state.save(bookkeeper, self._pending)

        await self.chores.attempt(save)
        await self.chores.every(self.state.settings.checkpoint.every_s, save)

    async def _say_goodbye(self) -> None:
        """Wait until the workers know that the run is over."""
        if self._sessions is not None:
            await self._sessions.all_ended(PS_FAREWELL_S)

    def _pending(self) -> list[Handle]:
        return self._sessions.handles() if self._sessions is not None else []

    def _handles_of(self, uuid: str) -> list[Handle]:
        return [handle for handle in self._pending() if handle.member.uuid == uuid]

    def _known_sequence(self, member: Member) -> int:
        return self.bookkeeper.last_sequence.get(member.uuid, 0) if self.bookkeeper else 0
