"""What is on a PC: packages, files, firewall rules; to compare before deploy with after purge."""

from __future__ import annotations

from lan.pc import VirtualPc

_NOT_COMPARED = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/log", "/var/cache"),
    "/var/lib/apt/lists",
    "/var/lib/docker",  # a disk of its own in a virtual PC
    "/var/lib/containerd/io.containerd.runtime.v2.task/moby",  # the engine makes it
    "/var/lib/systemd",  # clocks and random seeds
    *("/etc/group-", "/etc/gshadow-", "/var/lib/dpkg"),  # backups; packages are listed themselves
    "/etc/firewalld/*/docker*.old",  # Docker's own, at each of its starts
)
"""Logs, caches, and what the PC writes by itself."""

_LIST = f"""
dpkg-query --show --showformat 'package ${{Package}} ${{Version}} ${{db:Status-Abbrev}}\\n'
find / -xdev \\( {" -o ".join(f"-path '{path}'" for path in _NOT_COMPARED)} \\) -prune \\
  -o -printf 'file %p %y %m %u %g\\n'
find /etc /opt -type f -not -name '*shadow-' -not -name 'group-' -not -name 'docker*.old' \\
  -exec md5sum {{}} + | sed 's/^/content /'
nft --stateless list ruleset 2>/dev/null | sed 's/^/rule /'
ip -brief link | sed 's/[ @].*//; s/^/link /'
sed 's/^/forward /' /proc/sys/net/ipv4/ip_forward
"""


def traces(pc: VirtualPc) -> list[str]:
    """Return a line for each thing, sorted; the order of rules is not compared."""
    return sorted(line.rstrip() for line in pc.sudo(_LIST, timeout_s=120).stdout.splitlines())


def differences(before: list[str], after: list[str]) -> list[str]:
    """Return what came with a + and what went with a -."""
    there, still = set(before), set(after)  # once: there are tens of thousands of lines
    came = [f"+ {line}" for line in after if line not in there]
    return came + [f"- {line}" for line in before if line not in still]
