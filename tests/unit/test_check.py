"""What `make check` concludes from what the PCs answered."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest

from minga.deploy.preflight import Row, Wanted, rows_of
from minga.deploy.ssh_problems import HERE
from minga.deploy.variants import VARIANTS, numbers, suitable
from support import ROOT

DATA = {"files": 10, "size_bytes": 3 * 10**9, "digest": "d"}
DISK = {"folder": "/var/lib", "free_bytes": 20 * 10**9, "device": 1}
CARD = {"name": "Some Card", "driver": "580.65.06", "capability": "8.6"}
HOLDER = {"pid": 7, "name": "nc", "command": "nc -l 30005", "container": "", "unit": ""}
FACTS: dict[str, Any] = {
    "late_s": 1.2,
    "machine": "x86_64",
    "root": True,
    "system": {"names": ["debian"], "version": "13", "title": "Debian 13"},
    "docker": {
        "there": True,
        "version": "26.1.5+dfsg1",
        "error": "",
        "compose": "2.26.1-4",
        "runtimes": ["nvidia", "runc"],
        "images": [],
    },
    "gpu": {"bus": 0, "cards": [], "error": "nvidia-smi: not found"},
    "disks": {"docker": DISK, "minga": DISK},
    "holder": None,
    "firewall": "",
    "guard": None,
    "data": {"set": DATA},
}
DIAL = {"state": "open", "error": "", "received_bytes": 16 << 20, "received_s": 0.15}
ASKED: dict[str, Any] = {
    "address": "10.0.0.2",
    "user": "ana",
    "port": "",
    "key": "",
    "roles": ["worker"],
    "cuda": "default",
    "device": "",
    "ssh": {"stdout": "python=Python 3.13.5\nsudo=\n", "rc": 0},
    "facts": {"answer": FACTS},
    "heard": {},
    "dial": {"answer": DIAL},
}
WANTED = Wanted(
    machine="x86_64",
    ps="pc1",
    layers={"default": ("os", "torch", "code")},
    layer_bytes={"os": 10**8, "torch": 4 * 10**9, "code": 10**6},
    data={"set": DATA},
)


def _with(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a deep copy with values at ``path__to__key`` replaced."""
    changed = copy.deepcopy(base)
    for path, value in changes.items():
        *folders, key = path.split("__")
        at = changed
        for folder in folders:
            at = at[folder]
        at[key] = value
    return changed


def _rows(wanted: Wanted = WANTED, ps: dict[str, Any] = FACTS, **changes: Any) -> dict[str, Row]:
    """Return the rows of a PC; ``facts__x`` stands for its answer's."""
    paths = {re.sub("^(facts|dial)__", r"\1__answer__", path): changes[path] for path in changes}
    return {row.check: row for row in rows_of("pc2", _with(ASKED, **paths), wanted, ps)}


def _one(check: str, **changes: Any) -> tuple[str, str, str, str]:
    row = _rows(**changes)[check]
    return row.state, row.detail, row.on, row.fix


def test_a_pc_that_has_everything_passes_every_check() -> None:
    rows = _rows()
    assert {row.state for row in rows.values()} == {"PASS"}
    assert not any(row.fix for row in rows.values())
    of_pc = ("ssh", "python", "sudo", "architecture", "disk", "clock", "docker", "compose", "gpu")
    assert tuple(rows) == (*of_pc, "ps", "bandwidth", "data")
    assert "port 30005" in _rows(roles=["ps"])


# -- getting there

_VIA = "Failed to connect to the host via ssh: "


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("ssh: connect to host 10.0.0.2 port 22: No route to host", "ping -c 3 10.0.0.2"),
        ("ssh: connect to host 10.0.0.2 port 22: Connection timed out", "ping -c 3 10.0.0.2"),
        ("ana@10.0.0.2: Permission denied (publickey).", "ssh-copy-id -p 2222 ana@10.0.0.2"),
        ("Host key verification failed.", "ssh -p 2222 ana@10.0.0.2 true   # compare"),
        (
            "REMOTE HOST IDENTIFICATION HAS CHANGED! ... Offending ED25519 key in /k:3\n"
            "Host key verification failed.",
            "ssh-keygen -f /k -R '[10.0.0.2]:2222'",
        ),
        ("Could not resolve hostname 10.0.0.2: Name or service", "getent hosts 10.0.0.2"),
        ("connect to host 10.0.0.2 port 22: Connection refused", "sudo apt-get install -y openssh"),
        ("something new", "ssh -p 2222 ana@10.0.0.2 true"),
    ],
)
def test_a_pc_out_of_reach_has_one_row_that_says_why(said: str, fix: str) -> None:
    rows = _rows(ssh={"unreachable": True, "msg": _VIA + said}, port="2222")
    assert list(rows) == ["ssh"]
    assert rows["ssh"].state == "FAIL"
    assert rows["ssh"].fix.startswith(fix)


@pytest.mark.parametrize(
    ("stdout", "detail"),
    [
        ("python=sh: 1: python3: not found\n", "no Python: 3.8 or newer is needed"),
        ("python=Python 3.6.8\n", "Python 3.6.8 is too old: 3.8 or newer is needed"),
    ],
)
def test_without_python_nothing_else_can_be_asked(stdout: str, detail: str) -> None:
    rows = _rows(ssh={"stdout": stdout})
    assert (rows["python"].state, rows["python"].detail) == ("FAIL", detail)
    assert list(rows) == ["ssh", "python"]


@pytest.mark.parametrize(
    ("result", "fix"),
    [
        ({"msg": "Task failed: Missing sudo password"}, "echo 'ana ALL=(ALL) NOPASSWD: ALL'"),
        ({"msg": "Incorrect sudo password"}, "echo 'ana ALL"),
        ({"module_stderr": "ana is not in the sudoers file."}, "su -c '/usr/sbin/usermod -aG"),
        ({"module_stderr": "/bin/sh: 1: sudo: not found"}, "su -c 'apt-get install -y sudo"),
        ({"module_stderr": "Killed"}, "make check"),
    ],
)
def test_who_may_not_be_root_is_told_how(result: dict[str, str], fix: str) -> None:
    rows = _rows(facts={**result, "answer": None})
    assert list(rows) == ["ssh", "python", "sudo"]
    assert rows["sudo"].state == "FAIL"
    assert rows["sudo"].fix.startswith(fix)


# -- the PC itself


def test_another_architecture_than_the_images_fails() -> None:
    assert _one("architecture", facts__machine="aarch64")[0] == "FAIL"
    assert "no packages for it" in _one("architecture", facts__machine="armv7l")[1]


def test_the_disk_must_hold_what_is_missing_of_the_image_twice_and_the_data() -> None:
    needed = 2 * (10**8 + 4 * 10**9 + 10**6)
    for free, state in ((needed, "PASS"), (needed - 1, "FAIL")):
        assert _one("disk", facts__disks__docker={**DISK, "free_bytes": free})[0] == state
    lacks = {"facts__data": {"set": None}}
    for free, state in ((needed + 3 * 10**9, "PASS"), (needed + 3 * 10**9 - 1, "FAIL")):
        both = {**DISK, "free_bytes": free}
        disks = {"facts__disks": {"docker": both, "minga": both}}
        assert _one("disk", **disks, **lacks)[0] == state
    has = _one("disk", facts__docker__images=[["os", "torch", "older code"]])
    assert has[1] == "20.0 GB free, 0.0 GB needed"


def test_two_disks_are_counted_apart_and_an_image_that_is_not_built_is_guessed() -> None:
    disks = {"docker": {**DISK, "device": 2}, "minga": {**DISK, "free_bytes": 10**9}}
    assert _one("disk", facts__disks=disks)[0] == "PASS"
    assert _one("disk", facts__disks=disks, facts__data={})[1].startswith("1.0 GB free")
    assert "10.0 GB needed (no image is built yet" in _one("disk", wanted=Wanted("x86_64"))[1]


@pytest.mark.parametrize(("late_s", "state"), [(30, "PASS"), (-30, "PASS"), (31, "WARN")])
def test_a_wrong_clock_is_a_warning(late_s: float, state: str) -> None:
    assert _one("clock", facts__late_s=late_s)[0] == state
    assert _one("clock", facts__late_s=-90.0)[1] == "90 s behind this PC's clock"


def test_docker_and_compose_must_be_new_enough_and_deploy_installs_what_is_not_there() -> None:
    told = ("WARN", "no Docker engine on this Debian 13: deploy installs it", HERE, "make deploy")
    assert _one("docker", facts__docker__there=False) == told
    assert "compose" not in _rows(facts__docker__there=False)
    off = _one("docker", facts__docker__version="", facts__docker__error="Cannot connect")
    assert off[3] == "sudo systemctl enable --now docker"
    assert _one("docker", facts__docker__version="19.03.8")[0] == "FAIL"
    assert _one("docker", facts__docker__version="20.10.24+dfsg1")[0] == "PASS"
    for version, state in (("2.18.0", "PASS"), ("v2.29", "PASS"), ("2.17.9", "FAIL"), ("", "WARN")):
        assert _one("compose", facts__docker__compose=version)[0] == state


def test_a_system_that_deploy_cannot_serve_has_a_command_of_its_own() -> None:
    arch = {"names": ["arch"], "version": "", "title": "Arch Linux"}
    state, _, on, fix = _one("docker", facts__docker__there=False, facts__system=arch)
    assert (state, on) == ("FAIL", "pc2")
    assert fix.startswith("sudo pacman -S --noconfirm docker docker-compose")
    bookworm = {"names": ["debian"], "version": "12", "title": "Debian 12"}
    told = ("WARN", "no Docker Compose on this Debian 12: deploy installs it", HERE, "make deploy")
    assert _one("compose", facts__docker__compose="", facts__system=bookworm) == told
    old = {"names": ["debian"], "version": "11", "title": "Debian 11"}
    state, detail, _, fix = _one("compose", facts__docker__compose="", facts__system=old)
    assert state == "FAIL"
    assert "Debian 11 has none that is new enough" in detail
    assert fix.startswith("sudo apt-get install -y docker-compose-plugin")


# -- the card


def _card(**changes: str) -> dict[str, Any]:
    return {"bus": 1, "cards": [{**CARD, **changes}], "error": ""}


@pytest.mark.parametrize(
    ("card", "would"),
    [
        ({}, "default"),
        ({"driver": "550.163.01"}, "cu126"),
        ({"driver": "470.256.02"}, "cpu"),
        ({"capability": "6.1"}, "cu126"),
        ({"driver": "570.86", "capability": "12.0"}, "cpu"),
    ],
)
def test_the_image_must_suit_driver_and_card_or_the_row_names_one_that_does(
    card: dict[str, str], would: str
) -> None:
    gpu = _card(**card)
    assert suitable(gpu["cards"], tuple(VARIANTS)) == would
    state, _, on, fix = _one("gpu", facts__gpu=gpu)
    if would == "default":
        assert (state, on, fix) == ("PASS", "", "")
    else:
        assert (state, on) == ("FAIL", HERE)
        assert fix == f"cuda={would}   # after pc2 in the inventory"
    assert _one("gpu", facts__gpu=gpu, cuda=would)[0] == "PASS"


def test_without_an_image_for_the_card_it_is_to_be_left_alone() -> None:
    gpu, only = _card(driver="550.163.01"), replace(WANTED, variants=("default",))
    state, detail, _, fix = _one("gpu", facts__gpu=gpu, wanted=only)
    assert (state, fix) == ("FAIL", "device=cpu   # after pc2 in the inventory")
    assert detail.endswith("cuda=default needs driver 580 or newer")
    assert _one("gpu", facts__gpu=gpu, wanted=only, device="cpu")[0] == "PASS"


def test_a_card_without_a_driver_is_a_warning() -> None:
    bare = {"bus": 1, "cards": [], "error": "nvidia-smi: not found"}
    assert _one("gpu", facts__gpu=bare)[0] == "WARN"
    stale = {**bare, "error": "Failed to initialize NVML: Driver/library version mismatch"}
    assert _one("gpu", facts__gpu=stale)[3] == "sudo reboot"
    assert _one("gpu", facts__gpu=bare, device="cpu")[0] == "PASS"


@pytest.mark.parametrize(
    ("names", "by_deploy"),
    [(["debian"], True), (["linuxmint", "ubuntu"], True), (["fedora"], True), (["arch"], False)],
)
def test_the_toolkit_between_card_and_docker_is_deploys_affair_where_nvidia_has_packages(
    names: list[str], by_deploy: bool
) -> None:
    system = {"names": names, "version": "12", "title": "Some System"}
    lacks = {"facts__gpu": _card(), "facts__docker__runtimes": ["runc"], "facts__system": system}
    state, detail, on, fix = _one("gpu", **lacks)
    assert (state, "containers get it only with" in detail) == ("WARN", True)
    if by_deploy:
        assert detail.endswith("NVIDIA's container toolkit: deploy installs it")
        assert (on, fix) == (HERE, "make deploy")
    else:
        assert (on, fix[:14]) == ("pc2", "sudo nvidia-ct")
    assert _one("gpu", **lacks, roles=["ps"])[0] == "PASS", "the ps computes nothing"


def test_the_default_variant_needs_what_the_image_is_labelled_with() -> None:
    default = VARIANTS["default"]
    assert default
    assert f"ARG MIN_DRIVER={default.driver}\n" in (ROOT / "docker" / "Dockerfile").read_text()


def test_numbers_reads_the_beginning_of_a_version() -> None:
    assert numbers("26.1.5+dfsg1") == (26, 1, 5)
    assert numbers("v2.29.1-desktop") == (2, 29, 1)
    assert numbers("unknown") == ()


# -- the port and the line


def test_the_port_may_be_free_or_minga_s_but_nobody_elses() -> None:
    ps = {"roles": ["ps"]}
    assert _one("port 30005", **ps)[1] == "free"
    ours = {**HOLDER, "container": "minga-ps"}
    assert _one("port 30005", **ps, facts__holder=ours)[0] == "PASS"
    other = {**HOLDER, "container": "web"}
    assert _one("port 30005", **ps, facts__holder=other)[3] == "sudo docker container stop web"
    unit = {**HOLDER, "unit": "nc.service"}
    assert _one("port 30005", **ps, facts__holder=unit)[3] == "sudo systemctl stop nc.service"
    told = ("FAIL", "held by nc (pid 7: nc -l 30005)", "pc2", "sudo kill 7")
    assert _one("port 30005", **ps, facts__holder=HOLDER) == told
    assert _one("port 30005", **ps, heard={"holder": HOLDER}) == told
    assert _one("port 30005", **ps, facts__holder={**HOLDER, "pid": 0})[0] == "FAIL"


@pytest.mark.parametrize(
    ("ps", "state", "on", "fix"),
    [
        ({}, "FAIL", "pc1", "sudo iptables -I INPUT -p tcp -s 10.0.0.2 --dport 30005 -j ACCEPT"),
        ({"firewall": "iptables"}, "FAIL", "pc1", "sudo iptables -I INPUT -p tcp -s 10.0.0.2"),
        ({"firewall": "ufw"}, "WARN", HERE, "make deploy"),
        ({"firewall": "ufw", "guard": ["10.0.0.9"]}, "WARN", HERE, "make deploy"),
        ({"guard": ["10.0.0.2"], "firewall": "ufw"}, "FAIL", "pc1", "sudo ufw allow from 10.0.0.2"),
        ({"guard": ["10.0.0.2"], "firewall": "firewalld"}, "FAIL", "pc1", "sudo firewall-cmd"),
    ],
)
def test_a_ps_that_does_not_answer_is_deploys_affair_or_the_owners(
    ps: dict[str, Any], state: str, on: str, fix: str
) -> None:
    row = _rows(ps={**FACTS, **ps}, dial__state="silent", dial__error="timed out")["ps"]
    assert (row.state, row.on) == (state, on)
    assert row.fix.startswith(fix)


def test_a_ps_that_was_not_asked_is_to_be_asked_too() -> None:
    row = _rows(ps={}, dial__state="silent")["ps"]
    assert (row.state, row.fix) == ("FAIL", "make check LIMIT=pc1,pc2")


def test_another_pc_at_the_ps_s_address_fails() -> None:
    assert "another PC" in _one("ps", dial__state="stranger")[1]


def test_a_line_that_was_not_tried_says_why() -> None:
    assert "port 30005 is not free" in _one("ps", dial={})[1]
    assert "pc1 did not answer" in _one("ps", dial={}, ps={})[1]


@pytest.mark.parametrize(("mbit_per_s", "state"), [(941, "PASS"), (50, "PASS"), (49, "WARN")])
def test_a_slow_line_is_a_warning(mbit_per_s: float, state: str) -> None:
    received_s = 8e-6 * (16 << 20) / mbit_per_s
    row = _rows(dial__received_s=received_s)["bandwidth"]
    assert row.state == state
    assert f"({mbit_per_s} Mbit/s)" in row.detail


def test_minga_s_own_ps_is_reached_and_not_measured() -> None:
    rows = _rows(dial__received_bytes=0)
    assert rows["ps"].state == "PASS"
    assert "bandwidth" not in rows


def test_data_that_are_missing_or_differ_are_deploys_affair() -> None:
    assert _one("data", facts__data={"set": None})[::3] == ("WARN", "make deploy")
    other = {**DATA, "files": 9}
    assert _one("data", facts__data={"set": None})[1] == "set is not on the PC yet"
    assert "9 files there, 10 here" in _one("data", facts__data={"set": other})[1]
    assert _one("data", facts__data={"set": {**DATA, "digest": "e"}})[0] == "WARN"


def test_data_that_a_pc_has_of_its_own_are_nobodys_affair_but_must_be_there() -> None:
    own = {"data_folder": "/mnt/flowers"}
    assert _one("data", **own)[0] == "PASS"
    assert _one("data", **own, facts__data={"set": None})[::3] == ("FAIL", "ls /mnt")
    assert _one("data", **own, facts__data={"set": {**DATA, "files": 9}})[::3] == ("WARN", "")
    packed = replace(WANTED, images={"set": {**DATA, "files": 110}})
    images = {"facts__data": {"set": packed.images["set"]}}
    assert _one("data", **own, **images, wanted=packed)[:2] == ("PASS", "set: 110 files, as here")
    assert _one("data", **images, wanted=packed)[0] == "WARN", (
        "one that is sent them is sent shards"
    )
    nothing_here = Wanted("x86_64", ps="pc1", data={"set": None})
    assert _one("data", **own, wanted=nothing_here)[1] == (
        "10 files in /mnt/flowers: this PC has none"
    )
    assert "data" not in _rows(nothing_here)
    free = {**DISK, "free_bytes": 9 * 10**9}
    disks = {"facts__disks": {"docker": free, "minga": free}, "facts__data": {"set": None}}
    assert (_one("disk", **disks)[0], _one("disk", **disks, **own)[0]) == ("FAIL", "PASS")
