"""The virtual LAN is what it says: real PCs, real cables, and Docker's ways after a power cut."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest
from lan.control import ControlDocker
from lan.pc import VirtualPc
from lan.prepare import BASE_IMAGE, Prepared
from lan.shell import wait_for
from lan.virtual import VirtualLan

pytestmark = [pytest.mark.lan, pytest.mark.long, pytest.mark.timeout(1800)]

IMAGE = "tiny:1"
_IMPORT = (
    "tar -c -h -C / bin/sh bin/sleep lib/x86_64-linux-gnu/libc.so.6 lib64/ld-linux-x86-64.so.2"
    f" | docker import - {IMAGE}"
)
_PORT, _BYTES = 5001, 250_000_000
_RECEIVE = f"""
import socket, time
server = socket.create_server(("0.0.0.0", {_PORT}))
print("ready", flush=True)
peer, _ = server.accept()
got, start, buffer = 0, 0.0, bytearray(1 << 20)
while size := peer.recv_into(buffer):
    start = start or time.monotonic()
    got += size
print(got, time.monotonic() - start, flush=True)
"""
_SEND = f"""
import socket, sys
peer = socket.create_connection((sys.argv[1], {_PORT}))
peer.sendall(bytes({_BYTES}))
"""


def _container(pc: VirtualPc, name: str, *, policy: str = "on-failure", exits: int = 143) -> None:
    """Start a container that ends with ``exits`` when it is asked to stop."""
    loop = f'trap "exit {exits}" TERM; while :; do sleep 0.1; done'
    run = f"docker run -d --name {name} --network host --restart {policy}"
    pc.sudo(f"{run} {IMAGE} /bin/sh -c '{loop}'")


def _running(pc: VirtualPc) -> set[str]:
    return set(pc.sudo("docker ps --format '{{.Names}}'").stdout.split())


@pytest.fixture(scope="module")
def tiny_image(lan: VirtualLan) -> str:
    """An image of a shell, the same on each PC, from the PC's own files."""
    for pc in lan.pcs.values():
        pc.sudo(_IMPORT)
    return IMAGE


def test_three_pcs_boot_each_with_its_own_name_ids_and_docker(
    lan: VirtualLan, prepared: Prepared
) -> None:
    print({**prepared.seconds, "boot": lan.boot_s})
    assert list(lan.pcs) == ["pc1", "pc2", "pc3"]
    ids = set()
    for pc in lan.pcs.values():
        own_ids = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id"
        name, *rest = pc.run(own_ids).stdout.split()
        assert name == pc.name
        ids.update(rest)
        assert pc.sudo("docker info --format '{{.Driver}}'").stdout.strip() == "overlay2"
        state = pc.run("systemctl is-system-running", check=False).stdout.strip()
        failed = pc.run("systemctl --failed --plain --no-legend").stdout.splitlines()
        assert state in ("running", "degraded")
        assert {line.split()[0] for line in failed} <= {"systemd-modules-load.service"}
    assert len(ids) == 2 * len(lan.pcs)


def test_pcs_reach_each_other_by_name_and_by_v6(lan: VirtualLan) -> None:
    for pc in lan.pcs.values():
        for other in lan.pcs.values():
            pc.sudo(f"ping -c 1 -W 2 {other.name} && ping -6 -c 1 -W 2 {other.address6}")


def test_a_container_with_host_networking_has_the_pcs_network(
    lan: VirtualLan, tiny_image: str
) -> None:
    for pc in lan.pcs.values():
        run = f"docker run --rm --network host -v /etc:/there:ro {tiny_image}"
        said = pc.sudo(f"{run} /bin/sh -c 'read name < /there/hostname; echo $name'").stdout
        assert said.strip() == pc.name


def test_a_cable_carries_one_gbit_per_second(lan: VirtualLan) -> None:
    sender, receiver = lan.workers
    into, out_of = receiver.bytes_in_out(), sender.bytes_in_out()
    for name, pc, script in (("receive", receiver, _RECEIVE), ("send", sender, _SEND)):
        pc.run(f"cat > {name}.py", text_in=textwrap.dedent(script))
    with subprocess.Popen(
        [*receiver.ssh_words(), "python3 receive.py"], stdout=subprocess.PIPE, text=True
    ) as receiving:
        assert receiving.stdout is not None
        assert receiving.stdout.readline() == "ready\n"
        sender.run(f"python3 send.py {receiver.address}")
        got, seconds = receiving.stdout.read().split()
    assert int(got) == _BYTES
    gbit_per_s = 8 * _BYTES / float(seconds) / 1e9
    print(f"{gbit_per_s:.3f} Gbit/s")
    assert 0.8 <= gbit_per_s <= 1.05
    for before, after in (
        (into[0], receiver.bytes_in_out()[0]),
        (out_of[1], sender.bytes_in_out()[1]),
    ):
        assert _BYTES < after - before < 1.1 * _BYTES


def test_the_stranger_tells_open_from_closed_from_filtered(lan: VirtualLan) -> None:
    pc = lan.ps
    assert {item.process for item in pc.listening() if item.port == 22} == {"sshd"}
    for address in (pc.address, pc.address6):
        assert lan.stranger.scan(address, 22) == "open"
        assert lan.stranger.scan(address, 30005) == "closed"
    pc.sudo("ufw allow 22/tcp && ufw --force enable")
    try:
        for address in (pc.address, pc.address6):
            assert lan.stranger.scan(address, 22) == "open"
            assert lan.stranger.scan(address, 30005, limit_s=1) == "filtered"
    finally:
        pc.sudo("ufw --force disable")


def test_a_cut_cable_silences_a_pc_and_mending_it_brings_it_back(lan: VirtualLan) -> None:
    pc = lan.workers[0]
    pc.cut()
    assert lan.stranger.scan(pc.address, 22, limit_s=1) == "filtered"
    assert pc.is_on
    pc.mend()
    wait_for("the PC to answer", lambda: lan.stranger.scan(pc.address, 22) == "open", 20)


def test_the_inventory_names_the_groups_and_how_to_log_in(lan: VirtualLan, tmp_path: Path) -> None:
    text = lan.inventory(tmp_path / "inventory.ini", colour="blue").read_text()
    assert "[ps]\npc1 ansible_host=10.77.0.11\n\n[workers]\npc2 " in text
    assert f"[all:vars]\nansible_user=lab\nansible_ssh_private_key_file={lan.key}\n" in text
    assert text.endswith("colour=blue\n")


def test_the_control_pc_builds_with_the_base_image_and_a_pc_loads_the_result(
    control: ControlDocker, lan: VirtualLan, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BASE_IMAGE}\nRUN apt-get update && echo hi > /hi\n"
    )
    build = ("build", "--quiet", "--network", "host", "--tag", "built:1", str(tmp_path))
    control.docker(*build, timeout_s=300)
    archive = tmp_path / "built.tar"
    control.docker("save", "--output", str(archive), "built:1", timeout_s=120)
    pc = lan.ps
    pc.send(archive, "there.tar")
    pc.sudo("docker load -i ~lab/there.tar", timeout_s=120)
    assert pc.sudo("docker run --rm --network host built:1 cat /hi").stdout == "hi\n"


def test_after_a_power_cut_docker_restarts_what_was_running(
    lan: VirtualLan, tiny_image: str
) -> None:
    """Every container counts as failed (255), but what was stopped by hand comes back too."""
    pc = lan.workers[0]
    _container(pc, "runs")
    _container(pc, "runs-ends-with-0", exits=0)
    _container(pc, "no-policy", policy="no")
    _container(pc, "stopped-ends-with-0", exits=0)
    _container(pc, "stopped-ends-with-143")
    _container(pc, "unless-stopped", policy="unless-stopped")
    pc.sudo("docker stop stopped-ends-with-0 stopped-ends-with-143 unless-stopped")
    pc.run("echo kept > kept")
    carried = pc.bytes_in_out()
    pc.power_off()
    assert not pc.is_on
    assert lan.stranger.scan(pc.address, 22, limit_s=1) == "filtered"
    print(f"boot after the power cut: {pc.power_on():.1f} s")
    assert pc.run("cat kept").stdout == "kept\n"
    assert all(now >= before for now, before in zip(pc.bytes_in_out(), carried, strict=True))
    # The last is Docker's way, not ours: on-failure looks at the exit code alone.
    expected = {"runs", "runs-ends-with-0", "stopped-ends-with-143"}
    wait_for("containers to come back", lambda: _running(pc) == expected, 30)


def test_after_a_shut_down_on_failure_restarts_what_ended_with_an_error(
    lan: VirtualLan, tiny_image: str
) -> None:
    """A container that ends with 0 when the PC shuts down counts as finished, and stays away."""
    pc = lan.workers[1]
    _container(pc, "ends-with-143")
    _container(pc, "ends-with-0", exits=0)
    _container(pc, "unless-stopped-ends-with-0", policy="unless-stopped", exits=0)
    _container(pc, "removed")
    pc.sudo("docker rm --force removed")
    print(f"shut down: {pc.shut_down():.1f} s, boot: {pc.power_on():.1f} s")
    expected = {"ends-with-143", "unless-stopped-ends-with-0"}
    wait_for("containers to come back", lambda: _running(pc) == expected, 30)
