"""Ranks are unique, held while their holder lives, and given to whoever has none."""

from __future__ import annotations

import json

import pytest

from minga.errors import Refused
from minga.messages import Hello
from minga.protocol import PROTOCOL_VERSION
from minga.ps.members import LEFT, LOST, TRAINING, Member, Members


def hello(uuid: str, rank: int | None) -> Hello:
    return Hello(protocol=PROTOCOL_VERSION, uuid=uuid, rank=rank)


def admitted(members: Members, uuid: str, rank: int | None = None, now_s: float = 0.0) -> Member:
    member = members.admit(hello(uuid, rank), f"host-{uuid}", now_s)
    member.state = TRAINING
    return member


def test_without_a_rank_the_lowest_free_one_is_given() -> None:
    members = Members()
    assert [admitted(members, uuid, rank).rank for uuid, rank in (("a", 2), ("b", None))] == [2, 1]
    assert admitted(members, "c").rank == 3


def test_a_rank_that_a_live_worker_holds_is_refused_naming_the_holder() -> None:
    members = Members()
    admitted(members, "a", 1)
    with pytest.raises(Refused, match="rank 1 is held by worker-01 on host-a") as refused:
        admitted(members, "b", 1)
    assert refused.value.code == "rank-held"


@pytest.mark.parametrize("state", [LOST, LEFT])
def test_a_dead_holders_rank_is_taken_over_with_its_totals(state: str) -> None:
    members = Members()
    holder = admitted(members, "a", 1)
    holder.totals.samples, holder.state = 64, state
    heir = admitted(members, "b", 1)
    assert heir.totals.samples == 64
    assert heir.totals.joins == 2
    assert heir.generation > holder.generation
    assert members.current(heir)
    assert not members.current(holder)


def test_the_same_process_comes_back_to_its_rank() -> None:
    members = Members()
    first = admitted(members, "a")
    admitted(members, "b")
    first.state = LOST
    assert admitted(members, "a").rank == 1


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_that_is_none_is_refused(rank: int) -> None:
    with pytest.raises(Refused) as refused:
        Members().admit(hello("a", rank), "host", 0.0)
    assert refused.value.code == "rank-invalid"


def test_members_of_a_checkpoint_are_lost_until_they_join_again() -> None:
    before = Members()
    for uuid in "abc":
        admitted(before, uuid).totals.samples = 500
    members = Members()
    members.restore(json.loads(json.dumps(before.state())), now_s=7.0)
    assert [(each.rank, each.state, each.heard_s) for each in members] == [
        (rank, LOST, 7.0) for rank in (1, 2, 3)
    ]
    back = admitted(members, "b")
    assert (back.rank, back.totals.samples, back.totals.joins) == (2, 500, 2)
    assert back.generation == 4, "owners of leases stay unique"
    assert admitted(members, "new").rank == 1, "a lost one's rank is free"
    assert sum(each.totals.samples for each in members) == 1500, "nobody's work is forgotten"


def test_active_are_those_heard_of_in_15_s_or_3_windows() -> None:
    members = Members()
    assert members.active(0.0) == 1, "never less than one: it divides"
    for uuid in "abc":
        admitted(members, uuid, now_s=0.0)
    slow = admitted(members, "slow", now_s=0.0)
    slow.window_s = 30.0
    assert members.active(15.0) == 4
    admitted(members, "late", now_s=60.0)
    assert members.active(61.0) == 2  # the slow one: its 3 windows are 90 s
    assert members.active(91.0) == 1
