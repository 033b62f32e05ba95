"""A PC whose GPU Docker cannot hand out: deploy brings NVIDIA's toolkit, purge takes it away.

There is no card: `nvidia-smi` is a script, and the packages are `lan.toolkit`'s. apt, dpkg, the
signature, dockerd and its settings are real. Each test goes on from the last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lan.deployment import changed
from lan.network import CONTROL
from lan.pc import PcSpec, VirtualPc
from lan.toolkit import PACKAGES, make_repository, served
from lan.traces import differences, traces
from lan.virtual import VirtualLan

from support import ROOT, play

pytestmark = [pytest.mark.lan, pytest.mark.long, pytest.mark.timeout(600)]

PCS = (PcSpec("pc1", 11, "ps"),)
VERSION = yaml.safe_load((ROOT / "ansible/roles/gpu/defaults/main.yml").read_text())["gpu_version"]
SETTINGS = "/etc/docker/daemon.json"
OWNERS = '{"log-opts": {"max-size": "7m"}}'
NOWHERE = f"http://{CONTROL[0]}:9"
PLAY = """
- name: Play the worker
  hosts: workers
  gather_facts: false
  become: true
  tasks:
    - name: Prepare the engine
      ansible.builtin.import_role: {name: engine}
    - name: Prepare the GPU
      ansible.builtin.import_role: {name: gpu}
    - name: Tell what came of it
      ansible.builtin.debug: {msg: "given={{ gpu_given }}"}
"""
PURGE = """
- name: Purge
  hosts: workers
  gather_facts: false
  become: true
  roles: [purge]
"""
STILL = """
tar --create --dereference /usr/bin/sleep $(ldd /usr/bin/sleep | grep -o '/[^ ]*') \\
  | docker import - still
docker run --detach --name theirs --network none still /usr/bin/sleep 3600
"""
"""An image of one program, and somebody's container of it."""


class Owner:
    """The PC's owner, and deploy's roles played there."""

    def __init__(self, folder: Path, lan: VirtualLan) -> None:
        self.folder, self.lan, self.pc = folder, lan, lan.ps
        (folder / "play.yml").write_text(PLAY)
        (folder / "purge.yml").write_text(PURGE)
        (folder / "group_vars").symlink_to(ROOT / "ansible" / "group_vars")

    def play(self, book: str, toolkit: str, *words: str) -> tuple[int, str]:
        """Play a book; return how much changed on the PC and what was said, in one line."""
        lines = [
            "[ps]",
            f"pc1 ansible_host={self.pc.address}",
            "[workers]",
            "pc1",
            "[all:vars]",
            f"toolkit={toolkit}",
            "ansible_user=lab",
            f"ansible_ssh_private_key_file={self.lan.key}",
            f'ansible_ssh_common_args="-o UserKnownHostsFile={self.lan.known_hosts}"',
        ]
        inventory = self.folder / "lan.ini"
        inventory.write_text("\n".join(lines) + "\n")
        no_proxies = dict.fromkeys(("http_proxy", "https_proxy", "no_proxy"), "")
        ended = play(inventory, self.folder / book, *words, timeout_s=200, **no_proxies)
        assert ended.returncode == 0, ended.stdout[-6000:]
        return changed(ended.stdout)["pc1"], " ".join(ended.stdout.replace("''", "'").split())

    def engine(self) -> tuple[str, str]:
        """Return the process numbers of dockerd and of the owner's container."""
        inspect = "docker container inspect --format '{{.State.Status}} {{.State.Pid}}' theirs"
        dockerd = self.pc.sudo("systemctl show --property MainPID --value docker").stdout.strip()
        return dockerd, self.pc.sudo(inspect).stdout.strip()

    def runtimes(self) -> set[str]:
        return set(json.loads(self.pc.sudo("docker info --format '{{json .Runtimes}}'").stdout))

    def can_run(self, option: str) -> bool:
        """Tell whether a container starts with this option."""
        words = f"docker run --rm --network none {option} still /usr/bin/sleep 0"
        return self.pc.sudo(words, check=False).returncode == 0

    def toolkit(self) -> dict[str, str]:
        """Return the toolkit's packages that are installed, with versions."""
        form = "${db:Status-Abbrev}${Package} ${Version}\\n"
        found = self.pc.run(f"dpkg-query --show --showformat '{form}' '*nvidia*'", check=False)
        lines = [line.split() for line in found.stdout.splitlines() if line.startswith("ii")]
        return {name: version for _, name, version in lines}


@pytest.fixture(scope="module")
def repository(lan: VirtualLan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a repository, ``/nvidia``, and of one with a wrong signature, ``/forged``."""
    folder = tmp_path_factory.mktemp("served")
    make_repository(folder / "nvidia", VERSION)
    make_repository(folder / "forged", VERSION, forged=True)
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def owner(lan: VirtualLan, tmp_path_factory: pytest.TempPathFactory) -> Owner:
    pc = lan.ps
    pc.sudo(
        "printf '#!/bin/sh\\necho Some Card, 580.65\\n' > /usr/local/bin/nvidia-smi"
        " && chmod 755 /usr/local/bin/nvidia-smi"
    )
    pc.sudo(f"echo '{OWNERS}' > {SETTINGS} && chmod 640 {SETTINGS} && systemctl restart docker")
    pc.sudo(STILL)
    return Owner(tmp_path_factory.mktemp("control"), lan)


@pytest.fixture(scope="module")
def before(owner: Owner) -> list[str]:
    """What was on the PC before minga came."""
    return traces(owner.pc)


def beside_ours(before: list[str], pc: VirtualPc) -> list[str]:
    """Return what differs, but for minga's own folder and Ansible's."""
    found = differences(before, traces(pc))
    return [line for line in found if "/opt/minga" not in line and "/.ansible" not in line]


@pytest.mark.parametrize("way", ["nowhere", "forged"])
def test_without_a_repository_to_trust_the_pc_goes_on_with_its_cpu(
    owner: Owner, before: list[str], repository: str, way: str
) -> None:
    engine = owner.engine()
    toolkit = NOWHERE if way == "nowhere" else f"{repository}/forged"
    count, said = owner.play("play.yml", toolkit)
    assert (count, "given=False" in said) == (0, True)
    assert "pc1 has Some Card, 580.65, but trains on its CPU: NVIDIA's container toolkit" in said
    assert "cannot be installed (" in said
    assert f"curl -I {toolkit}/gpgkey" in said
    assert "make deploy LIMIT=pc1" in said
    assert beside_ours(before, owner.pc) == [], "above all no source that apt stumbles over"
    assert owner.engine() == engine


def test_check_tells_and_changes_nothing(owner: Owner, before: list[str], repository: str) -> None:
    count, said = owner.play("play.yml", f"{repository}/nvidia", "--check")
    assert (count, "it would get NVIDIA's container toolkit" in said) == (1, True)
    assert beside_ours(before, owner.pc) == []
    assert owner.toolkit() == {}


def test_docker_has_the_gpu_and_nobody_was_disturbed(
    owner: Owner, before: list[str], repository: str
) -> None:
    engine, runtimes = owner.engine(), owner.runtimes()
    assert not owner.can_run("--runtime nvidia"), "control"
    count, said = owner.play("play.yml", f"{repository}/nvidia")
    assert (count, "given=True" in said) == (1, True), said
    assert owner.toolkit() == dict.fromkeys(PACKAGES, VERSION)
    found = json.loads(owner.pc.sudo(f"cat {SETTINGS}").stdout)
    nvidia = {"args": [], "path": "nvidia-container-runtime"}
    assert found == {**json.loads(OWNERS), "runtimes": {"nvidia": nvidia}}
    assert owner.pc.sudo(f"stat -c %a {SETTINGS}").stdout.strip() == "640"
    assert owner.engine() == engine, "neither dockerd nor the container was started again"
    assert owner.runtimes() == {*runtimes, "nvidia"}
    assert owner.can_run("--runtime nvidia"), "as compose.gpu.yml asks for it"
    assert not owner.can_run("--gpus all"), "a device would take a restart of Docker"
    assert beside_ours(before, owner.pc) != [], "control"


def test_a_second_deploy_changes_nothing(owner: Owner, repository: str) -> None:
    there, engine = traces(owner.pc), owner.engine()
    count, said = owner.play("play.yml", f"{repository}/nvidia")
    assert (count, "given=True" in said) == (0, True)
    assert differences(there, traces(owner.pc)) == []
    assert owner.engine() == engine


def test_purge_takes_all_of_it_and_disturbs_nobody(owner: Owner, before: list[str]) -> None:
    engine = owner.engine()
    owner.play("purge.yml", NOWHERE)
    assert differences(before, traces(owner.pc)) == []
    assert owner.pc.sudo(f"cat {SETTINGS}").stdout == f"{OWNERS}\n"
    assert owner.toolkit() == {}
    assert "nvidia" not in owner.runtimes(), "else the next deploy would think that it is there"
    assert owner.engine() == engine
