"""`make check` on PCs that lack this and that: it tells the truth, and changes nothing."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lan.checking import PORT, Project, states
from lan.pc import KNOWN_HOSTS, PcSpec, VirtualPc, hang_up
from lan.shell import sh, wait_for
from lan.virtual import VirtualLan

from minga.deploy.packages import docker_command

pytestmark = [pytest.mark.lan, pytest.mark.timeout(900)]

PCS = (PcSpec("pc1", 11, "ps"), PcSpec("pc2", 12), PcSpec("bare", 13, docker=False))
AWAY = "away ansible_host=10.77.0.50"
_LIST = (
    "find / -xdev \\( -path /tmp -o -path /var/log -o -path /run \\) -prune"
    " -o -printf '%p %s %m %C@\\n' | sort"
)
_OLD_COMPOSE = """#!/bin/sh
case $1 in
  docker-cli-plugin-metadata) echo '{"SchemaVersion": "0.1.0", "Vendor": "x", "Version": "2.17"}' ;;
  *) echo 2.17.3 ;;
esac
"""
_SMALL_DISK = """
systemctl stop docker.socket docker.service
mount -t tmpfs -o size=2500m minga-test /var/lib/docker
systemctl start docker.service
mkdir /var/lib/docker/old && fallocate --length 1200m /var/lib/docker/old/film.iso
"""
PASSWORD = "correct horse"
_ANSWERS = f"""#!/bin/sh
case $1 in *yes/no*) echo yes ;; *) echo {PASSWORD} ;; esac
"""
_HOLD = f"nohup python3 -m http.server {PORT} >/dev/null 2>&1 </dev/null & echo $!"


@pytest.fixture(scope="module")
def project(lan: VirtualLan, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("control"), lan)


@contextmanager
def edited(path: Path, *replaced: tuple[str, str]) -> Iterator[None]:
    """Replace words of a file for a while."""
    before = path.read_text()
    text = before
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


@contextmanager
def held_port(pc: VirtualPc) -> Iterator[int]:
    """Let a process of somebody else's hold the port."""
    pid = int(pc.run(_HOLD).stdout)
    wait_for("it to listen", lambda: PORT in {each.port for each in pc.listening()}, 20)
    try:
        yield pid
    finally:
        pc.run(f"kill {pid}", check=False)


@contextmanager
def a_home_for_ssh() -> Iterator[None]:
    """Let ssh learn host keys for a while: it does so in the login's own home, whatever HOME is."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"
    before = home.with_name(".ssh-before-the-virtual-lan")
    if home.exists():
        home.rename(before)
    home.mkdir(mode=0o700)
    try:
        yield
    finally:
        shutil.rmtree(home)
        if before.exists():
            before.rename(home)


def on_disk(lan: VirtualLan) -> dict[str, str]:
    """Return every file of every PC with size, mode and time of its last change."""
    return {pc.name: pc.sudo(_LIST).stdout for pc in lan.pcs.values()}


def test_each_pc_is_told_what_it_lacks_and_nothing_changes(
    project: Project, lan: VirtualLan
) -> None:
    before = on_disk(lan)
    with held_port(lan.ps) as pid, edited(project.inventory, ("\n\n[all", f"\n{AWAY}\n\n[all")):
        rows = project.checked(expected=2)
        said = project.make("check", "LIMIT=pc1,away", expected=2)
    assert states(rows["pc1"], "FAIL") == {f"port {PORT}"}
    holder = rows["pc1"][f"port {PORT}"]
    assert f"held by python3 (pid {pid}: python3 -m http.server {PORT})" in holder["detail"]
    assert (holder["on"], holder["fix"]) == ("pc1", f"sudo kill {pid}")
    assert states(rows["bare"], "FAIL") == states(rows["pc2"], "FAIL") == set()
    assert states(rows["bare"], "WARN") == {"docker", "ps", "data"}
    assert rows["bare"]["docker"]["fix"] == "make deploy", "it installs one"
    assert states(rows["pc2"], "WARN") == {"ps", "data"}
    assert "not tried" in rows["pc2"]["ps"]["detail"]
    assert [(row["state"], row["fix"]) for row in rows["away"].values()] == [
        ("FAIL", "ping -c 3 10.77.0.50")
    ]
    assert f"on pc1:  sudo kill {pid}\n" in said
    assert "error[not-ready]: not ready: pc1, away\n" in said
    assert "pc2" not in said, "LIMIT asks these and no others"
    assert on_disk(lan) == before
    lan.ps.sudo("touch /opt")
    assert on_disk(lan) != before, "control: a change is seen"


def test_the_printed_commands_mend_it_and_the_line_to_the_ps_is_tried(
    project: Project, lan: VirtualLan
) -> None:
    with held_port(lan.ps):
        rows = project.checked(expected=2)
        lan.ps.run(rows["pc1"][f"port {PORT}"]["fix"])
        lan.pcs["bare"].run(docker_command(["debian"]), timeout_s=300)
        rows = project.checked()
    assert rows["pc1"][f"port {PORT}"]["detail"] == "free"
    for worker in (rows["pc2"], rows["bare"]):
        assert states(worker, "WARN") == {"data"}, "what deploy brings"
        assert states(worker, "PASS") >= {"docker", "compose", "ps", "bandwidth"}
        megabytes_per_s = float(worker["bandwidth"]["detail"].split()[0])
        assert 20 < megabytes_per_s < 140, "a cable of 1 Gbit/s"
    assert PORT not in {each.port for each in lan.ps.listening()}, "the listener has ended"


def test_a_slow_line_and_a_firewall_are_seen(project: Project, lan: VirtualLan) -> None:
    plug = lan.pcs["pc2"].plug
    shape = ("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "burst", "32kb")
    plug.exec(*shape, "latency", "50ms", "rate", "20mbit")
    try:
        rows = project.checked()
    finally:
        plug.exec(*shape, "latency", "20ms", "rate", "1gbit")
    slow = rows["pc2"]["bandwidth"]
    found = re.search(r"\((\d+) Mbit/s\) to pc1", slow["detail"])
    assert found
    assert 12 <= int(found[1]) <= 22
    assert (slow["state"], slow["fix"][:9]) == ("WARN", "make plan")
    assert rows["bare"]["bandwidth"]["state"] == "PASS"

    lan.ps.sudo("ufw allow 22/tcp && ufw --force enable")
    try:
        rows = project.checked("LIMIT=pc2,pc1")
    finally:
        lan.ps.sudo("ufw --force disable")
    assert "blocked by ufw there; deploy opens it" in rows["pc2"]["ps"]["detail"]
    assert rows["pc2"]["ps"]["state"] == "WARN"

    lan.ps.sudo(f"iptables -A INPUT -p tcp --dport {PORT} -j DROP")
    try:
        rows = project.checked(expected=2)
        assert "does not answer (timed out)" in rows["pc2"]["ps"]["detail"]
        assert rows["pc2"]["ps"]["on"] == "pc1"
        assert states(rows["pc2"], "FAIL") == states(rows["bare"], "FAIL") == {"ps"}
        lan.ps.run(rows["pc2"]["ps"]["fix"])
        rows = project.checked(expected=2)
        assert states(rows["pc2"], "FAIL") == set()
        assert states(rows["bare"], "FAIL") == {"ps"}, "control: it was not that one's command"
    finally:
        lan.ps.sudo("iptables -F INPUT")


def test_minga_s_own_ps_may_hold_the_port_and_another_container_may_not(
    project: Project, lan: VirtualLan
) -> None:
    lan.ps.sudo("tar -c -T /dev/null | docker import - empty:1")
    run = (
        "docker run --rm --detach --network host -v /usr:/usr -v /lib:/lib -v /lib64:/lib64 --name"
    )
    serve = f"empty:1 /usr/bin/python3 -m http.server {PORT}"

    def listens() -> bool:
        return PORT in {each.port for each in lan.ps.listening()}

    lan.ps.sudo(f"{run} minga-ps {serve}")
    wait_for("it to listen", listens, 20)
    rows = project.checked()
    assert "held by minga's ps" in rows["pc1"][f"port {PORT}"]["detail"]
    assert rows["pc2"]["ps"]["state"] == "PASS"
    assert "bandwidth" not in rows["pc2"], "a ps is not measured with"
    lan.ps.sudo(f"docker stop --time 1 minga-ps; {run} web {serve}")
    wait_for("it to listen", listens, 20)
    fix = project.checked("LIMIT=pc1", expected=2)["pc1"][f"port {PORT}"]["fix"]
    assert fix == "sudo docker container stop web"
    lan.ps.run(fix)
    lan.ps.sudo(f"systemd-run --unit web /usr/bin/python3 -m http.server {PORT}")
    wait_for("it to listen", listens, 20)
    fix = project.checked("LIMIT=pc1", expected=2)["pc1"][f"port {PORT}"]["fix"]
    assert fix == "sudo systemctl stop web.service"
    lan.ps.run(fix)
    wait_for("it to be free", lambda: not listens(), 20)


def test_who_cannot_be_asked_is_told_why(project: Project, lan: VirtualLan, tmp_path: Path) -> None:
    """A wrong key, a host key that is another PC's, a sudo with a password."""
    known, other = tmp_path / "known_hosts", tmp_path / "key"
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other))
    keys = {
        line.split()[0]: line.split(maxsplit=1)[1]
        for line in KNOWN_HOSTS.read_text().splitlines(keepends=True)
    }
    askpass = tmp_path / "askpass"
    askpass.write_text(_ANSWERS)
    askpass.chmod(0o755)
    for pc in (lan.ps, lan.pcs["bare"]):
        pc.sudo(f"echo 'lab:{PASSWORD}' | chpasswd")
    lan.pcs["bare"].sudo(
        "echo 'PasswordAuthentication yes' > /etc/ssh/sshd_config.d/a.conf && systemctl reload ssh"
    )
    keys["10.77.0.12"] = keys["10.77.0.13"]
    known.write_text("".join(f"{address} {key}" for address, key in keys.items()))
    sudoers = lan.ps.file("/etc/sudoers.d/lab")
    edits = (
        (str(KNOWN_HOSTS), f"{known} -o ControlPath=none"),
        (
            "ansible_host=10.77.0.13",
            f"ansible_host=10.77.0.13 ansible_ssh_private_key_file={other}",
        ),
    )
    with edited(project.inventory, *edits):
        with edited(sudoers, ("NOPASSWD: ", "")):
            rows = project.checked(expected=2)
            typed = project.checked("LIMIT=pc1", "ASK_PASS=1", typed=f"{PASSWORD}\n")
            assert typed["pc1"]["sudo"]["state"] == "PASS", "given one"
            lan.ps.typing(rows["pc1"]["sudo"]["fix"], f"{PASSWORD}\n")
            assert project.checked("LIMIT=pc1")["pc1"]["sudo"]["state"] == "PASS", "not asked"
        assert "host key differs from the known one" in rows["pc2"]["ssh"]["detail"]
        assert rows["bare"]["ssh"]["fix"] == f"ssh-copy-id -i {other} lab@10.77.0.13"
        assert rows["pc1"]["sudo"]["detail"].startswith("sudo asks for a password")
        assert rows["pc1"]["sudo"]["fix"].startswith("echo 'lab ALL=(ALL) NOPASSWD: ALL' | sudo")
        subprocess.run(rows["pc2"]["ssh"]["fix"], shell=True, check=True, capture_output=True)
        rows = project.checked(expected=2)
        assert states(rows["pc2"], "FAIL") == states(rows["pc1"], "FAIL") == set()
        assert states(rows["bare"], "FAIL") == {"ssh"}, "control: nobody mended that one"
        with a_home_for_ssh():
            answering = {"SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
            sh(*shlex.split(rows["bare"]["ssh"]["fix"]), env=answering)
        assert states(project.checked()["bare"], "FAIL") == set()


def test_deploy_refuses_by_the_same_rules_and_touches_nothing(
    project: Project, lan: VirtualLan
) -> None:
    """An old driver, an image for other processors, too little disk, a taken port, old Compose."""
    pc = lan.pcs["pc2"]
    pc.sudo(_SMALL_DISK)
    pc.sudo(
        "printf '#!/bin/sh\\necho Some Card, 535.1, 6.1\\n' > /usr/local/bin/nvidia-smi"
        " && chmod 755 /usr/local/bin/nvidia-smi"
    )
    plugins = lan.pcs["bare"].file("/usr/local/lib/docker/cli-plugins")
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").write_text(_OLD_COMPOSE)
    (plugins / "docker-compose").chmod(0o755)
    image = project.folder / "build" / "image"
    for folder in ("layers", "default"):
        (image / folder).mkdir(parents=True)
    current, config = (image / "default" / name for name in ("current.json", "config.json"))
    current.write_text(json.dumps({"layers": ["sha256:aa"], "tag": "minga:x"}))
    (image / "layers" / f"aa-{10**9}.zst").touch()
    config.write_text('{"architecture": "arm64"}')
    before = on_disk(lan)
    with held_port(lan.ps) as pid:
        told = " ".join(project.make("-o", "image", "deploy", expected=2).split())
        rows = project.checked(expected=2)
    assert f"pc1 (10.77.0.11): x86_64, but the image is built for {_other_machine()}" in told
    assert " GB free at /var/lib/docker, 2.0 GB are needed" in told
    assert f"on pc1: sudo kill {pid}" in told
    assert "here: cuda=cu126 # after pc2 in the inventory" in told
    assert {"disk", "architecture", "gpu"} <= states(rows["pc2"], "FAIL")
    old = rows["bare"]["compose"]
    assert old["detail"] == "2.17.3: 2.18 or newer is needed"
    assert on_disk(lan) == before

    lan.pcs["bare"].run(old["fix"])
    shown = pc.run(rows["pc2"]["disk"]["fix"]).stdout
    assert re.search(r"^1\.\d+G\s+/var/lib/docker/old$", shown, re.M), "that takes the room"
    pc.sudo("rm -r /var/lib/docker/old")
    config.write_text('{"architecture": "amd64"}')
    assert states(project.checked("LIMIT=pc2", expected=2)["pc2"], "FAIL") == {"gpu"}
    pc.sudo("mount -o remount,size=12g /var/lib/docker")  # no image of cu126 is here to be measured
    with edited(project.inventory, ("10.77.0.12", "10.77.0.12 cuda=cu126")):
        rows = project.checked("LIMIT=pc2,bare")
    assert states(rows["pc2"], "FAIL") == set()
    assert "containers get it only with" in rows["pc2"]["gpu"]["detail"], "the next thing to do"
    assert rows["pc2"]["gpu"]["fix"] == "make deploy", "it installs NVIDIA's container toolkit"
    pc.sudo("rm /usr/local/bin/nvidia-smi")


def test_data_there_are_compared_with_those_here(project: Project, lan: VirtualLan) -> None:
    """pc2 is sent them; bare has a folder of its own."""
    pc, bare, name = lan.pcs["pc2"], lan.pcs["bare"], project.data.name
    folder, images = f"/opt/minga/data/{name}", "/opt/images"

    def rows() -> list[dict[str, Any]]:
        own = ("10.77.0.13", f"10.77.0.13 data_folder={images}")
        with edited(project.inventory, own):
            found = project.checked("LIMIT=pc2,bare")
        return [found["pc2"]["data"], found["bare"]["data"]]

    assert project.checked("LIMIT=pc2")["pc2"]["data"]["state"] == "WARN"  # now packed here
    pc.send(project.folder / "build" / "data" / name, "")
    pc.sudo(f"mkdir -p /opt/minga/data && mv ~lab/{name} {folder}")
    bare.send(project.data, "")
    bare.sudo(f"mv ~lab/{name} {images}")
    there, own = rows()
    assert there["state"] == "PASS"
    assert own["state"] == "PASS", "the images that the pack was made of"
    pc.sudo(f"printf x | dd conv=notrunc bs=1 seek=9 of=$(find {folder} -type f | head -1)")
    bare.sudo(f"rm $(find {images} -type f | head -1)")
    there, own = rows()
    assert (there["state"], there["fix"]) == ("WARN", "make deploy"), "a byte is enough"
    assert own["state"] == "WARN", "control: they are looked at"
    edit = ("10.77.0.12", "10.77.0.12 data_folder=/mnt/flowers")
    with edited(project.inventory, edit):
        row = project.checked("LIMIT=pc2", expected=2)["pc2"]["data"]
    assert (row["state"], row["on"], row["fix"]) == ("FAIL", "pc2", "ls /mnt")


def test_a_ps_that_is_off_keeps_nobody_else_from_being_checked(
    project: Project, lan: VirtualLan
) -> None:
    lan.ps.power_off()
    hang_up(lan.ps)
    rows = project.checked("LIMIT=pc2")
    assert rows["pc2"]["ps"]["state"] == "WARN"
    assert "did not answer" in rows["pc2"]["ps"]["detail"]
    told = project.make("purge", expected=2)
    assert "error[pcs-missed]: make purge succeeded on 2 of 3 PCs, not on pc1" in told
    rows = project.checked(expected=2)
    assert states(rows["pc1"], "FAIL") == {"ssh"}
    assert states(rows["pc2"], "FAIL") == states(rows["bare"], "FAIL") == set()


def _other_machine() -> str:
    assert os.uname().machine == "x86_64", "the PCs are this machine's kind"
    return "aarch64"
