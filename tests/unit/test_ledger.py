"""The ledger deals every sample once, whoever dies, is slow, or is refused."""

from __future__ import annotations

import random

import pytest

from minga.data.leases import Lease
from minga.ps.ledger import Ledger, Span

LEASE_S = 10.0


def ledger(samples: int = 100, epochs: int = 3, chunk: int = 16) -> Ledger:
    return Ledger("train", samples=samples, epochs=epochs, chunk=chunk, lease_s=LEASE_S)


def whole(lease: Lease) -> Span:
    return Span(lease.id, lease.epoch, lease.start, lease.stop)


def test_one_owner_gets_every_position_of_every_epoch_once() -> None:
    books, seen = ledger(), []
    while not books.finished:
        for lease in books.grant("w", 20, now_s=0):
            seen += [(lease.epoch, position) for position in range(lease.start, lease.stop)]
            books.count([whole(lease)], now_s=0)
    assert sorted(seen) == [(epoch, i) for epoch in range(3) for i in range(100)]
    assert books.counted == 300


def test_what_a_dead_owner_held_goes_to_another_but_not_what_it_reported() -> None:
    books = ledger()
    (lease,) = books.grant("dead", 16, now_s=0)
    books.count([Span(lease.id, 0, 0, 6)], now_s=0)
    assert books.give_back("dead") == 10
    (again,) = books.grant("other", 10, now_s=0)
    assert (again.start, again.stop) == (6, 16)
    assert books.objection("dead", [Span(lease.id, 0, 6, 8)]) == "lease expired"


def test_the_next_epoch_begins_while_leases_of_this_one_are_out() -> None:
    books = ledger(samples=10, chunk=10)
    (slow,) = books.grant("slow", 10, now_s=0)
    (fast,) = books.grant("fast", 10, now_s=0)
    assert (slow.epoch, fast.epoch) == (0, 1)
    books.count([whole(fast)], now_s=0)
    assert books.complete_epochs == 0
    assert books.counted == 10
    books.count([whole(slow)], now_s=0)
    assert books.complete_epochs == 2
    assert books.counted == 20


def test_nothing_beyond_the_last_epoch_is_dealt() -> None:
    books = ledger(samples=10, epochs=1, chunk=10)
    assert books.grant("one", 10, now_s=0)
    assert books.grant("other", 10, now_s=0) == []


def test_a_refused_span_is_dealt_again_and_the_owner_goes_on_behind_it() -> None:
    books = ledger()
    (lease,) = books.grant("w", 16, now_s=0)
    books.refuse("w", [Span(lease.id, 0, 0, 4)], now_s=0)
    assert books.refused == 4
    assert books.objection("w", [Span(lease.id, 0, 4, 16)]) is None
    books.count([Span(lease.id, 0, 4, 16)], now_s=0)
    assert [(g.start, g.stop) for g in books.grant("x", 4, now_s=0)] == [(0, 4)]


@pytest.mark.parametrize(
    ("spans", "objection"),
    [
        ([Span(1, 0, 2, 4)], "lease out of order"),
        ([Span(1, 0, 0, 17)], "lease out of order"),
        ([Span(1, 0, 0, 0)], "lease out of order"),
        ([Span(1, 0, 0, 4), Span(1, 0, 2, 6)], "lease out of order"),
        ([Span(1, 1, 0, 4)], "lease of another epoch"),
        ([Span(9, 0, 0, 4)], "lease expired"),
        ([Span(1, 0, 0, 4), Span(1, 0, 4, 6)], None),
    ],
)
def test_spans_are_checked_against_the_lease(spans: list[Span], objection: str | None) -> None:
    books = ledger()
    books.grant("w", 16, now_s=0)
    assert books.objection("w", spans) == objection


def test_a_silent_owner_loses_its_leases_and_progress_keeps_them() -> None:
    books = ledger()
    books.grant("silent", 16, now_s=0)
    (kept,) = books.grant("busy", 16, now_s=0)
    books.count([Span(kept.id, 0, kept.start, kept.start + 1)], now_s=9)
    assert books.expire(now_s=LEASE_S + 1) == {"silent": 16}
    assert books.held("busy") == 15


def test_a_checkpoint_keeps_what_is_counted_and_frees_what_is_out() -> None:
    books = ledger()
    first, second = books.grant("w", 32, now_s=0)
    books.count([whole(first)], now_s=0)
    books.count([Span(second.id, 0, second.start, second.start + 5)], now_s=0)
    later = ledger()
    later.restore(books.state())
    assert later.counted == 21
    fresh = [lease.id for lease in later.grant("x", 1000, now_s=0)]
    assert min(fresh) > second.id, "a number from before the restart is never used again"
    assert later.held("x") == 300 - 21


@pytest.mark.parametrize("seed", range(20))
def test_random_churn_counts_every_position_once(seed: int) -> None:
    """Owners that work, die, are refused and fall silent, in any order."""
    chance, books = random.Random(seed), ledger(samples=97, epochs=4, chunk=13)
    counted: list[tuple[int, int]] = []
    held: dict[str, list[list[int]]] = {name: [] for name in "abcde"}  # lease, epoch, at, stop
    now_s = 0.0
    for _ in range(100_000):
        if books.finished:
            break
        now_s += chance.random()
        owner = chance.choice("abcde")
        mine = held[owner]
        event = chance.random()
        if event < 0.03:
            books.give_back(owner)
            mine.clear()
        elif event < 0.05:
            books.expire(now_s)  # nobody is told: their next report is refused
        elif not mine:
            granted = books.grant(owner, chance.randint(1, 30), now_s)
            mine += [[each.id, each.epoch, each.start, each.stop] for each in granted]
        else:
            lease = mine[0]
            stop = chance.randint(lease[2] + 1, lease[3])
            span = Span(lease[0], lease[1], lease[2], stop)
            lease[2] = stop
            if stop == lease[3]:
                mine.pop(0)
            if books.objection(owner, [span]) is not None or event > 0.95:
                books.refuse(owner, [span], now_s)
            else:
                books.count([span], now_s)
                counted += [(span.epoch, i) for i in range(span.start, span.stop)]
    assert sorted(counted) == [(epoch, i) for epoch in range(4) for i in range(97)]
