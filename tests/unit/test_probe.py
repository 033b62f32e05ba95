"""How `make check` asks a PC, and how it tries the line to the ps; here all on loopback."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.test_check import ASKED, FACTS, WANTED

from cluster.harness import free_port, wait_until
from minga.deploy.preflight import rows_of
from support import ROOT

PROBE = ROOT / "ansible" / "roles" / "check" / "files" / "probe.py"


def _probe(command: str, **asked: Any) -> dict[str, Any]:
    """Run the probe as Ansible does: its text on stdin."""
    ended = subprocess.run(
        [sys.executable, "-", command, json.dumps(asked)],
        input=PROBE.read_text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _loaded() -> Any:
    spec = importlib.util.spec_from_file_location("probe", PROBE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_probe_is_python_3_8() -> None:
    ast.parse(PROBE.read_text(), feature_version=(3, 8))
    with pytest.raises(SyntaxError):
        ast.parse("match 1:\n  case 1: pass", feature_version=(3, 8))


def _input(table: str, name: str, **more: str) -> dict[str, Any]:
    return {"chain": {"family": "ip", "table": table, "name": name, "hook": "input", **more}}


DROP = {"rule": {"family": "ip", "table": "filter", "expr": [{"drop": None}]}}


@pytest.mark.parametrize(
    ("ruleset", "whose"),
    [
        ([], ""),
        ([_input("lab", "in", policy="accept")], ""),
        ([_input("lab", "in", policy="drop")], "nftables"),
        ([_input("filter", "INPUT"), DROP], "iptables"),
        ([_input("filter", "INPUT"), DROP, _input("lab", "in", policy="drop")], "nftables"),
        ([{"chain": {**_input("filter", "F")["chain"], "hook": "forward"}}, DROP], ""),
    ],
)
def test_whose_rules_may_shut_the_port_is_told(ruleset: list[Any], whose: str) -> None:
    assert _loaded().shutting(ruleset) == whose


def test_the_guard_s_own_table_is_nobody_elses_firewall() -> None:
    chain = {"family": "inet", "table": "minga", "name": "guard", "hook": "input", "policy": "drop"}
    assert _loaded().shutting([{"chain": chain}]) == ""


def test_the_facts_have_what_the_rules_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("one")
    (tmp_path / "a" / "nowhere").symlink_to("y")
    data = {"there": str(tmp_path), "nowhere": str(tmp_path / "b")}
    asked = {"minga": "/opt/minga", "port": free_port(), "data": data, "sent_s": 0.0}
    found = _probe("facts", **asked)
    assert found.keys() == FACTS.keys()
    assert found["docker"].keys() >= FACTS["docker"].keys()
    assert found["holder"] is None
    assert found["late_s"] > 1e9, "asked in 1970"
    assert found["data"]["nowhere"] is None
    assert found["data"]["there"]["size_bytes"] == 3
    answered = {**ASKED, "facts": {"answer": found}}
    assert list(rows_of("pc2", answered, WANTED, found))[-1].check == "data", "the rules read them"
    (tmp_path / "a" / "x").write_text("two")
    changed = _probe("facts", **asked)["data"]["there"]
    assert changed["digest"] != found["data"]["there"]["digest"]


def test_the_listener_measures_whoever_knows_it_and_ends_when_told() -> None:
    port = free_port()
    heard = _probe("listen", port=port, limit_s=120, nonce="abcdef")
    try:
        dial = {"address": "127.0.0.1", "port": port, "limit_s": 20}
        found = _probe("dial", **dial, nonce="abcdef")
        assert found["state"] == "open"
        assert found["received_bytes"] > 1 << 20
        assert found["received_s"] > 0
        assert _probe("dial", **dial, nonce="abcdxy")["state"] == "stranger"
        assert _probe("dial", **dial, nonce="")["state"] == "open"
        second = _probe("listen", port=port, limit_s=120, nonce="other")
        assert second["pid"] == 0
        assert second["holder"]["pid"] == heard["pid"]
        assert second["holder"]["container"] == ""
    finally:
        subprocess.run(["kill", str(heard["pid"])], check=True)
    assert _probe("dial", **dial, nonce="abcdef")["state"] == "refused"


def test_the_listener_ends_by_itself() -> None:
    port = free_port()
    assert _probe("listen", port=port, limit_s=1, nonce="abcdef")["pid"], "control: it listened"
    dial = {"address": "127.0.0.1", "port": port, "limit_s": 5, "nonce": ""}
    wait_until(lambda: _probe("dial", **dial)["state"] == "refused", "it to end", timeout_s=60)
