"""Window lengths: what is measured decides, slow PCs take few steps, an epoch keeps its rounds."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from minga.algorithm.pacing import (
    MOST_STEPS,
    Pace,
    RecentPaces,
    balance,
    explain,
    most_steps,
    worth_a_change,
)
from minga.messages import Push
from minga.ps.pushes import pace_of

PUSH = Push(
    sequence=1,
    base_version=0,
    progress=[],
    compute_s=1.0,
    exchange_s=0.5,
    overhead_s=0.02,
    steps=8,
)
IMAGENET, TINY = 1_281_167, 100_000


def pace(step_s: float = 0.128, exchange_s: float = 0.3, overhead_s: float = 0.01) -> Pace:
    return Pace(step_s, exchange_s, overhead_s, batch_size=128)


def test_an_exchange_hides_behind_half_of_a_window() -> None:
    chosen = balance({1: pace(exchange_s=2.0, overhead_s=0.0)}, IMAGENET, overlap=True)
    assert chosen.window_s == pytest.approx(4.0)
    assert chosen.steps == {1: 31}
    assert chosen.short_by < 1


def test_what_cannot_be_hidden_is_a_small_share_of_the_window() -> None:
    chosen = balance({1: pace(exchange_s=0.01, overhead_s=0.03)}, IMAGENET, overlap=True)
    assert chosen.steps[1] * 0.128 * 0.02 == pytest.approx(0.03, rel=0.1)


def test_without_overlap_the_exchange_itself_must_be_a_small_share() -> None:
    hidden = balance({1: pace()}, IMAGENET, overlap=True).steps[1]
    bare = balance({1: pace()}, IMAGENET, overlap=False).steps[1]
    assert bare == min(MOST_STEPS, round((0.01 + 0.3) / 0.02 / 0.128))
    assert bare > hidden


def test_all_pcs_push_about_equally_often() -> None:
    step_s = {1: 0.1, 2: 0.1, 3: 0.2, 4: 0.4, 5: 0.8}
    chosen = balance({n: pace(each) for n, each in step_s.items()}, IMAGENET, overlap=True)
    windows_s = [chosen.steps[n] * each for n, each in step_s.items()]
    assert max(windows_s) <= 1.1 * min(windows_s)
    assert chosen.steps[5] == 1, "the slowest: no less than one step"


def test_a_slow_link_lengthens_its_own_windows_and_nobody_elses() -> None:
    others = {n: pace() for n in (1, 2, 3)}
    alone = balance(others, IMAGENET, overlap=True).steps
    with_wifi = balance({**others, 4: pace(exchange_s=3.0)}, IMAGENET, overlap=True).steps
    assert {n: with_wifi[n] for n in others} == alone
    assert with_wifi[4] == round(2 * 3.0 / 0.128)


@pytest.mark.parametrize(
    ("samples", "workers", "batch", "most"),
    [(TINY, 8, 128, 12), (IMAGENET, 8, 128, 64), (1000, 8, 128, 1), (TINY, 1, 512, 24)],
)
def test_an_epoch_keeps_eight_rounds(samples: int, workers: int, batch: int, most: int) -> None:
    assert most_steps(samples, workers, batch) == most


def test_a_network_that_holds_training_up_is_told_with_by_how_much_and_what_would_help() -> None:
    paces = {n: pace(exchange_s=3.0) for n in range(8)}
    chosen = balance(paces, TINY, overlap=True)
    assert set(chosen.steps.values()) == {12}
    assert chosen.short_by == pytest.approx(3.0 / (12 * 0.128))
    assert "network-bound: an exchange takes 3 s, 2.0 times" in explain(chosen, paces)
    assert "a faster link" in explain(chosen, paces)


@pytest.mark.parametrize(
    ("exchange_s", "overhead_s", "why"),
    [(2.0, 0.001, "hides behind a window of 4 s"), (0.01, 0.1, "copying and decoding take 0.1")],
)
def test_the_reason_for_a_choice_is_told(exchange_s: float, overhead_s: float, why: str) -> None:
    paces = {1: pace(exchange_s=exchange_s, overhead_s=overhead_s)}
    assert why in explain(balance(paces, IMAGENET, overlap=True), paces)


@pytest.mark.parametrize(
    ("chosen", "worth"), [({1: 20, 2: 23}, False), ({1: 20, 2: 24}, True), ({1: 16, 2: 20}, True)]
)
def test_a_change_of_more_than_15_percent_for_anybody_is_worth_it(
    chosen: dict[int, int], worth: bool
) -> None:
    assert worth_a_change(chosen, {1: 20, 2: 20}) is worth


def test_a_single_window_that_took_long_changes_nothing() -> None:
    recent = RecentPaces()
    assert recent.typical is None
    for exchange_s in (0.3, 0.3, 9.0, 0.3):
        recent.add(pace(exchange_s=exchange_s))
    assert recent.typical == pace(exchange_s=0.3)
    for _ in range(5):
        recent.add(pace(exchange_s=9.0))
    assert recent.typical == pace(exchange_s=9.0), "control: five in a row do"


def test_a_push_tells_its_workers_pace() -> None:
    assert pace_of(PUSH, 128) == Pace(0.125, 0.5, 0.02, 128)


@pytest.mark.parametrize(
    "told",
    [{"exchange_s": 0.0}, {"compute_s": 0.0}, {"compute_s": 5e-324}],
)
def test_times_that_are_no_times_do_not_reach_the_pacing_of_all(told: dict[str, float]) -> None:
    """The first push knows no exchange; a broken clock or worker must not end the ps."""
    assert pace_of(replace(PUSH, **told), 128) is None
