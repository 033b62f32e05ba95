"""One deployment on five PCs that differ, and a sixth that is off; each test goes on from the last.

pc1 is ps and worker behind firewalld; pc2 has no Docker, and no way out but a proxy; pc3's ufw
denies; pc4 is a Debian 12 with its own docker.io, and takes another login with a sudo password on
another port; pc5's DNS is dead, its name is 127.0.1.1, its Docker keeps images in containerd's
store as Docker 29 does, and two workers run there; gone is off.
"""

from __future__ import annotations

import re

import pytest
from lan.control import ControlDocker
from lan.deployment import PORT, Deployment, changed, containers, note
from lan.pc import PcSpec, VirtualPc, hang_up, share_images
from lan.proxy import ADDRESS as PROXY
from lan.proxy import lab_proxy, shut_in
from lan.shell import wait_for
from lan.traces import differences, traces
from lan.virtual import VirtualLan
from lan.walls import put_up_firewalld, put_up_ufw

pytestmark = [pytest.mark.lan, pytest.mark.timeout(1800)]

PCS = (
    PcSpec("pc1", 11, "ps"),
    PcSpec("pc2", 12, docker=False),
    PcSpec("pc3", 13),
    PcSpec("pc4", 14, suite="bookworm"),
    PcSpec("pc5", 15),
)
GONE = "10.77.0.66"
LOGIN, PASSWORD, SSH_PORT = "ana", "correct horse", 2222
RANKS = {"pc1": 1, "pc2": 2, "pc3": 4, "pc4": 5, "pc5": 6}
"""gone has 3; the second worker of pc5 has 7."""
SETTINGS = {
    "model": {"name": "small-cnn"},
    "train": {"epochs": 4000, "batch_size": 16},
    "exchange": {"local_steps": 2},
    "evaluation": {"every_epochs": 4000},
    "checkpoint": {"every_s": 3},
}
_CONTAINERD_S_STORE = """
systemctl stop docker.socket docker containerd
mkdir -p /var/lib/docker/of-containerd
echo '/var/lib/docker/of-containerd /var/lib/containerd none bind' >> /etc/fstab
mount /var/lib/containerd
mkdir -p /etc/docker
echo '{"features": {"containerd-snapshotter": true}}' > /etc/docker/daemon.json
systemctl start containerd docker
"""


def _give_another_login(pc: VirtualPc) -> None:
    """Let ana in by key on a port of her own; sudo asks her for a password."""
    pc.sudo(f"useradd --create-home --shell /bin/bash {LOGIN}")
    pc.sudo(f"echo '{LOGIN}:{PASSWORD}' | chpasswd")
    pc.sudo(f"echo '{LOGIN} ALL=(ALL) ALL' > /etc/sudoers.d/{LOGIN}")
    pc.sudo(f"cp -r /home/lab/.ssh /home/{LOGIN}/ && chown -R {LOGIN}: /home/{LOGIN}/.ssh")
    ports = f"Port 22\\nPort {SSH_PORT}\\n"
    pc.sudo(f"printf '{ports}' > /etc/ssh/sshd_config.d/ports.conf && systemctl restart ssh")


def _take_the_dns_away(pc: VirtualPc) -> None:
    """Name a server that is not there; at each boot, nspawn mounts the host's list over it."""
    pc.sudo("umount /etc/resolv.conf; echo nameserver 10.77.0.98 > /etc/resolv.conf")


def _inventory(lan: VirtualLan, ps: str = "pc1") -> str:
    other = f"ansible_user={LOGIN} ansible_port={SSH_PORT} ansible_become_password='{PASSWORD}'"
    own = {"pc4": other, "pc3": "batch_size=8", "pc5": "workers_per_host=2"}
    lines = [
        f"{name} ansible_host={pc.address} {own.get(name, '')}" for name, pc in lan.pcs.items()
    ]
    lines.insert(RANKS["pc3"] - 2, f"gone ansible_host={GONE}")
    known = f'"-o UserKnownHostsFile={lan.known_hosts}"'
    settings = [
        "ansible_user=lab",
        f"ansible_ssh_private_key_file={lan.key}",
        f"ansible_ssh_common_args={known}",
        "minga_threads=1",
    ]
    leads = next(line for line in lines if line.startswith(f"{ps} "))
    return "\n".join(["[ps]", leads, "[workers]", *lines, "[all:vars]", *settings]) + "\n"


@pytest.fixture(scope="module")
def project(
    lan: VirtualLan, control: ControlDocker, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    put_up_firewalld(lan.ps)
    lan.ps.sudo("systemctl restart docker")  # it has a zone of its own, from now on
    put_up_ufw(lan.pcs["pc3"])
    _give_another_login(lan.pcs["pc4"])
    _take_the_dns_away(lan.pcs["pc5"])
    lan.pcs["pc5"].sudo(_CONTAINERD_S_STORE)  # its root is an overlay: below it, none can be made
    project = Deployment(tmp_path_factory.mktemp("control"), lan, control)
    project.configure(SETTINGS)
    (project.folder / "lan.ini").write_text(_inventory(lan))
    return project


@pytest.fixture(scope="module")
def before(project: Deployment, lan: VirtualLan) -> dict[str, list[str]]:
    """What was on the PCs before minga came."""
    return {name: traces(pc) for name, pc in lan.pcs.items()}


def table(printed: str) -> dict[str, str]:
    """Return each PC's state in the table at the end."""
    rows = printed.rpartition("PC    STATE")[2].partition("error[")[0]
    return dict(re.findall(r"^(pc\d|gone) +(done|failed|unreachable|not started)", rows, re.M))


def everybody_but_gone(state: str = "done") -> dict[str, str]:
    return {"pc1": state, "pc2": state, "gone": "unreachable", "pc3": state} | {
        "pc4": state,
        "pc5": state,
    }


def everybody_pushes(project: Deployment) -> None:
    """Wait until each worker has pushed from now on."""
    seen = len(project.events("push"))
    missing = {*RANKS.values(), 7}

    def all_have() -> bool:
        missing.difference_update(push["rank"] for push in project.events("push")[seen:])
        return not missing

    wait_for(f"pushes of ranks {missing}", all_have, 240)


def test_check_tells_what_fresh_pcs_would_get(
    project: Deployment, lan: VirtualLan, before: dict[str, list[str]]
) -> None:
    printed = project.make("deploy", "CHECK=1", expected=2)
    assert "pc2 would get engine, compose of its distribution" in printed
    assert table(printed) == everybody_but_gone()
    assert "Error 3" in printed
    for name, pc in lan.pcs.items():
        found = differences(before[name], traces(pc))
        assert [line for line in found if "/.ansible" not in line] == []


def test_a_pc_without_docker_gets_it_from_its_distribution(
    project: Deployment, lan: VirtualLan
) -> None:
    """By the lab's proxy, its only way out; and a deploy that was cut short goes on."""
    bare = lan.pcs["pc2"]
    assert bare.run("command -v dockerd", check=False).returncode != 0
    shut_in(bare)
    refused = project.make("deploy", "LIMIT=pc2", expected=2)
    assert "engine, compose cannot be installed" in refused, "control: there is no other way"

    def parts() -> str:
        return bare.sudo("docker image ls minga", check=False).stdout

    def half_is_there() -> bool:
        return re.search(r"part-\w+-5 ", parts()) is not None

    deploy = ("deploy", "LIMIT=pc2", f"http_proxy={PROXY}")
    with lab_proxy() as log:
        with project.interrupted(*deploy):
            wait_for("half of the image", half_is_there, 400, pause_s=1)
        _, came_bytes, printed = project.timed(*deploy)
        assert changed(printed)["pc2"] > 0
        assert bare.address in log.read_text()
    assert came_bytes < 1.6e9, "of 2.5 GB: it went on from the layers that were there"
    assert "part-" not in parts()
    assert bare.sudo("systemctl is-enabled docker").stdout.strip() == "enabled"
    # the wire has its test, and an engine of another age or store its own image
    share_images(bare, [lan.pcs[name] for name in ("pc1", "pc3")])


def test_deploy_does_its_work_on_all_that_are_there(project: Deployment, lan: VirtualLan) -> None:
    started = {
        name: pc.sudo("systemctl show -P MainPID docker").stdout for name, pc in lan.pcs.items()
    }
    seconds, _, printed = project.timed("deploy", expected=2)
    note(mixed_hosts=len(lan.pcs), mixed_deploy_s=round(seconds, 1))
    assert table(printed) == everybody_but_gone()
    assert "No route to host" in printed
    assert "make deploy LIMIT=gone" in printed
    assert "Error 3" in printed
    for name, pc in lan.pcs.items():
        assert pc.sudo("systemctl show -P MainPID docker").stdout == started[name], "not restarted"
        told = pc.file("/opt/minga/worker.env").read_text()
        assert f"RANK={RANKS[name]}\n" in told, "gone keeps its place"
        assert "WORLD_SIZE=8\n" in told
    assert "MINGA_TRAIN_BATCH_SIZE=8\n" in lan.pcs["pc3"].file("/opt/minga/worker.env").read_text()
    engine = lan.pcs["pc4"].sudo("docker version --format '{{.Server.Version}}'").stdout
    assert engine.startswith("20.10.")
    store = lan.pcs["pc5"].sudo("docker info --format '{{.DriverStatus}}'").stdout
    assert "io.containerd.snapshotter" in store
    rules = lan.ps.sudo("firewall-cmd --permanent --list-rich-rules").stdout
    assert all(f'"{pc.address}" port port="{PORT}"' in rules for pc in lan.pcs.values())


def test_a_second_deploy_changes_nothing(project: Deployment, lan: VirtualLan) -> None:
    printed = project.make("deploy", "LIMIT=!gone")
    assert changed(printed) == dict.fromkeys(lan.pcs, 0)


def test_somebody_elses_turn_is_respected(project: Deployment, lan: VirtualLan) -> None:
    lock = "test -e /run/minga.lock"
    assert lan.ps.sudo(lock, check=False).returncode == 1, "given back"
    lan.ps.sudo("echo 'ben@lab, make deploy since noon' > /run/minga.lock")
    refused = project.make("deploy", "LIMIT=pc1", expected=2)
    assert "ben@lab, make deploy since noon" in refused
    assert "Error 5" in refused
    assert "FORCE=1" in refused
    project.make("stop", "LIMIT=pc1", "FORCE=1")
    assert lan.ps.sudo(lock, check=False).returncode == 1, "given back"


def test_train_starts_all_that_are_there(project: Deployment, lan: VirtualLan) -> None:
    printed = project.make("train", expected=2)
    assert table(printed) == everybody_but_gone()
    everybody_pushes(project)
    assert containers(lan.ps) == {"minga-ps": "running 0", "minga-worker": "running 0"}
    status = project.make("status", expected=2)
    assert "Error 3" in status
    assert re.search(r"^gone .*unreachable", status, re.M)
    assert status.count("minga-worker") == len(lan.pcs) + 1


def test_a_stranger_finds_ssh_and_nothing_of_ours(project: Deployment, lan: VirtualLan) -> None:
    listening = {each.port for each in lan.ps.listening()} | {PORT}
    found = {
        port
        for port in listening
        for address in (lan.ps.address, lan.ps.address6)
        if lan.stranger.scan(address, port, 2.0) == "open"
    }
    assert found == {22}
    assert PORT in {each.port for each in lan.ps.listening()}, "control: the ps is there"


def test_docker_restarted_on_a_pc_costs_it_a_join(project: Deployment, lan: VirtualLan) -> None:
    own = [each for each in project.events("worker_join") if each["rank"] == RANKS["pc4"]]
    lan.pcs["pc4"].sudo("systemctl restart docker", timeout_s=120)
    project.await_events("worker_join", len(own) + 1, rank=RANKS["pc4"])
    everybody_pushes(project)


def test_all_pcs_off_and_on_again_resume(project: Deployment, lan: VirtualLan) -> None:
    lan.ps.power_off()
    hang_up(lan.ps)
    refused = project.make("train", "LIMIT=pc1,pc2", expected=2)
    assert table(refused)["pc1"] == "unreachable"
    assert table(refused)["pc2"] == "not started"
    for pc in lan.pcs.values():
        if pc is not lan.ps:
            pc.power_off()
    for pc in lan.pcs.values():
        pc.power_on(wait=False)
    for pc in lan.pcs.values():
        pc.wait_until_ready()
    _take_the_dns_away(lan.pcs["pc5"])
    project.await_events("resume", 1)
    everybody_pushes(project)


def test_stop_and_collect_find_the_run_of_a_ps_that_was_moved(
    project: Deployment, lan: VirtualLan
) -> None:
    """In mid-run, to pc3: the old ps runs on where a worker is today, and purge sees its run."""
    old_run = project.run_id
    for pc in lan.pcs.values():  # they leave the processors to deploy; the ps runs on
        pc.sudo("docker ps -q --filter name=minga-worker | xargs -r docker stop", timeout_s=120)
    (project.folder / "lan.ini").write_text(_inventory(lan, ps="pc3"))
    project.ps = lan.pcs["pc3"]
    project.make("deploy", "LIMIT=!gone")
    project.make("train", "LIMIT=!gone")
    project.await_events("push", 1)
    new_run = project.run_id
    assert new_run != old_run
    assert containers(lan.ps)["minga-ps"] == "running 0", "control: it runs on"
    assert table(project.make("stop", expected=2)) == everybody_but_gone()
    assert not any("running" in st for pc in lan.pcs.values() for st in containers(pc).values())
    refused = project.make("purge", "LIMIT=pc1", expected=2)
    assert f"pc1: {old_run}/config.json" in refused
    assert "make stop collect" in refused
    assert "Error 5" in refused
    assert (lan.ps.file(f"/opt/minga/var/runs/{old_run}") / "events.jsonl").exists()
    assert table(project.make("collect", expected=2)) == everybody_but_gone()
    for run, ps in ((old_run, "pc1"), (new_run, "pc3")):
        home = project.folder / "runs" / run
        assert (home / "checkpoints" / "last.pth").exists()
        assert len(list((home / "stats").glob(f"{ps}_ps_*.json"))) >= 1
        assert len(list((home / "stats").glob("*_worker*.json"))) >= 3, "of several PCs"


def test_purge_can_leave_docker_where_deploy_brought_it(
    project: Deployment, lan: VirtualLan
) -> None:
    bare = lan.pcs["pc2"]
    bare.sudo("cp -r /opt/minga/added /root/added")
    printed = project.make("purge", "LIMIT=pc2", "KEEP_DOCKER=1")
    assert "pc2 kept Docker: KEEP_DOCKER=1" in printed
    assert bare.sudo("docker image ls -q").stdout == "", "of minga nothing stays"
    assert not bare.file("/opt/minga").exists()
    # what deploy brought is noted again: the next test takes Docker away, too
    bare.sudo("mkdir /opt/minga && mv /root/added /opt/minga/added")


def test_purge_leaves_the_pcs_as_they_were(
    project: Deployment, lan: VirtualLan, before: dict[str, list[str]]
) -> None:
    with_minga = differences(before["pc2"], traces(lan.pcs["pc2"]))
    assert any("docker.io" in line for line in with_minga), "control: a difference shows"
    assert table(project.make("purge", expected=2)) == everybody_but_gone()
    found = [
        f"{name} {line}"
        for name, pc in lan.pcs.items()
        for line in differences(before[name], traces(pc))
    ]
    note(purge_diff=found)
    assert found == []
    assert lan.pcs["pc2"].run("command -v docker", check=False).returncode != 0
