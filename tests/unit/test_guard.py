"""Nothing that a worker or a session says ends the ps; who keeps saying it is sent away."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from standins import FACTS, HELLO, SPEC, Run, StandIn

from minga import messages
from minga.algorithm.localsgd import OUTSIZED_PUSH
from minga.errors import Refused
from minga.messages import Malformed
from minga.ps import bookkeeper, requests, sessions
from minga.ps.chores import Chores
from minga.ps.evaluation import Evaluation, Measured
from minga.ps.members import TRAINING
from minga.ps.sessions import Sessions


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(sessions, "Handle", StandIn)
    return Run(tmp_path)


def after_a_grant(run: Run, scene: Callable[[], None]) -> None:
    async def play() -> None:
        await run.grant()
        scene()
        run.handle.over.set()
        await run.sessions.all_ended(30)

    asyncio.run(play())


# -- sending away


def test_a_worker_with_three_malformed_messages_is_sent_away(run: Run) -> None:
    def scene() -> None:
        for _ in range(bookkeeper.MOST_MISFITS):
            assert not run.handle.killed
            run.books.answer(run.handle, requests.Misfit(what="push: no `sequence`"))
        assert run.handle.killed
        with pytest.raises(Refused, match="no `sequence`") as refused:
            run.state.members.admit(HELLO, "127.0.0.1", 0.0)
        assert refused.value.code == "sent-away"
        run.state.members.admit(replace(HELLO, uuid="cd"), "127.0.0.1", 0.0)  # control

    after_a_grant(run, scene)
    assert [event["count"] for event in run.events("malformed")] == [1, 2, 3]
    assert len(run.events("sent_away")) == 1


@pytest.mark.parametrize("others_count", [True, False])
def test_a_worker_whose_pushes_are_all_outsized_is_sent_away_if_others_count(
    run: Run, *, others_count: bool
) -> None:
    def scene() -> None:
        other = run.state.members.admit(replace(HELLO, uuid="cd"), "127.0.0.2", 0.0)
        other.state, other.spoilt = TRAINING, 0 if others_count else 3
        for number in range(bookkeeper.MOST_SPOILT):
            assert not run.handle.killed
            refused = requests.Refuse(reason=OUTSIZED_PUSH, staleness=0, norm=1e9)
            answer = run.books.answer(run.handle, refused)
            assert answer.verdict == "refused"
            lease = answer.work.leases[0]
            span = messages.Span(lease.id, lease.epoch, lease.start, lease.stop)
            push = messages.Push(sequence=number + 2, base_version=0, progress=[span])
            granted = run.books.answer(run.handle, requests.Admit(push=push))
            assert isinstance(granted, requests.Grant)
        assert run.handle.killed is others_count

    after_a_grant(run, scene)
    assert len(run.events("sent_away")) == others_count


# -- odd numbers


def test_a_push_with_the_smallest_number_does_not_end_the_pacing(run: Run) -> None:
    """guard.md, G3: round(inf) in a chore ended the run."""

    async def play() -> None:
        await run.grant()
        odd = replace(run.handle.pending.message, compute_s=5e-324, exchange_s=1.0)
        run.handle.pending.message = odd
        await asyncio.to_thread(run.apply)
        asked = requests.Applied(
            staleness=0, norm=1.0, apply_cpu_s=0.0, reply_cpu_s=0.0, session_cpu_s=0.0
        )
        assert run.books.answer(run.handle, asked).verdict == "applied"
        run.books.repace()
        push = messages.Push(
            sequence=2, base_version=1, progress=[], compute_s=messages.MOST_S, exchange_s=1.0
        )
        granted = run.books.answer(run.handle, requests.Admit(push=push))
        assert isinstance(granted, requests.Grant)
        assert math.isfinite(granted.own_staleness)
        run.handle.over.set()
        await run.sessions.all_ended(30)

    asyncio.run(play())


def evaluation(run: Run) -> Evaluation:
    return Evaluation(
        run.parameters, train=FACTS.train, validate=10, recalibration_images=0, lease_s=60
    )


async def first_lease(measured: Evaluation, running: asyncio.Task[Measured]) -> messages.Lease:
    """Wait until a validation leases its samples; raises what ended it before."""
    while not (leases := measured.grant("w")):
        if running.done():
            running.result()
        await asyncio.sleep(0.01)
    return leases[0]


def test_a_validation_with_odd_results_ends_and_says_what_it_measured(run: Run) -> None:
    """guard.md, G8: a loss of nan and 10**6 correct images of ten."""
    measured = evaluation(run)

    async def play() -> None:
        running = asyncio.create_task(measured.run(0))
        lease = await first_lease(measured, running)
        result = messages.Result(kind="validate", lease=lease.id, start=0, stop=10)
        with pytest.raises(Malformed, match="correct 1000000 of 10"):
            measured.take("w", replace(result, correct=10**6), "")
        assert measured.take("w", replace(result, correct=5, loss_sum=None), "")
        found = await running
        assert found.accuracy == 0.5
        assert math.isnan(found.loss)

    asyncio.run(play())


def test_statistics_of_another_length_are_not_taken(run: Run) -> None:
    measured = Evaluation(
        run.parameters, train=FACTS.train, validate=10, recalibration_images=100, lease_s=60
    )
    right = torch.ones(1 + 2 * run.parameters.buffers, dtype=torch.float64)

    async def play() -> None:
        running = asyncio.create_task(measured.run(0))
        lease = await first_lease(measured, running)
        result = messages.Result(
            kind="calibrate", lease=lease.id, start=lease.start, stop=lease.stop
        )
        for wrong in (right[:-1].numpy().tobytes(), b"", right.numpy().tobytes() + b"x"):
            with pytest.raises(Malformed, match="statistics"):
                measured.take("w", result, base64.b64encode(wrong).decode())
        assert measured.take("w", result, base64.b64encode(right.numpy().tobytes()).decode())
        running.cancel()

    asyncio.run(play())


# -- chores, and processes that die early


def test_a_chore_that_raises_is_one_event_and_goes_on(run: Run) -> None:
    chores = Chores(run.state.events)
    calls: list[int] = []

    async def repace() -> None:
        calls.append(1)
        raise OverflowError("cannot convert float infinity to integer")

    async def play() -> None:
        for _ in range(5):
            await chores.attempt(repace)

    asyncio.run(play())
    assert len(calls) == 5
    (event,) = run.events("chore_failed")
    assert event["chore"] == "repace"
    assert "infinity" in event["reason"]


class DiesAtOnce(StandIn):
    async def serve(self, answer: sessions.Answering) -> None:
        return


def test_a_session_that_dies_before_it_is_ready_is_not_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """guard.md, G12: its worker waited for 60 s."""
    monkeypatch.setattr(sessions, "Handle", DiesAtOnce)

    async def play() -> None:
        books = run.books
        made = Sessions(SPEC, run.parameters, books.answer_async, books.on_session_end)
        member = run.state.members.admit(HELLO, "127.0.0.1", 0.0)
        with pytest.raises(ConnectionError, match="process ended"):
            await made.start(member)
        await made.all_ended(30)

    asyncio.run(play())


class Gone:
    """A join whose worker has ended."""

    async def ended(self) -> None:
        return


def test_a_worker_that_dies_before_it_uses_its_session_frees_its_rank(run: Run) -> None:
    """guard.md, G12: the rank was held for 60 s."""

    async def play() -> None:
        await run.grant()
        with pytest.raises(ConnectionError, match="the worker ended"):
            await run.sessions.reached(run.handle, asyncio.Event(), Gone())
        assert run.handle.killed
        await run.sessions.all_ended(30)

    asyncio.run(play())
