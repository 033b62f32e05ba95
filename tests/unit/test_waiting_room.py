"""Whoever floods the door loses his own places, and fills no disk."""

from __future__ import annotations

from minga.ps.refused import EVERY_S, MOST, OTHERS, Refusals, RefusedConnections
from minga.transport.waiting_room import BACK_OFF_S, FAILURES, FEW, WaitingRoom


def test_a_full_room_drops_the_oldest_of_the_most_crowded_address() -> None:
    room: WaitingRoom[str] = WaitingRoom(4)
    assert room.enter("honest", "10.0.0.2", 0.0) == []
    for number in range(3):
        assert room.enter(f"flood {number}", "10.0.0.9", 0.0) == []
    for number in range(3, 1000):
        assert room.enter(f"flood {number}", "10.0.0.9", 0.0) == [f"flood {number - 3}"]
        assert len(room) == 4
    assert "honest" in room.visitors()
    room.leave("honest", "10.0.0.2")
    room.leave("honest", "10.0.0.2")
    assert len(room) == 3


def test_an_address_that_fails_and_fails_has_few_places_for_a_minute() -> None:
    room: WaitingRoom[int] = WaitingRoom(256)
    for _ in range(FAILURES):
        room.failed("10.0.0.9", 100.0)
    dropped = [each for number in range(200) for each in room.enter(number, "10.0.0.9", 100.0)]
    assert dropped == [*range(200 - FEW)]
    assert room.enter(-1, "10.0.0.2", 100.0) == [], "another address is not concerned"
    later_s = 100.0 + BACK_OFF_S
    assert room.enter(200, "10.0.0.9", later_s) == []


def test_refusals_are_reported_at_once_and_then_once_a_minute() -> None:
    refused = RefusedConnections()
    reported = [refused.add("10.0.0.9", "wrong token", second / 806) for second in range(806)]
    assert reported == [Refusals("10.0.0.9", "wrong token", 1)] + [None] * 805
    assert refused.total == 806
    assert refused.due(EVERY_S - 1) == []
    assert refused.due(EVERY_S) == [Refusals("10.0.0.9", "wrong token", 805)]
    assert refused.due(2 * EVERY_S) == []
    again = refused.add("10.0.0.9", "wrong token", 2 * EVERY_S)
    assert again == Refusals("10.0.0.9", "wrong token", 1), "it had stayed away"


def test_addresses_without_number_are_one_line() -> None:
    refused = RefusedConnections()
    reported = [refused.add(f"fd00::{number:x}", "silent", 0.0) for number in range(10_000)]
    lines = [each for each in reported if each is not None]
    assert len(lines) == MOST + 1
    assert lines[-1].host == OTHERS
    assert sum(each.times for each in refused.due(EVERY_S)) == 10_000 - len(lines)
