"""The addresses of this PC on the LAN."""

from __future__ import annotations

import ipaddress
import socket

_VIRTUAL = ("docker", "br-", "veth", "virbr", "lo")


def lan_addresses() -> list[str]:
    """Return this PC's IPv4 addresses, the default route's first; else IPv6's; else loopback."""
    import psutil

    found = [
        address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
        and not name.startswith(_VIRTUAL)
        and not ipaddress.ip_address(address.address).is_loopback
    ]
    outward = _outward()
    found.sort(key=lambda address: address != outward)
    return found or _ipv6_addresses() or ["127.0.0.1"]


def _ipv6_addresses() -> list[str]:
    import psutil

    return [
        address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET6
        and not name.startswith(_VIRTUAL)
        and "%" not in address.address  # link-local: means nothing on another PC
        and not ipaddress.ip_address(address.address).is_loopback
    ]


def _outward() -> str | None:
    """Return the address of the default route; connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation (RFC 5737)
        except OSError:
            return None
        return str(probe.getsockname()[0])
