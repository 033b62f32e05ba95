"""How Docker, Compose and NVIDIA's toolkit get installed: `make deploy`, or a command. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_START = " && sudo systemctl enable --now docker"
_DOCKERS_OWN = "sudo apt-get install -y docker-compose-plugin   # beside Docker's own packages"
_DOCKER = {
    "ubuntu": "sudo apt-get update && sudo apt-get install -y docker.io docker-compose-v2",
    "debian": "sudo apt-get update && sudo apt-get install -y docker.io docker-cli docker-compose",
    "fedora": f"sudo dnf install -y moby-engine docker-compose{_START}",
    "arch": f"sudo pacman -S --noconfirm docker docker-compose{_START}",
    "suse": f"sudo zypper install -y docker docker-compose{_START}",
}
_COMPOSE = {
    "ubuntu": "sudo apt-get update && sudo apt-get install -y docker-compose-v2"
    " || sudo apt-get install -y docker-compose-plugin",
    "debian": "sudo apt-get update && sudo apt-get install -y docker-compose",
    "fedora": "sudo dnf install -y docker-compose",
    "arch": "sudo pacman -S --noconfirm docker-compose",
    "suse": "sudo zypper install -y docker-compose",
}
_PACKAGED = ("/usr/libexec/", "/usr/lib/")
"""Folders of Compose plugins in distributions' and Docker's own packages."""
_ELSEWHERE = "docker version; docker compose version   # once both are installed"


_BY_DEPLOY = {"debian", "ubuntu", "fedora", "rhel", "centos"}
_FIRST_DEBIAN = 12
"""It has Compose 1: roles/packages installs the plugin of Debian 13 there."""
_FIRST_DEBIAN_WITH_COMPOSE = 13


def by_deploy(system: Mapping[str, Any]) -> bool:
    """Return whether a system's packages have an engine and a new enough Compose."""
    return _has_packages(system) and not _older_debian(system, _FIRST_DEBIAN)


def toolkit_by_deploy(system: Mapping[str, Any]) -> bool:
    """Return whether NVIDIA has packages of its container toolkit for a system (apt or dnf)."""
    return _has_packages(system)


def docker_command(names: Iterable[str]) -> str:
    """Return the command that installs Docker with Compose on a system (``ID``, ``ID_LIKE``)."""
    return _chosen(_DOCKER, names)


def compose_command(system: Mapping[str, Any], file: str = "") -> str:
    """Return the command that installs a new Compose beside the system's Docker.

    Args:
        system: ``names, version`` of its distribution.
        file: the Compose plugin in use; one outside packages hides those of packages.
    """
    if file and not file.startswith(_PACKAGED):
        return f"sudo rm {file}   # installed by hand; make deploy installs one that is new enough"
    if _older_debian(system, _FIRST_DEBIAN_WITH_COMPOSE):
        return _DOCKERS_OWN
    return _chosen(_COMPOSE, system["names"])


def _has_packages(system: Mapping[str, Any]) -> bool:
    return bool(_BY_DEPLOY & set(system["names"]))


def _older_debian(system: Mapping[str, Any], than: int) -> bool:
    version = system["version"]
    return system["names"][0] == "debian" and version.isdigit() and int(version) < than


def _chosen(commands: dict[str, str], names: Iterable[str]) -> str:
    known = list(names)
    found = [known.index(name) for name in commands if name in known]
    return commands[known[min(found)]] if found else _ELSEWHERE
