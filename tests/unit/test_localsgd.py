"""The rules: gain, damping, refusal, schedule, BatchNorm statistics."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from minga.algorithm import localsgd
from minga.algorithm.localsgd import OUTSIZED, RecentNorms, Schedule, learning_rate, refusal

COSINE = Schedule(
    kind="cosine",
    lr=0.05,
    batch_size=256,
    workers=4,
    epoch_samples=1000,
    epochs=50,
    warmup_epochs=5.0,
)


@pytest.mark.parametrize(
    ("staleness", "active", "expected"),
    [(0, 1, 1.0), (7, 8, 1.0), (8, 8, 1 / math.sqrt(2)), (10, 8, 0.5), (3, 1, 0.5)],
)
def test_only_staleness_beyond_one_round_is_damped(
    staleness: int, active: int, expected: float
) -> None:
    assert localsgd.damping(staleness, active) == pytest.approx(expected)


def test_a_push_counts_gain_over_active_times_damping() -> None:
    assert localsgd.push_scale(1.0, 8, 7) == 1 / 8
    assert localsgd.push_scale(2.0, 8, 10) == pytest.approx(2 / 8 / 2)
    assert localsgd.push_scale(1.0, 1, 0) == 1.0


def test_buffers_are_averaged_with_one_over_the_active_workers() -> None:
    assert localsgd.moving_average_weight(4) == 0.25


@pytest.mark.parametrize(
    ("active", "setting", "limit"), [(1, None, 64), (8, None, 64), (16, None, 128), (16, 5, 5)]
)
def test_eight_rounds_may_pass_before_a_push_is_too_old(
    active: int, setting: int | None, limit: int
) -> None:
    assert localsgd.staleness_limit(active, setting) == limit


def test_a_slow_pc_is_not_refused_for_its_own_speed_unless_the_user_says_so() -> None:
    assert localsgd.staleness_limit(8, None, own=700.0) == 2800
    assert localsgd.staleness_limit(8, None, own=3.0) == 64
    assert localsgd.staleness_limit(8, 5, own=700.0) == 5


@pytest.mark.parametrize(
    ("norm", "staleness", "median", "reason"),
    [
        (1.0, 64, None, None),
        (1.0, 65, None, "too old"),
        (math.nan, 0, None, "non-finite"),
        (math.inf, 0, 1.0, "non-finite"),
        (1e6, 0, None, None),
        (10.0, 0, 1.0, None),
        (10.1, 0, 1.0, "outsized"),
    ],
)
def test_a_push_is_refused_for_a_stated_reason(
    norm: float, staleness: int, median: float | None, reason: str | None
) -> None:
    assert refusal(norm, staleness, 64, median) == reason


def test_the_median_needs_eight_norms_and_forgets_old_ones() -> None:
    norms = RecentNorms()
    for _ in range(7):
        norms.add(1, 1.0)
    assert norms.median is None
    norms.add(1, 1.0)
    assert norms.median == 1.0
    for _ in range(25):
        norms.add(1, 5.0)
    assert norms.median == 5.0


@pytest.mark.parametrize("honest", [1, 2, 7])
def test_one_worker_alone_does_not_lift_the_limit(honest: int) -> None:
    """However often it pushes, and whether its pushes are refused or just small enough."""
    norms = RecentNorms()
    for rank in range(honest):
        for _ in range(20):
            norms.add(rank, 1.0)
    for _ in range(812):
        norms.add_outsized(99, 1e9)
    for _ in range(812):
        norms.add(99, 0.99 * OUTSIZED * norms.median)
    assert norms.median <= (1 + OUTSIZED) / 2, "at worst half of what a single other one allows"
    assert refusal(1e17, 0, 64, norms.median) == "outsized"
    assert refusal(1.0, 0, 64, norms.median) is None
    if honest > 1:
        assert norms.median == 1.0
    norms.forget(99)
    assert norms.median == 1.0


def test_two_unequal_workers_are_both_taken() -> None:
    """A fast PC takes 64 steps where a slow one takes 2; both are right."""
    norms = RecentNorms()
    for _ in range(20):
        norms.add(1, 1.0)
        norms.add(2, 30.0)
    assert refusal(30.0, 0, 64, norms.median) is None


def test_the_rate_warms_up_from_one_workers_to_all_and_ends_at_zero() -> None:
    assert learning_rate(0, COSINE) == pytest.approx(0.05 * 2)
    assert learning_rate(2500, COSINE) == pytest.approx(0.05 * 2 * 1.5)
    assert learning_rate(5000, COSINE) == pytest.approx(0.05 * 2 * 2)
    assert learning_rate(27_500, COSINE) == pytest.approx(0.05 * 2)
    assert learning_rate(50_000, COSINE) == pytest.approx(0.0)
    assert learning_rate(60_000, COSINE) == pytest.approx(0.0)


def test_the_warm_up_takes_at_most_a_fifth_of_a_short_run() -> None:
    short = replace(COSINE, epochs=10)
    assert learning_rate(2000, short) == pytest.approx(0.2)
    assert learning_rate(1999, short) < learning_rate(2000, short) > learning_rate(2100, short)


def test_without_warm_up_the_rate_starts_at_its_peak() -> None:
    assert learning_rate(0, replace(COSINE, warmup_epochs=0.0)) == pytest.approx(0.2)


def test_a_constant_rate_is_the_one_given() -> None:
    constant = replace(COSINE, kind="constant")
    assert {learning_rate(done, constant) for done in (0, 3000, 50_000)} == {0.05}


def test_a_smaller_batch_takes_smaller_steps() -> None:
    assert localsgd.worker_rate(0.4, 32, 128) == pytest.approx(0.1)


def test_statistics_of_parts_make_those_of_the_whole() -> None:
    values = torch.randn(90, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.1]) + 5
    parts = []
    for part in values.split([10, 30, 50]):
        mean, square = part.mean(0), part.square().mean(0)
        first, second = torch.cat([mean, square]), torch.cat([torch.zeros(3), mean])
        parts.append(torch.cat([torch.tensor([1.0]), first, second]) * len(part))

    combined = localsgd.combine_statistics(parts)

    assert combined.dtype == torch.float32
    torch.testing.assert_close(combined[:3], values.mean(0).float())
    torch.testing.assert_close(combined[3:], values.var(0, correction=0).float())


def test_outsized_pushes_of_one_are_refused_for_ever_and_those_of_all_are_not() -> None:
    """A model that has learned its data makes tiny pushes, until one batch is hard again."""
    alone, among_others = RecentNorms(), RecentNorms()
    for norms in (alone, among_others):
        for _ in range(25):
            norms.add(1, 1.0)
            if norms is among_others:
                norms.add(2, 1.0)
                norms.add(3, 1.0)
    refusals = 0
    while refusal(50.0, 0, 64, alone.median) == "outsized":
        alone.add_outsized(1, 50.0)
        refusals += 1
    assert 8 <= refusals < 25
    for _ in range(500):
        assert refusal(50.0, 0, 64, among_others.median) == "outsized"
        among_others.add_outsized(1, 50.0)
        among_others.add(2, 1.0)
        among_others.add(3, 1.0)
