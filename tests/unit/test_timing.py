"""Inequalities between the timing constants of different processes."""

from __future__ import annotations

import pytest

from minga import timing as t
from minga.settings.schema import LedgerConfig
from minga.transport.reply_turns import HOLD_S, WAIT_S

SHORTER, LONGER, FACTOR = 0, 1, 2
INEQUALITIES = {
    "two lost heartbeats are forgiven": (t.BEAT_S, t.SILENCE_S, 3),
    "two lost keepalives of a preparing worker are forgiven": (t.KEEP_PREPARING_S, t.PREPARE_S, 3),
    "a busy worker stays active between its reports": (t.REPORT_S, t.ACTIVE_S, 2),
    "a busy worker renews its leases in time": (t.REPORT_S, LedgerConfig().lease_s, 3),
    "a dead holder is noticed while its rank is retried": (t.SILENCE_S, t.RANK_HELD_S, 1.5),
    "the agents' join ends before their session is killed": (t.RPC_JOIN_S, t.SESSION_UP_S, 1.5),
    "a handshake ends before the join times out": (t.HANDSHAKE_S, t.PREPARE_S, 1),
    "a slow stream is up before its session is killed": (t.STREAM_S, t.SESSION_UP_S, 1.5),
    "a waiting round is heard of before the session gives up": (t.ROUND_S, t.CONTROL_S, 3),
    "a waiting round keeps its worker active": (t.ROUND_S, t.ACTIVE_S, 3),
    "a capture ends before sessions give the coordinator up": (t.CAPTURE_S, t.CONTROL_S, 1.5),
    "a dead peer is found by its heartbeat, not by a call": (t.SILENCE_S, t.CALL_S, 3),
    "a session gives up before its worker's call": (t.CONTROL_S, t.CALL_S, 1.5),
    "a failing worker's last word is heard": (t.WORKER_FAREWELL_S, t.PS_FAREWELL_S, 1.5),
    "a held reply is sent long before its call times out": (HOLD_S + WAIT_S, t.CALL_S, 10),
}


def _holds(row: tuple[float, float, float]) -> bool:
    return row[SHORTER] * row[FACTOR] <= row[LONGER]


@pytest.mark.parametrize("name", INEQUALITIES)
def test_the_constants_of_two_processes_agree(name: str) -> None:
    assert _holds(INEQUALITIES[name])


def test_the_rule_sees_a_pair_that_does_not() -> None:
    assert not _holds((t.SILENCE_S, t.BEAT_S, 1))
