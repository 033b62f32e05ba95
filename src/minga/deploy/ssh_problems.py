"""Problems of SSH and sudo: their messages -> a sentence and a command. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HERE = "here"
"""Stands for the PC where `make` was typed."""

Problem = tuple[str, str, str]
"""The problem, the PC to type the command on, the command."""


def ssh_problem(pc: str, asked: Mapping[str, Any]) -> Problem | None:
    """Return why SSH cannot reach the PC; None if it can."""
    answer, address = asked["ssh"], asked["address"]
    if not answer.get("unreachable"):
        return None
    said = " ".join(str(answer.get("msg", "")).split())
    port = f" -p {asked['port']}" if asked.get("port") else ""
    who = "@".join(filter(None, (asked.get("user"), address)))
    if "IDENTIFICATION HAS CHANGED" in said:
        name = f"'[{address}]:{asked['port']}'" if asked.get("port") else address
        found = re.search(r"Offending \S+ key in (\S+):\d+", said)
        file = f" -f {found[1]}" if found else ""
        detail = "its host key differs from the known one: reinstalled, or another PC?"
        return detail, HERE, f"ssh-keygen{file} -R {name}"
    if "Host key verification failed" in said or "host key is known" in said:
        detail = "its host key is unknown here, and your SSH settings require a known one"
        return detail, HERE, f"ssh{port} {who} true   # compare the key, then say yes"
    if "Permission denied" in said or "Too many authentication failures" in said:
        key = f" -i {asked['key']}" if asked.get("key") else ""
        return "it refuses this PC's key", HERE, f"ssh-copy-id{key}{port} {who}"
    if "Could not resolve" in said or "Name or service not known" in said:
        return f"the name cannot be resolved: {address}", HERE, f"getent hosts {address}"
    if "Connection refused" in said:
        return (
            f"{address} is on, but no SSH server answers",
            pc,
            "sudo apt-get install -y openssh-server && sudo systemctl enable --now ssh",
        )
    if re.search("timed out|No route to host|unreachable", said.partition("via ssh")[2] or said):
        return f"{address} does not answer: is it on, with its cable?", HERE, f"ping -c 3 {address}"
    return f"ssh says: {said[-300:]}", HERE, f"ssh{port} {who} true"


def sudo_problem(pc: str, asked: Mapping[str, Any]) -> Problem:
    """Return why sudo fails."""
    facts = asked["facts"]
    words = (facts.get("msg"), facts.get("module_stderr"), facts.get("stderr"), _sudo_said(asked))
    said = " ".join(" ".join(map(str, filter(None, words))).split())
    user = asked.get("user") or "$USER"
    if re.search("sudo: (command )?not found|sudo: No such file", said):
        return (
            "sudo is not installed",
            pc,
            f"su -c 'apt-get install -y sudo && adduser {user} sudo'",
        )
    if "not in the sudoers file" in said or "not allowed" in said:
        return f"{user} may not use sudo", pc, f"su -c '/usr/sbin/usermod -aG sudo {user}'"
    if re.search("password", said, flags=re.IGNORECASE):
        rule = f"echo '{user} ALL=(ALL) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/minga"
        return "sudo asks for a password: pass one (ASK_PASS=1), or allow sudo without", pc, rule
    return f"no answer: {said[-300:]}", HERE, "make check"


def _sudo_said(asked: Mapping[str, Any]) -> str:
    found = re.search(r"^sudo=(.*)$", str(asked["ssh"].get("stdout", "")), flags=re.MULTILINE)
    return found[1] if found else ""
