"""Which command brings a PC Docker or Compose."""

from __future__ import annotations

import pytest

from minga.deploy.packages import compose_command, docker_command

DEBIAN = {"names": ["debian"], "version": "13"}
DOCKERS_OWN = "sudo apt-get install -y docker-compose-plugin"


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["debian"], "docker-cli"),
        (["linuxmint", "ubuntu", "debian"], "docker-compose-v2"),
        (["raspbian", "debian"], "docker-cli"),
        (["fedora"], "moby-engine"),
        (["slackware"], "docker version"),
    ],
)
def test_the_command_is_the_distributions_own(names: list[str], word: str) -> None:
    assert word in docker_command(names)
    assert compose_command({"names": names, "version": "13"})


@pytest.mark.parametrize("version", ["11", "12"])
def test_an_older_debian_has_no_compose_2_but_docker_has(version: str) -> None:
    assert compose_command({**DEBIAN, "version": version}).startswith(DOCKERS_OWN)
    assert not compose_command(DEBIAN).startswith(DOCKERS_OWN)


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("/usr/local/lib/docker", "sudo rm /usr/local/lib/docker/cli-plugins/docker-compose "),
        ("/root/.docker", "sudo rm /root/.docker/cli-plugins/docker-compose "),
        ("/usr/libexec/docker", "sudo apt-get update && "),
    ],
)
def test_a_compose_that_was_put_there_by_hand_hides_the_packaged_one(
    folder: str, word: str
) -> None:
    assert compose_command(DEBIAN, f"{folder}/cli-plugins/docker-compose").startswith(word)
