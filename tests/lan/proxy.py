"""A proxy of the lab: the only way out for PCs that have no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lan import groups
from lan.network import CONTROL
from lan.pc import VirtualPc
from lan.places import STATE
from lan.shell import wait_for

ADDRESS = f"http://{CONTROL[0]}:8888"
_NAME = "proxy"
_SETTINGS = f"""
Port 8888
Listen {CONTROL[0]}
Allow 10.77.0.0/24
LogFile "{STATE}/{_NAME}.log"
PidFile "{STATE}/{_NAME}.pid"
"""


@contextmanager
def lab_proxy() -> Iterator[Path]:
    """Run tinyproxy on the control PC; gives its log."""
    settings, log = (STATE / f"{_NAME}.{kind}" for kind in ("conf", "log"))
    settings.write_text(_SETTINGS)
    groups.start(_NAME, ["tinyproxy", "-d", "-c", str(settings)], STATE / f"{_NAME}.console")
    try:
        wait_for("the proxy", lambda: "Accepting connections" in _text(log), 20)
        yield log
    finally:
        groups.kill(_NAME)


def shut_in(pc: VirtualPc) -> None:
    """Leave a PC the LAN alone until it is switched off: no way out, and no names either."""
    pc.plug.exec("ip", "route", "del", "default")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
