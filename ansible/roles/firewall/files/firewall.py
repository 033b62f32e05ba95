#!/usr/bin/env python3
"""Opens the owner's nftables rules to minga's peers, on the ps's PC.

    firewall.py open|check|close PORT PEER ...

An accept in minga's table does not save a packet from a later chain that drops it, so each of the
owner's input chains that may drop gets one rule in front, with the comment "minga". It is
not written to the owner's files: minga-firewall.service inserts it after they are loaded.
``check`` exits with 1 if ``open`` would change something.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

TAG = "minga"
OURS = ("inet", "minga")
NOT_OWNERS = (("inet", "firewalld"), ("ip", "firewalld"), ("ip6", "firewalld"))
FAMILIES = {"inet": ("ip", "ip6"), "ip": ("ip",), "ip6": ("ip6",)}

Rule = dict[str, Any]


def owners_chains(ruleset: list[Rule]) -> list[tuple[str, str, str]]:
    """Return family, table, name of each input chain that may drop and belongs to the owner."""
    rules = _all(ruleset, "rule")
    shutting = {(rule["family"], rule["table"]) for rule in rules if _shuts(rule)}
    found = []
    for chain in _all(ruleset, "chain"):
        table = chain["family"], chain["table"]
        theirs = table == OURS or table in NOT_OWNERS or chain["family"] not in FAMILIES
        # iptables does not list a table that has foreign rules in it; ufw works through iptables.
        iptables = chain["name"] == "INPUT" and chain["table"] == "filter"
        if theirs or iptables or (chain.get("hook"), chain.get("type")) != ("input", "filter"):
            continue
        if chain.get("policy") == "drop" or table in shutting:
            found.append((*table, chain["name"]))
    return found


def wanted(ruleset: list[Rule], port: int, peers: list[str]) -> list[tuple[str, str, str, str]]:
    """Return the required rules: chain, and match."""
    by_version = {
        "ip": sorted(peer for peer in peers if ":" not in peer),
        "ip6": sorted(peer for peer in peers if ":" in peer),
    }
    return [
        (*chain, f"tcp dport {port} {version} saddr {{ {', '.join(by_version[version])} }}")
        for chain in owners_chains(ruleset)
        for version in FAMILIES[chain[0]]
        if by_version[version]
    ]


def ours(ruleset: list[Rule]) -> list[Rule]:
    """Return the rules of an earlier call."""
    rules = _all(ruleset, "rule")
    return [
        rule
        for rule in rules
        if rule.get("comment", "").startswith(f"{TAG}:") and (rule["family"], rule["table"]) != OURS
    ]


def script(ruleset: list[Rule], port: int, peers: list[str]) -> str:
    """Return the commands for nft, one transaction; empty if all rules are in place."""
    needed, there = wanted(ruleset, port, peers), ours(ruleset)
    # The comment identifies the match: comparing nft's output would depend on its version.
    have = sorted((r["family"], r["table"], r["chain"], r["comment"]) for r in there)
    if have == sorted((*chain, f"{TAG}:{_digest(what)}") for *chain, what in needed):
        return ""
    lines = [
        f"delete rule {r['family']} {r['table']} {r['chain']} handle {r['handle']}" for r in there
    ]
    lines += [
        f'insert rule {" ".join(chain)} {what} accept comment "{TAG}:{_digest(what)}"'
        for *chain, what in needed
    ]
    return "\n".join(lines) + "\n"


def _shuts(rule: Rule) -> bool:
    return any(word in each for each in rule.get("expr", []) for word in ("drop", "reject"))


def _digest(what: str) -> str:
    """Return a short, stable name of a rule's match: comments hold 128 bytes."""
    number = 0
    for byte in what.encode():
        number = (number * 257 + byte) % (1 << 61)
    return f"{number:x}"


def _all(ruleset: list[Rule], kind: str) -> list[Rule]:
    return [each[kind] for each in ruleset if kind in each]


def main(verb: str, port: str, *peers: str) -> int:
    """Read the rules, change them if need be."""
    listed = subprocess.run(
        ["nft", "--json", "list", "ruleset"], capture_output=True, text=True, check=True
    )
    ruleset = json.loads(listed.stdout)["nftables"]
    todo = script(ruleset, int(port), [] if verb == "close" else list(peers))
    if verb == "check":
        return 1 if todo else 0
    if todo:
        subprocess.run(["nft", "--file", "-"], input=todo, text=True, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
