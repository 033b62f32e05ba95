"""The command that installs Docker or Compose, by distribution. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

_START = " && sudo systemctl enable --now docker"
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
_ELSEWHERE = "docker version; docker compose version   # after your distribution's own way"


def docker_command(names: Iterable[str]) -> str:
    """Return how a system of these names (``ID``, ``ID_LIKE``) gets Docker with Compose."""
    return _chosen(_DOCKER, names)


def compose_command(names: Iterable[str]) -> str:
    """Return how a system of these names gets a new Compose beside the Docker that it has."""
    return _chosen(_COMPOSE, names)


def _chosen(commands: dict[str, str], names: Iterable[str]) -> str:
    known = list(names)
    found = [known.index(name) for name in commands if name in known]
    return commands[known[min(found)]] if found else _ELSEWHERE
