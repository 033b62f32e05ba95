"""Odd places and odd PCs: clocks, locales, paths, rights, no network, two demos at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.harness import cluster
from cluster.steps import Steps
from support import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TRAIN = 1442
DEMO = [sys.executable, "-m", "minga", "demo", "--epochs=1", "--workers=1"]
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""The C locale as Python took it long ago: file names in ASCII."""
NOBODY = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
ACCENTED = "año de pruebas ñandú"

OTHER_CLOCK = """
import datetime, sys, time
real, moved = time.time, 400 * 86400 * {direction}
time.time = lambda: real() + moved
class Moved(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
from minga.observe import folder
folder.datetime = Moved
from minga.cli import main
sys.exit(main())
"""
"""A PC whose clock is 400 days off."""


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", **changes}


def run(
    command: list[str], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, cwd=cwd, env=env or environment(), capture_output=True, timeout=120, check=False
    )


def went_well(ended: subprocess.CompletedProcess[bytes]) -> None:
    said = (ended.stdout + ended.stderr).decode(errors="replace")
    assert ended.returncode == 0, said
    assert "Traceback" not in said
    assert re.search(r"validation accuracy \d+\.\d+ %", said)


def open_up(folder: Path) -> None:
    """Let others look into a test's folder: pytest keeps it for its own user."""
    for each in (folder, *folder.parents):
        if each != Path("/tmp") and each.is_relative_to("/tmp"):
            each.chmod(0o755)


def root_only() -> None:
    if os.geteuid() != 0 or sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs root, Linux and `unshare`")


# -- clocks


def test_wrong_clocks_break_nothing(tmp_path: Path, digits: Path) -> None:
    """One worker's clock is ahead by a year, and that of a ps that comes back is behind."""
    settings = {"train__epochs": 8, "evaluation__every_epochs": 4, "checkpoint__every_s": 0.2}
    killed = tmp_path / "killed"
    with cluster(tmp_path, digits, **settings) as lan:
        lan.start_ps()
        lan.start_worker(1, entry=("-c", OTHER_CLOCK.format(direction=1)))
        # what it holds is not counted before: the run is not over
        lan.start_worker(2, entry=Steps(gates={21: killed}).entry)
        for rank in (1, 2):
            lan.wait_for("push", rank=rank)
        lan.wait_for("checkpoint", samples_done=lambda done: done > 0)
        lan.kill("ps")
        killed.touch()
        lan.start_ps(entry=("-c", OTHER_CLOCK.format(direction=-1)))
        for name in ("ps", "worker1", "worker2"):
            assert lan.finish(name) == 0, lan.log(name)
        years = {event["time"][:4] for event in lan.events()}
        assert len(years) == 2, "control: the ps's calendar is another"
        assert lan.summary()["resumed_from"] is not None
        assert lan.audit(TRAIN, 8).exact
        assert not [event for event in lan.events() if event["kind"] == "lease_expired"]


# -- languages, time zones, paths


def test_a_demo_runs_for_anybody_in_any_folder_and_language(tmp_path: Path) -> None:
    """Spaces and accents in the path, the C locale, a far zone; a user without name or home."""
    folder = tmp_path / ACCENTED
    folder.mkdir()
    user: list[str] = []
    if os.geteuid() == 0 and shutil.which("setpriv"):
        os.chown(folder, 12345, 12345)
        open_up(tmp_path)
        # the right to look into folders: the interpreter may be in another user's home
        user = [*NOBODY, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    env = environment(**PLAIN, TZ="Pacific/Kiritimati", HOME="/nonexistent")
    went_well(run([*user, *DEMO], folder, env))
    (best,) = folder.glob("runs/*/checkpoints/best.pth")
    evaluated = run([sys.executable, "-m", "minga", "eval", str(best), "--device=cpu"], folder, env)
    assert evaluated.returncode == 0, evaluated.stderr.decode(errors="replace")
    assert ACCENTED.encode() in evaluated.stdout


def test_classes_with_accents_are_the_same_on_every_pc(tmp_path: Path, digits: Path) -> None:
    """The one PC lists its folders in the C locale, the other in UTF-8."""
    data = tmp_path / "clases con acentos: ñ"
    shutil.copytree(digits, data)
    for half in ("train", "val"):
        for number, name in enumerate(["niño", "señal", "über", "日本"]):
            (data / half / str(number)).rename(data / half / name)
    verify = [sys.executable, "-m", "minga", "data", "verify", str(data)]
    first = run(verify, tmp_path, environment(LC_ALL="C.UTF-8"))
    second = run(verify, tmp_path, environment(**PLAIN))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout, second.stderr
    assert b"class_hash" in first.stdout


# -- rights


def test_a_read_only_folder_is_said_and_another_one_works_without_any_network(
    tmp_path: Path,
) -> None:
    root_only()
    folder, elsewhere = tmp_path / "read only", tmp_path / "writable"
    folder.mkdir()
    elsewhere.mkdir()
    lock = (
        "ip link set lo up && ip -o link && mount --bind . . && mount -o remount,bind,ro . && "
        'cd "$PWD" && exec "$@"'
    )
    inside = ["unshare", "--mount", "--net", "sh", "-c", lock, "sh"]

    def locked(*command: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
        ended = run([*inside, *command], folder, environment(**changes))
        interfaces = re.findall(rb"^\d+: (\w+).*state (?:UP|UNKNOWN)", ended.stdout, re.MULTILINE)
        assert interfaces == [b"lo"], "control: nothing but loopback"
        return ended

    for role in ("ps", "demo"):
        ended = locked(sys.executable, "-m", "minga", role)
        assert ended.returncode == 2, ended.stderr
        assert b"error[no-access]: Read-only file system" in ended.stderr
        assert b"MINGA_RUNS=" in ended.stderr
        assert b"Traceback" not in ended.stderr
    went_well(locked(*DEMO, MINGA_RUNS=str(elsewhere / "runs")))
    assert list(folder.iterdir()) == []


def test_data_that_may_not_be_read_are_an_error_and_no_lost_connection(tmp_path: Path) -> None:
    root_only()
    data = tmp_path / "data"
    (data / "train" / "one").mkdir(parents=True)
    (data / "val").mkdir()
    (data / "train").chmod(0)
    open_up(tmp_path)
    verify = [sys.executable, "-m", "minga", "data", "verify", str(data)]
    ended = run([*NOBODY, *verify], Path("/"))
    (data / "train").chmod(0o755)
    assert ended.returncode == 4, ended.stderr
    assert f"error[data-unreadable]: cannot read {data}/train".encode() in ended.stderr
    assert b"Permission denied" in ended.stderr


# -- neighbours


def test_two_demos_at_once_do_not_meet(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            DEMO,
            cwd=tmp_path,
            env=environment(LC_ALL="no_SUCH.locale", TZ=zone),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for zone in ("UTC", ":/no/such/zone")
    ]
    for each in both:
        said = each.communicate(timeout=150)
        went_well(subprocess.CompletedProcess(DEMO, each.returncode, *said))
    runs = [path for path in (tmp_path / "runs").iterdir() if (path / "summary.json").exists()]
    assert len(runs) == 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["digits"]
