"""Nothing of a virtual LAN stays, however its run ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lan import places
from lan.pc import PcSpec
from lan.prepare import Prepared
from lan.shell import CommandError, sh
from lan.virtual import VirtualLan

from support import ROOT

pytestmark = [pytest.mark.lan, pytest.mark.timeout(1800), pytest.mark.usefixtures("own_turn")]

ONE_PC = """
import signal
import time
from lan.control import ControlDocker
from lan.places import IMAGES
from lan.pc import PcSpec
from lan.virtual import VirtualLan
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
with VirtualLan([PcSpec("pc1", 11)]) as lan, ControlDocker(IMAGES / "teardown"):
    print("up", flush=True)
    time.sleep(600)
"""


def _traces() -> list[str]:
    """Return what of a LAN is on the host: processes, mounts, links, rules, folders, groups."""
    mounts = Path("/proc/mounts").read_text().splitlines()
    mounts = [line for line in mounts if line.split()[1] != str(places.IMAGES)]  # the next one's
    links = sh("ip", "-o", "link").stdout.splitlines()
    found = [line for line in mounts if "minga-lan" in line or "/netns/minga-" in line]
    found += [line for line in links if places.BRIDGE in line or " mg-" in line]
    found += [line for line in sh("iptables-save").stdout.splitlines() if places.BRIDGE in line]
    kept = (places.STATE, places.DISK, places.RUN)
    found += [str(place) for place in kept if place.exists()]
    found += map(str, [*places.NSPAWN.glob("propagate/minga-*"), *places.NSPAWN.glob("locks/*")])
    found += [str(place) for place in Path("/sys/fs/cgroup").glob("**/minga-lan")]
    return found


def _sysctls() -> dict[str, str]:
    there = (Path("/proc/sys") / name for name in places.WANTED_SYSCTLS)
    return {str(place): place.read_text() for place in there if place.exists()}


def _start_a_lan() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ONE_PC],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.long
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_takes_everything_along(
    prepared: Prepared, images: Path, ending: signal.Signals
) -> None:
    before = _sysctls()
    with _start_a_lan() as process:
        assert _traces()
        process.send_signal(ending)
        try:
            process.wait(60)
        finally:
            process.kill()
    assert _traces() == []
    assert _sysctls() == before


def test_what_a_killed_run_left_is_removed_by_the_next_one(
    prepared: Prepared, images: Path
) -> None:
    before = _sysctls()
    with _start_a_lan() as process:
        with pytest.raises(CommandError, match="is up already"), VirtualLan([]):
            pass
        process.kill()
    assert _traces()
    with VirtualLan([]) as lan:
        assert lan.pcs == {}
        assert not (places.STATE / "pc1").exists()
    assert _traces() == []
    assert _sysctls() == before


@pytest.mark.long
def test_a_lan_that_cannot_boot_takes_everything_along(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lan.pc.VirtualPc.wait_until_ready", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError), VirtualLan([PcSpec("pc1", 11)]):
        pass
    assert _traces() == []


@pytest.mark.long
def test_a_pc_without_docker_boots_too(prepared: Prepared) -> None:
    with VirtualLan([PcSpec("bare", 21, docker=False)]) as lan:
        pc = lan.pcs["bare"]
        assert pc.run("command -v dockerd", check=False).returncode != 0
        pc.run("sudo apt-get update", timeout_s=120)
