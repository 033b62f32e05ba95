"""Which of the owner's nftables chains get a rule of ours, and when nothing is to be done."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support import ROOT

SOURCE = ROOT / "ansible" / "roles" / "firewall" / "files" / "firewall.py"
PEERS = ["10.0.0.11", "10.0.0.10", "fd00::10"]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("owners_firewall", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


firewall = _load(SOURCE)


def chain(table: str = "house", name: str = "guests", **more: Any) -> dict[str, Any]:
    words = {"type": "filter", "hook": "input", "prio": 0, "policy": "drop", "family": "inet"}
    return {"chain": {**words, "table": table, "name": name, **more}}


def rule(*expr: dict[str, Any], table: str = "house", name: str = "guests", **more: Any) -> Any:
    words = {"family": "inet", "table": table, "chain": name, "handle": 7, "expr": list(expr)}
    return {"rule": {**words, **more}}


def test_a_chain_that_drops_by_policy_lets_the_peers_in_first_by_both_versions() -> None:
    lines = firewall.script([chain()], 30005, PEERS).splitlines()
    assert [line.partition(" accept")[0] for line in lines] == [
        "insert rule inet house guests tcp dport 30005 ip saddr { 10.0.0.10, 10.0.0.11 }",
        "insert rule inet house guests tcp dport 30005 ip6 saddr { fd00::10 }",
    ]
    assert all('comment "minga:' in line for line in lines)


@pytest.mark.parametrize("word", ["drop", "reject"])
def test_a_chain_that_drops_by_a_rule_does_too(word: str) -> None:
    assert firewall.script([chain(policy="accept"), rule({word: None})], 30005, PEERS)


@pytest.mark.parametrize(
    "other",
    [
        chain(policy="accept"),
        chain(hook="forward"),
        chain(type="nat"),
        chain(family="bridge"),
        chain(table="minga"),
        chain(table="firewalld"),
        chain(table="filter", name="INPUT", family="ip"),
    ],
    ids=["accepts", "forward", "nat", "bridge", "ours", "firewalld's", "iptables'"],
)
def test_other_chains_are_left_alone(other: dict[str, Any]) -> None:
    assert firewall.script([other], 30005, PEERS) == ""


def test_a_family_takes_only_its_own_addresses() -> None:
    lines = firewall.script([chain(family="ip6")], 30005, PEERS).splitlines()
    assert len(lines) == 1
    assert "ip6 saddr { fd00::10 }" in lines[0]


def _with_ours(peers: list[str]) -> list[dict[str, Any]]:
    """Return the owner's rules after ours for these peers were put in."""
    comments = [
        line.rpartition('comment "')[2].rstrip('"')
        for line in firewall.script([chain()], 30005, peers).splitlines()
    ]
    ours = [rule(comment=text, handle=20 + n) for n, text in enumerate(comments)]
    return [chain(), *ours, rule(comment="the owner's")]


def test_nothing_is_done_twice() -> None:
    assert firewall.script(_with_ours(PEERS), 30005, list(reversed(PEERS))) == ""


def test_a_pc_that_left_takes_its_rule_along_and_the_owners_stay() -> None:
    lines = firewall.script(_with_ours(PEERS), 30005, ["10.0.0.10"]).splitlines()
    assert lines[:2] == [
        "delete rule inet house guests handle 20",
        "delete rule inet house guests handle 21",
    ]
    assert len(lines) == 3
    assert "ip saddr { 10.0.0.10 }" in lines[2]


def test_close_takes_all_of_ours_out() -> None:
    lines = firewall.script(_with_ours(PEERS), 0, []).splitlines()
    assert [line.split()[0] for line in lines] == ["delete", "delete"]
