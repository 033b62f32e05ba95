"""Synchronous modes: who waits for whom, and what K pushes of N do to the weights."""

from __future__ import annotations

import asyncio

import pytest
import torch
from simulation import Exchange, Ps

from minga.algorithm.localsgd import pushes_in_round
from minga.ps.rounds import Rounds

NUMEL, BUFFERS = 1000, 4


@pytest.mark.parametrize(
    ("mode", "setting", "active", "wanted"),
    [
        ("async", None, 8, 1),
        ("sync", None, 8, 8),
        ("sync", 5, 8, 5),
        ("sync", 5, 3, 3),
        ("safe", None, 8, 7),
        ("safe", None, 1, 1),
    ],
)
def test_how_many_pushes_a_round_has(
    mode: str, setting: int | None, active: int, wanted: int
) -> None:
    assert pushes_in_round(mode, setting, active) == wanted


def test_a_round_closes_with_its_last_push_and_lets_all_go_on() -> None:
    async def play() -> list[bool]:
        rounds = Rounds()
        first = rounds.arrive("a")
        rounds.close_if(2, others=True)
        waits = asyncio.create_task(rounds.closed(first))
        await asyncio.sleep(0)
        before = waits.done()
        second = rounds.arrive("b")
        rounds.close_if(2, others=True)
        return [before, first == second, await waits, await rounds.closed(second)]

    assert asyncio.run(play()) == [False, True, True, True]


def test_a_late_push_is_the_first_of_the_next_round() -> None:
    rounds = Rounds()
    numbers = []
    for owner in "abc":
        numbers.append(rounds.arrive(owner))
        rounds.close_if(2, others=True)
    assert numbers == [1, 1, 2]
    assert rounds.waiting == {"c"}


def test_nobody_waits_for_those_who_will_not_push() -> None:
    rounds = Rounds()
    rounds.close_if(2, others=False)
    assert rounds.number == 1, "a round without a push stays open"
    rounds.arrive("a")
    rounds.close_if(2, others=False)
    assert rounds.number == 2


def test_who_waits_hears_after_a_second_that_it_is_not_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minga.ps.rounds.ROUND_S", 0.01)
    rounds = Rounds()
    assert not asyncio.run(rounds.closed(rounds.arrive("a")))


@pytest.mark.parametrize(("pushed", "workers"), [(3, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_k_pushes_of_n_move_the_weights_by_their_mean_times_gain_k_over_n(
    pushed: int, workers: int, gain: float
) -> None:
    torch.manual_seed(0)
    start = torch.randn(NUMEL)
    ps = Ps(start, torch.zeros(BUFFERS), workers=workers, codec="none", gain=gain)
    exchanges = [Exchange(ps) for _ in range(workers)]
    moved = [torch.randn(NUMEL) for _ in range(pushed)]

    for exchange, move in zip(exchanges, moved, strict=False):
        assert exchange.send(start - move, torch.zeros(BUFFERS)) == "applied"

    expected = start - gain * pushed / workers * torch.stack(moved).mean(dim=0)
    torch.testing.assert_close(ps.parameters.snapshot()[0], expected, rtol=1e-6, atol=1e-6)
