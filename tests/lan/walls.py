"""Firewalls as the owners of virtual PCs have them: each lets SSH in and drops the rest."""

from __future__ import annotations

from lan.pc import VirtualPc

NFTABLES = """#!/usr/sbin/nft -f
flush ruleset
table inet house {
  chain guests {
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state established,related accept
    tcp dport 22 accept
    icmp type echo-request accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, echo-request } accept
  }
}
"""


def put_up_ufw(pc: VirtualPc, ssh_port: int = 22) -> None:
    """Turn on Debian's ufw as its manual says."""
    pc.sudo(f"ufw allow {ssh_port}/tcp && ufw --force enable")


def put_up_firewalld(pc: VirtualPc) -> None:
    """Install firewalld; it lets SSH in by itself."""
    install = "apt-get -qq install -y --no-install-recommends firewalld python3-firewall"
    pc.sudo(f"apt-get -qq update && DEBIAN_FRONTEND=noninteractive {install}", timeout_s=300)
    pc.sudo("systemctl enable --now firewalld && firewall-cmd --state")


def put_up_nftables(pc: VirtualPc) -> None:
    """Write rules that drop by policy, v4 and v6, and load them at every start."""
    pc.file("/etc/nftables.conf").write_text(NFTABLES)
    pc.sudo("systemctl enable --now nftables && systemctl restart nftables")
