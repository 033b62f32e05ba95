"""Rules of what a PC needs to train: its answers -> rows. No I/O.

A FAIL stops `make deploy` or the training on that PC; a WARN does not, or deploy fixes it.
The facts are those of ``ansible/roles/check/files/probe.py``, which ``ansible/check.yml`` notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from minga.deploy.layers import missing_layers
from minga.deploy.packages import (
    by_deploy,
    compose_command,
    docker_command,
    toolkit_by_deploy,
)
from minga.deploy.ssh_problems import HERE, ssh_problem, sudo_problem
from minga.deploy.variants import DEFAULT, VARIANTS, Variant, numbers, suitable
from minga.protocol import DEFAULT_PORT

State = Literal["PASS", "WARN", "FAIL"]
Facts = Mapping[str, Any]

CLOCK_S = 30.0
"""Includes the delay of asking a busy PC."""
SLOW_MBIT_PER_S = 50.0
IMAGE_BYTES = 5_000_000_000
"""Assumed size of the image while none is built here."""
BY_DEPLOY = ("ufw", "firewalld", "nftables")
"""Firewalls in which deploy opens the port to the inventory's PCs."""
MIN_PYTHON = (3, 8)
MIN_DOCKER = (20, 10)
MIN_COMPOSE = (2, 18)


@dataclass(frozen=True, slots=True)
class Row:
    """One check of one PC; ``fix`` is a command, ``on`` the PC to type it on (or HERE)."""

    pc: str
    check: str
    state: State
    detail: str
    on: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this deployment sends to a PC."""

    machine: str
    port: int = DEFAULT_PORT
    ps: str = ""
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of the built images, by variant."""
    layer_bytes: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    """Source of packed data: a ``data_folder`` may hold either."""
    variants: Sequence[str] = tuple(VARIANTS)


def rows_of(pc: str, asked: Mapping[str, Any], wanted: Wanted, ps: Facts) -> Iterator[Row]:
    """Yield the rows of one PC.

    Args:
        pc: its name in the inventory.
        asked: ``address, user, port, key, roles, cuda, device, data_folder`` from the inventory,
            and the answers: ``ssh``, ``facts``, ``heard`` (the ps's listener), ``dial``.
        wanted: what to deploy.
        ps: the ps's facts, empty if it gave none.
    """
    if problem := ssh_problem(pc, asked):
        yield Row(pc, "ssh", "FAIL", *problem)
        return
    yield Row(pc, "ssh", "PASS", "@".join(filter(None, (asked.get("user"), asked["address"]))))
    python = _python(pc, asked)
    yield python
    if python.state == "FAIL":
        return
    facts = asked["facts"].get("answer")
    if not facts:
        yield Row(pc, "sudo", "FAIL", *sudo_problem(pc, asked))
        return
    yield Row(pc, "sudo", "PASS", "root")
    yield _machine(pc, facts, wanted)
    yield _disk(pc, asked, facts, wanted)
    yield _clock(pc, facts)
    yield from _docker(pc, facts)
    yield _gpu(pc, asked, facts, wanted)
    if "ps" in asked["roles"]:
        yield _port(pc, asked, facts, wanted)
    if "worker" in asked["roles"]:
        yield from _line(pc, asked, wanted, ps)
        yield from _data(pc, asked, facts, wanted)


def _python(pc: str, asked: Mapping[str, Any]) -> Row:
    said = str(asked["ssh"].get("stdout", ""))
    found = re.search(r"^python=Python (\S+)", said, flags=re.MULTILINE)
    if found and numbers(found[1]) >= MIN_PYTHON:
        return Row(pc, "python", "PASS", found[1])
    least = ".".join(map(str, MIN_PYTHON))
    there = f"Python {found[1]} is too old" if found else "no Python"
    fix = "sudo apt-get install -y python3 || sudo dnf install -y python3"
    return Row(pc, "python", "FAIL", f"{there}: {least} or newer is needed", pc, fix)


def _machine(pc: str, facts: Facts, wanted: Wanted) -> Row:
    machine = facts["machine"]
    if machine == wanted.machine:
        return Row(pc, "architecture", "PASS", machine)
    detail = f"{machine}, but the image is built for {wanted.machine}"
    if machine in ("x86_64", "aarch64"):
        fix = f"make deploy LIMIT={pc}   # on a control PC with {machine}"
        return Row(pc, "architecture", "FAIL", detail, f"a PC with {machine}", fix)
    detail += "; torch has no packages for it. Remove it from the inventory"
    return Row(pc, "architecture", "FAIL", detail)


def _disk(pc: str, asked: Mapping[str, Any], facts: Facts, wanted: Wanted) -> Row:
    needs = {"docker": _image_bytes(asked, facts, wanted), "minga": 0}
    if "worker" in asked["roles"] and not asked.get("data_folder"):
        needs["minga"] = sum(
            theirs["size_bytes"]
            for name, theirs in wanted.data.items()
            if theirs and facts["data"].get(name) != theirs
        )
    disks = facts["disks"]
    if disks["docker"]["device"] == disks["minga"]["device"]:
        needs = {"docker": sum(needs.values())}
    short = [
        (disks[name], need) for name, need in needs.items() if disks[name]["free_bytes"] < need
    ]
    for disk, need in short:
        detail = (
            f"{_gigabytes(disk['free_bytes'])} free at {disk['folder']}, "
            f"{_gigabytes(need)} are needed"
        )
        images = "sudo docker system df; " if facts["docker"]["there"] else ""
        whole = f"$(findmnt -no TARGET -T {disk['folder']})"
        fix = f"{images}sudo du -xh --max-depth=2 {whole} 2>/dev/null | sort -h | tail -20"
        return Row(pc, "disk", "FAIL", f"{detail}; this shows what uses it", pc, fix)
    free = min(disks[name]["free_bytes"] for name in needs)
    built = (asked.get("cuda") or DEFAULT) in wanted.layers
    assumed = "" if built else " (no image is built yet: assumed 5 GB)"
    detail = f"{_gigabytes(free)} free, {_gigabytes(sum(needs.values()))} needed{assumed}"
    return Row(pc, "disk", "PASS", detail)


def _image_bytes(asked: Mapping[str, Any], facts: Facts, wanted: Wanted) -> int:
    """Return the space that the PC's image needs during the transfer: each missing layer twice."""
    layers = wanted.layers.get(asked.get("cuda") or DEFAULT)
    if layers is None:
        return 2 * IMAGE_BYTES
    missing = missing_layers(facts["docker"]["images"], layers)
    return 2 * sum(wanted.layer_bytes.get(layer, 0) for layer in missing)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _clock(pc: str, facts: Facts) -> Row:
    late_s = facts["late_s"]
    if abs(late_s) <= CLOCK_S:
        return Row(pc, "clock", "PASS", f"within {CLOCK_S:.0f} s of this PC's")
    way = "ahead of" if late_s > 0 else "behind"
    detail = f"{abs(late_s):.0f} s {way} this PC's clock"
    return Row(pc, "clock", "WARN", detail, pc, "sudo timedatectl set-ntp true")


def _docker(pc: str, facts: Facts) -> Iterator[Row]:
    """Yield engine and Compose: deploy installs missing ones, and replaces nothing."""
    docker, system = facts["docker"], facts["system"]
    if not docker["there"]:
        yield _absent(pc, "docker", "no Docker engine", system)
        return
    if not docker["version"]:
        start = "sudo systemctl enable --now docker"
        yield Row(pc, "docker", "FAIL", f"no engine answers: {docker['error']}", pc, start)
        return
    for check, version, least, command in (
        ("docker", docker["version"], MIN_DOCKER, docker_command(system["names"])),
        (
            "compose",
            docker["compose"],
            MIN_COMPOSE,
            compose_command(system, docker.get("compose_file", "")),
        ),
    ):
        if not version:
            yield _absent(pc, check, "no Docker Compose", system)
        elif numbers(version) >= least:
            yield Row(pc, check, "PASS", version)
        else:
            detail = f"{version}: {'.'.join(map(str, least))} or newer is needed"
            yield Row(pc, check, "FAIL", detail, pc, command)


def _absent(pc: str, check: str, what: str, system: Facts) -> Row:
    if by_deploy(system):
        detail = f"{what} on this {system['title']}: deploy installs it"
        return Row(pc, check, "WARN", detail, HERE, "make deploy")
    command = docker_command(system["names"]) if check == "docker" else compose_command(system)
    detail = f"{what}, and {system['title']} has none that is new enough"
    return Row(pc, check, "FAIL", detail, pc, command)


def _gpu(pc: str, asked: Mapping[str, Any], facts: Facts, wanted: Wanted) -> Row:
    gpu, chosen = facts["gpu"], asked.get("cuda") or DEFAULT
    cards, variant = gpu["cards"], VARIANTS.get(chosen)
    if not gpu["bus"] and not cards:
        return Row(pc, "gpu", "PASS", "no NVIDIA card: it trains on its CPU")
    if asked.get("device") == "cpu" or variant is None or not variant.cuda:
        return Row(pc, "gpu", "PASS", "not used, by the inventory")
    if not cards:
        return _driverless(pc, gpu)
    shown = f"{cards[0]['name']}, driver {cards[0]['driver']}"
    if not all(variant.suits(card) for card in cards):
        would = suitable(cards, wanted.variants)
        word = f"cuda={would}" if would else "device=cpu"
        detail = f"{shown}: {_unsuited(cards, chosen, variant)}"
        return Row(pc, "gpu", "FAIL", detail, HERE, f"{word}   # after {pc} in the inventory")
    docker = facts["docker"]
    if "worker" in asked["roles"] and docker["version"] and "nvidia" not in docker["runtimes"]:
        return _not_handed_out(pc, shown, facts["system"])
    return Row(pc, "gpu", "PASS", f"{len(cards)} x {shown}")


def _not_handed_out(pc: str, shown: str, system: Facts) -> Row:
    detail = f"{shown}, but containers get it only with NVIDIA's container toolkit"
    if toolkit_by_deploy(system):
        return Row(pc, "gpu", "WARN", f"{detail}: deploy installs it", HERE, "make deploy")
    fix = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
    detail += f", which you install on {system['title']}: until then it trains on its CPU"
    return Row(pc, "gpu", "WARN", detail, pc, fix)


def _unsuited(cards: Sequence[Mapping[str, str]], chosen: str, variant: Variant) -> str:
    if any(numbers(card["driver"])[:1] < (variant.driver,) for card in cards):
        return f"cuda={chosen} needs driver {variant.driver} or newer"
    return f"cuda={chosen} has no code for this card (compute capability {cards[0]['capability']})"


def _driverless(pc: str, gpu: Mapping[str, Any]) -> Row:
    if "version mismatch" in gpu["error"]:
        detail = "NVIDIA's driver was updated but not loaded yet: it trains on its CPU"
        return Row(pc, "gpu", "WARN", detail, pc, "sudo reboot")
    detail = f"an NVIDIA card without a working driver ({gpu['error']}): it trains on its CPU"
    fix = "sudo ubuntu-drivers install || sudo apt-get install -y nvidia-driver"
    return Row(pc, "gpu", "WARN", detail, pc, fix)


def _port(pc: str, asked: Mapping[str, Any], facts: Facts, wanted: Wanted) -> Row:
    check = f"port {wanted.port}"
    # Another process may have taken the port since the facts were read.
    holder = asked.get("heard", {}).get("holder") or facts["holder"]
    if holder is None:
        return Row(pc, check, "PASS", "free")
    if holder["container"] == "minga-ps":
        return Row(pc, check, "PASS", f"held by minga's ps (pid {holder['pid']})")
    if not holder["pid"]:
        return Row(
            pc, check, "FAIL", "held by the kernel", pc, f"sudo ss -ltnp sport = :{wanted.port}"
        )
    detail = f"held by {holder['name']} (pid {holder['pid']}: {holder['command']})"
    if holder["container"]:
        fix = f"sudo docker container stop {holder['container']}"
    elif holder["unit"]:
        fix = f"sudo systemctl stop {holder['unit']}"
    else:
        fix = f"sudo kill {holder['pid']}"
    return Row(pc, check, "FAIL", detail, pc, fix)


def _line(pc: str, asked: Mapping[str, Any], wanted: Wanted, ps: Facts) -> Iterator[Row]:
    """Yield the result of connecting to the ps, and the line's rate."""
    dial, target = asked.get("dial", {}).get("answer"), f"{wanted.ps} port {wanted.port}"
    if not dial:
        why = "did not answer" if not ps else f"port {wanted.port} is not free there"
        detail = f"not tried: {wanted.ps} {why}"
        yield Row(pc, "ps", "WARN", detail, HERE, "make check   # once that is fixed")
        return
    if dial["state"] != "open":
        yield _no_line(pc, asked, wanted, ps)
        return
    yield Row(pc, "ps", "PASS", f"reaches {target}")
    if not dial["received_bytes"]:
        return
    mbit_per_s = 8e-6 * dial["received_bytes"] / max(dial["received_s"], 1e-4)
    shown = f"{mbit_per_s / 8:.1f} MB/s ({mbit_per_s:.0f} Mbit/s) to {wanted.ps}"
    if mbit_per_s >= SLOW_MBIT_PER_S:
        yield Row(pc, "bandwidth", "PASS", shown)
        return
    fix = f"make plan ARGS='--pcs 2x300@{max(1, mbit_per_s):.0f}'"
    detail = f"{shown}: a cable instead of Wi-Fi? This predicts what such a line costs"
    yield Row(pc, "bandwidth", "WARN", detail, HERE, fix)


def _no_line(pc: str, asked: Mapping[str, Any], wanted: Wanted, ps: Facts) -> Row:
    """Return why the ps is unreachable; before the first deploy its firewall may block the port."""
    dial, address = asked["dial"]["answer"], asked["address"]
    target = f"{wanted.ps} port {wanted.port}"
    if dial["state"] == "stranger":
        detail = f"another PC than {wanted.ps} answers at its address: is it used twice?"
        return Row(pc, "ps", "FAIL", detail, wanted.ps, "ip -brief address")
    guard, firewall = ps.get("guard"), ps.get("firewall")
    if guard is not None and address not in guard:
        detail = f"{target} is closed to {address}: the ps was deployed without it"
        return Row(pc, "ps", "WARN", detail, HERE, "make deploy")
    if guard is None and firewall in BY_DEPLOY:
        detail = f"{target} is blocked by {firewall} there; deploy opens it to the inventory's PCs"
        return Row(pc, "ps", "WARN", detail, HERE, "make deploy")
    said = f" ({dial['error']})" if dial["error"] else ""
    detail = f"{target} does not answer{said}: a firewall, or another network"
    if not ps:
        detail += f". With {wanted.ps} asked, too, this shows more"
        return Row(pc, "ps", "FAIL", detail, HERE, f"make check LIMIT={wanted.ps},{pc}")
    opens = {
        "ufw": f"sudo ufw allow from {address} to any port {wanted.port} proto tcp",
        "firewalld": f"sudo firewall-cmd --permanent --add-port={wanted.port}/tcp"
        " && sudo firewall-cmd --reload",
    }
    plain = f"sudo iptables -I INPUT -p tcp -s {address} --dport {wanted.port} -j ACCEPT"
    return Row(pc, "ps", "FAIL", detail, wanted.ps, opens.get(firewall or "", plain))


def _data(pc: str, asked: Mapping[str, Any], facts: Facts, wanted: Wanted) -> Iterator[Row]:
    """Yield whether the PC has the data; deploy sends them, except to a ``data_folder``."""
    own = asked.get("data_folder")
    for name, ours in wanted.data.items():
        theirs = facts["data"].get(name)
        if own and name in facts["data"] and not theirs:
            detail = f"there is no folder {own}, which the inventory names as its data_folder"
            yield Row(pc, "data", "FAIL", detail, pc, f"ls {own.rpartition('/')[0] or '/'}")
        elif theirs and (theirs == ours or (own and theirs == wanted.images.get(name))):
            yield Row(pc, "data", "PASS", f"{name}: {theirs['files']:,} files, as here")
        elif own and theirs:
            there = f"{theirs['files']:,} files in {own}"
            same = "these differ; all workers need the same data" if ours else "this PC has none"
            yield Row(pc, "data", "WARN" if ours else "PASS", f"{there}: {same}")
        elif ours:
            counts = f"{theirs['files']:,} files there, {ours['files']:,} here" if theirs else ""
            detail = f"{name} differs: {counts}" if theirs else f"{name} is not on the PC yet"
            yield Row(pc, "data", "WARN", detail, HERE, "make deploy")
