"""Compose files and Dockerfile: what they promise about safety, restarts and layers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from support import ROOT

ROLES = ("ps", "worker")


def _service(role: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / f"compose.{role}.yml").read_text())
    assert content["name"] == "minga"
    assert content["services"].keys() == {role}
    return dict(content["services"][role])


@pytest.mark.parametrize("role", ROLES)
def test_a_container_may_do_as_little_as_possible(role: str) -> None:
    service = _service(role)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"
    assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "environment", "ports"}
    writable = {mount["target"] for mount in service["volumes"] if not mount.get("read_only")}
    assert writable == {"/var/lib/minga"}


@pytest.mark.parametrize("role", ROLES)
def test_a_container_uses_the_hosts_network_and_an_image_that_is_there(role: str) -> None:
    service = _service(role)
    assert service["network_mode"] == "host"
    assert service["pull_policy"] == "never"
    assert service["image"].startswith("${MINGA_IMAGE:?")
    assert service["command"] == [role]
    assert service["container_name"] == f"minga-{role}"


@pytest.mark.parametrize("role", ROLES)
def test_a_container_stops_gently_starts_again_after_a_crash_and_keeps_logs_small(
    role: str,
) -> None:
    service = _service(role)
    assert service["restart"] == "on-failure"
    assert service["stop_grace_period"] == "120s"
    assert service["init"] is True
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


def test_both_roles_differ_only_in_what_they_are_told_and_mount() -> None:
    ps, worker = (_service(role) for role in ROLES)
    differing = {key for key in ps.keys() | worker.keys() if ps.get(key) != worker.get(key)}
    assert differing == {"command", "container_name", "env_file", "volumes"}


def test_the_gpu_file_asks_for_gpus_for_the_worker_only() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.gpu.yml").read_text())["services"]
    assert services.keys() == {"worker"}
    assert services["worker"]["runtime"] == "nvidia", "what deploy asks docker info for"
    assert services["worker"]["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_minga_comes_after_torch_in_the_image_and_runs_without_root() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    last = text[text.rindex("\nFROM ") :]
    copies = re.findall(r"^COPY --from=(\w+)", last, flags=re.MULTILINE)
    assert copies == ["stack"] * copies.count("stack") + ["code"], "the code comes last"
    assert last.index("\nLABEL") > last.rindex("\nCOPY"), "a new label must not make new layers"
    assert "\nUSER 10001:10001\n" in last
    assert 'ENTRYPOINT ["python", "-m", "minga"]' in last


def test_the_dockerfile_needs_no_buildkit() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert not re.search(r"--mount|--chmod|--link|<<|^# syntax=", text, flags=re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)[0] == "debian:trixie-slim"
