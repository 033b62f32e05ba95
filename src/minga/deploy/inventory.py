"""The PCs of the inventory and their variables, as Ansible reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minga.deploy.ssh_problems import HERE

Hosts = dict[str, dict[str, Any]]
"""Each PC's variables by its name."""

_MOST_S = 60


def hosts_of(inventory: Path) -> Hosts:
    """Return the variables of each PC that has any; empty if Ansible cannot read the inventory."""
    return _hosts(_listed(inventory))


def workers_of(inventory: Path) -> Hosts:
    """Return the variables of every PC under ``[workers]``."""
    return groups_of(inventory)["workers"]


def groups_of(inventory: Path) -> dict[str, Hosts]:
    """Return the same for ``[ps]`` and ``[workers]``, by group."""
    listed = _listed(inventory)
    hosts = _hosts(listed)
    return {
        group: {name: hosts.get(name, {}) for name in _members(listed, group)}
        for group in ("ps", "workers")
    }


def names_by_address(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the PCs' names by the addresses that Ansible uses; HERE is without SSH. No I/O."""
    return {
        HERE if each.get("ansible_connection") == "local" else each.get("ansible_host", name): name
        for name, each in hosts.items()
    }


def _listed(inventory: Path) -> dict[str, Any]:
    command = str(Path(sys.executable).with_name("ansible-inventory"))
    words = [command, "--inventory", str(inventory), "--list"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=_MOST_S, check=False)
    listed: dict[str, Any] = json.loads(told.stdout or "{}")
    return listed


def _hosts(listed: Mapping[str, Any]) -> Hosts:
    found: Hosts = listed.get("_meta", {}).get("hostvars", {})
    return found


def _members(listed: Mapping[str, Any], group: str) -> Iterator[str]:
    of = listed.get(group, {})
    yield from of.get("hosts", ())
    for child in of.get("children", ()):
        yield from _members(listed, child)
