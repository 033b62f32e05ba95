"""What is told of image and data on their way: by command lines, samples, and a real rsync."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cluster.harness import wait_until
from minga.deploy import progress
from minga.deploy.progress import Sample, Transfer, Watch, line_of, size_bytes, transfer_of

IMAGE = "/srv/minga/build/image/send/0a1b/"
SSH = "--rsh=/usr/bin/ssh -S none -o Port=22 -o ServerAliveInterval=15"
PER_S = 4_000_000
BYTES = 12_000_000


# -- rules


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("ana@10.0.0.2:/opt/minga/image/", "10.0.0.2"),
        ("10.0.0.2:/opt/minga/image/", "10.0.0.2"),
        ("desk-b:/opt/minga/image/", "desk-b"),
        ("[ana@fd00::2]:/opt/minga/image/", "fd00::2"),
        ("ana@[fd00::2]:/opt/minga/image/", "fd00::2"),
        ("/opt/minga/data/a:b/", "here"),
    ],
)
def test_a_command_line_says_to_whom_what_is_sent(target: str, address: str) -> None:
    command = ["/usr/bin/rsync", "--delete-after", SSH, "--partial", IMAGE, target]
    assert transfer_of(command) == Transfer(address, IMAGE)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["rsync", "--version"],
        ["rsync", SSH, "ana@10.0.0.2:/opt/minga/var/runs/1/", "/srv/minga/runs/1/"],
        ["rsync", "--server", "-logDtpre", ".", "/opt/minga/data/x/"],
        ["/usr/bin/ssh", "-S", "none", "10.0.0.2", "rsync", "--server", ".", "/opt/x/"],
        ["python3", "rsync", IMAGE, "10.0.0.2:/x/"],
    ],
)
def test_other_command_lines_send_nothing(command: list[str]) -> None:
    assert transfer_of(command) is None


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (IMAGE, "image"),
        ("/srv/minga/build/data/flowers/", "data"),
        ("/mnt/imagenet/", "data"),
        ("/srv/minga/build/pcs/desk-b/", "settings"),
        ("/srv/minga/.minga/deploy/", "settings"),
    ],
)
def test_what_is_sent_is_known_by_its_folder(source: str, what: str) -> None:
    assert Transfer("here", source).what == what


GB = 10**9


@pytest.mark.parametrize(
    ("total", "before", "now", "line"),
    [
        (2.53 * GB, (0, 0), (10, 0.98 * GB), "0.98 of 2.53 GB  98 MB/s  16 s left"),
        (2.53 * GB, (10, 1 * GB), (15, 1.05 * GB), "1.05 of 2.53 GB  10 MB/s  2 min left"),
        (900 * GB, (10, 1 * GB), (15, 1.5 * GB), "1.50 of 900.00 GB  100 MB/s  2.5 h left"),
        (5e7, (0, 0), (5, 1e7), "10.0 of 50.0 MB  2.0 MB/s  20 s left"),
        (5e7, (5, 1e7), (10, 1e7), "10.0 of 50.0 MB  0.0 MB/s  stands still"),
        (5e7, (0, 0), (5, 6e7), "50.0 of 50.0 MB  12 MB/s  0 s left"),
    ],
)
def test_a_line_has_amount_speed_and_time(
    total: float, before: tuple[float, float], now: tuple[float, float], line: str
) -> None:
    samples = [Sample(at_s, int(done)) for at_s, done in (before, now)]
    assert line_of("desk-b", "image", int(total), *samples) == f"desk-b  image  {line}"


# -- a real rsync


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder as those that images lie in."""
    folder = tmp_path / "build" / "image" / "send"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.zst").write_bytes(bytes(BYTES // 3))
    return folder


def _copying(source: Path, target: Path) -> subprocess.Popen[bytes]:
    """Copy at 4 MB/s in a grandchild, as Ansible does."""
    rsync = ["rsync", "-a", f"--bwlimit={PER_S // 1024}", f"{source}/", f"{target}/"]
    code = f"import subprocess, sys; sys.exit(subprocess.run({rsync!r}).returncode)"
    return subprocess.Popen([sys.executable, "-c", code])


def _sender(child: subprocess.Popen[bytes]) -> psutil.Process | None:
    """Return the rsync that sends: the one that is not below another."""
    found = psutil.Process(child.pid).children()
    return found[0] if found and found[0].name() == "rsync" else None


def _frozen_at(sender: psutil.Process, least_bytes: int) -> int:
    """Let it read so much, and freeze it; return what it has read."""
    sender.resume()
    wait_until(lambda: sender.io_counters().read_chars >= least_bytes, "rsync to read")
    sender.suspend()
    wait_until(lambda: sender.status() == psutil.STATUS_STOPPED, "it to stand still")
    return int(sender.io_counters().read_chars)


@pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync on this PC")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has read")
def test_a_real_transfer_is_told_of_with_the_right_numbers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert size_bytes(source) == BYTES
    before = set(psutil.Process().children(recursive=True))  # of other tests
    now_s, lines = 0.0, list[str]()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now_s))
    with _copying(source, tmp_path / "there") as child:
        watch = Watch(child.pid, lambda: {"here": "desk-b"}, lines.append, 0.5)
        sender = wait_until(lambda: _sender(child), "rsync")
        first = _frozen_at(sender, 1_000_000)
        watch.look()
        assert lines == []
        second, now_s = _frozen_at(sender, first + 1_000_000), 0.5
        watch.look()
        samples = Sample(0.0, first), Sample(0.5, second)
        assert lines == [line_of("desk-b", "image", BYTES, *samples)]
        assert first < second < BYTES, "control: it was on its way"
        sender.resume()
        assert watch.wait(child, look_s=0.1) == 0
    assert size_bytes(tmp_path / "there") == BYTES
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, "nothing is left running"


@pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync on this PC")
def test_a_short_transfer_is_not_told_of(source: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with _copying(source, tmp_path / "there") as child:
        assert Watch(child.pid, dict, lines.append, 1e6).wait(child, look_s=0.1) == 0
    assert lines == []


def test_a_failure_is_the_childs_own() -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as child:
        assert Watch(child.pid, dict, print).wait(child, look_s=0.1) == 7


def test_a_ctrl_c_is_waited_out() -> None:
    """It reaches ansible-playbook by itself, which ends in its own time."""
    endings = iter([KeyboardInterrupt, subprocess.TimeoutExpired("x", 1), 130])

    class Process:
        def wait(self, timeout: float) -> int:
            ending = next(endings)
            if isinstance(ending, int):
                return ending
            raise ending

    assert Watch(psutil.Process().pid, dict, print).wait(Process()) == 130
