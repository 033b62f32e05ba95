"""Port 30005 behind each kind of firewall: open to the inventory's PCs, shut to all others.

Every PC plays the ps; each test goes on from the last.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lan.deployment import PORT, changed
from lan.pc import PcSpec, VirtualPc
from lan.shell import wait_for
from lan.traces import differences, traces
from lan.virtual import VirtualLan
from lan.walls import put_up_firewalld, put_up_nftables, put_up_ufw

from support import ROOT, play

pytestmark = [pytest.mark.lan, pytest.mark.timeout(900)]

PCS = (
    PcSpec("ufw", 11, "ps", docker=False),
    PcSpec("firewalld", 12, docker=False),
    PcSpec("nftables", 13, docker=False),
)
RELOAD = {
    "ufw": "ufw reload",
    "firewalld": "firewall-cmd --reload",
    "nftables": "systemctl restart nftables",
}
PLAY = """
- name: Play the ps
  hosts: all
  gather_facts: false
  become: true
  tasks:
    - name: Make the folder
      ansible.builtin.file: {path: "{{ minga_dir }}", state: directory, mode: "0755"}
      when: role == "firewall"
    - name: Do what is to be tried
      ansible.builtin.include_role: {name: "{{ role }}"}
"""


class House:
    """The three PCs, and roles played on all of them."""

    def __init__(self, folder: Path, lan: VirtualLan) -> None:
        self.folder, self.lan = folder, lan
        (folder / "play.yml").write_text(PLAY)
        (folder / "group_vars").symlink_to(ROOT / "ansible" / "group_vars")

    def play(self, role: str, *peers: str) -> dict[str, int]:
        """Play a role with this inventory of peers; return how much changed on each PC."""
        hosts = f'"-o UserKnownHostsFile={self.lan.known_hosts}"'
        inventory = self.lan.inventory(self.folder / "lan.ini", ansible_ssh_common_args=hosts)
        addresses = [pc.address for pc in self.lan.pcs.values() if pc.name in peers]
        addresses += [pc.address6 for pc in self.lan.pcs.values() if pc.name in peers]
        words = ("-e", f"role={role}", "-e", f"{{minga_peers: {addresses}}}")
        ended = play(inventory, self.folder / "play.yml", *words, timeout_s=300)
        assert ended.returncode == 0, ended.stdout[-4000:]
        return changed(ended.stdout)

    def listen(self) -> None:
        """Let every PC listen, v4 and v6, as a ps would."""
        for pc in self.lan.pcs.values():
            pc.sudo(f"systemd-run --quiet --unit=listener python3 -m http.server --bind :: {PORT}")
            wait_for(f"{pc.name} to listen", lambda pc=pc: PORT in ports(pc), 30)

    def who_gets_in(self, pc: VirtualPc, port: int = PORT) -> dict[str, set[str]]:
        """Return by whom a port is reached: by v4 and v6, of the PCs and the stranger."""
        plugs = {each.name: each.plug for each in self.lan.pcs.values() if each is not pc}
        plugs["stranger"] = self.lan.stranger
        ways = {"v4": pc.address, "v6": pc.address6}
        asked = [(name, way) for name in plugs for way in ways]
        with ThreadPoolExecutor(len(asked)) as pool:  # who is shut out takes its time to say so
            said = list(pool.map(lambda each: plugs[each[0]].scan(ways[each[1]], port), asked))
        found: dict[str, set[str]] = {name: set() for name in plugs}
        for (name, way), state in zip(asked, said, strict=True):
            if state == "open":
                found[name].add(way)
        return found


def ports(pc: VirtualPc) -> set[int]:
    return {each.port for each in pc.listening()}


def guarded(pc: VirtualPc) -> bool:
    """Tell whether the guard has been loaded: sshd is up earlier."""
    return pc.run("systemctl is-active minga-firewall", check=False).returncode == 0


BOTH: set[str] = {"v4", "v6"}


@pytest.fixture(scope="module")
def house(lan: VirtualLan, tmp_path_factory: pytest.TempPathFactory) -> House:
    put_up_ufw(lan.pcs["ufw"])
    put_up_firewalld(lan.pcs["firewalld"])
    put_up_nftables(lan.pcs["nftables"])
    house = House(tmp_path_factory.mktemp("house"), lan)
    return house


@pytest.fixture(scope="module")
def before(house: House) -> dict[str, list[str]]:
    """What was on the PCs before minga came."""
    return {name: traces(pc) for name, pc in house.lan.pcs.items()}


def expected(pc: VirtualPc, *peers: str) -> dict[str, set[str]]:
    everybody = [name for name in (*(spec.name for spec in PCS), "stranger") if name != pc.name]
    return {name: BOTH if name in peers else set() for name in everybody}


def test_the_owners_firewalls_shut_everybody_out(
    house: House, before: dict[str, list[str]]
) -> None:
    house.listen()
    for pc in house.lan.pcs.values():
        assert house.who_gets_in(pc) == expected(pc), pc.name
        assert house.who_gets_in(pc, 22) == expected(pc, *house.lan.pcs, "stranger"), "control"


def test_the_peers_get_in_and_a_stranger_does_not(house: House) -> None:
    everybody = tuple(house.lan.pcs)
    assert all(count > 0 for count in house.play("firewall", *everybody).values())
    for pc in house.lan.pcs.values():
        assert house.who_gets_in(pc) == expected(pc, *everybody), pc.name
        assert house.who_gets_in(pc, 22) == expected(pc, *everybody, "stranger"), "as before"
    assert house.play("firewall", *everybody) == dict.fromkeys(everybody, 0)


def test_it_stays_so_when_the_owner_loads_the_rules_again(house: House) -> None:
    for name, command in RELOAD.items():
        pc = house.lan.pcs[name]
        pc.sudo(command)
        right = expected(pc, *house.lan.pcs)
        wait_for(f"{name} to let in", lambda pc=pc, r=right: house.who_gets_in(pc) == r, 20)


def test_it_stays_so_when_the_pcs_were_off(house: House) -> None:
    for pc in house.lan.pcs.values():
        pc.power_off()
    for pc in house.lan.pcs.values():
        pc.power_on(wait=False)
    for pc in house.lan.pcs.values():
        pc.wait_until_ready()
        wait_for(f"{pc.name}'s guard", lambda pc=pc: guarded(pc), 60)
    house.listen()
    for pc in house.lan.pcs.values():
        assert house.who_gets_in(pc) == expected(pc, *house.lan.pcs), pc.name


def test_a_pc_that_left_the_inventory_is_shut_out(house: House) -> None:
    stayed = ("ufw", "firewalld")
    house.play("firewall", *stayed)
    for pc in house.lan.pcs.values():
        assert house.who_gets_in(pc) == expected(pc, *stayed), pc.name


def test_purge_leaves_the_owners_firewall_as_it_was(
    house: House, before: dict[str, list[str]]
) -> None:
    with_minga = {name: traces(pc) for name, pc in house.lan.pcs.items()}
    house.play("purge")
    for name, pc in house.lan.pcs.items():
        assert differences(before[name], with_minga[name]), "control: deploy adds something"
        assert differences(before[name], traces(pc)) == []
        assert house.who_gets_in(pc) == expected(pc), "as before"
