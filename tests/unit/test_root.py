"""Who may start a ps, a worker, a demo: root only where it is allowed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from minga.cli import main
from support import ROOT


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The roles that root started; none of them runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINGA_ALLOW_ROOT")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    roles: list[str] = []
    for role in ("ps", "worker"):
        fake = ModuleType(f"minga.{role}.run")
        vars(fake)[f"run_{role}"] = lambda *_, role=role: roles.append(role)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return roles


COMMANDS = (["ps"], ["worker", "--address=a", "--token=t"])


@pytest.mark.parametrize("words", COMMANDS, ids=["ps", "worker"])
def test_root_starts_neither_ps_nor_worker_unless_it_is_allowed(
    words: list[str],
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "error[running-as-root]" in said
    assert "export MINGA_ALLOW_ROOT=1" in said
    assert started == []
    monkeypatch.setenv("MINGA_ALLOW_ROOT", "no")
    assert main(words) == 2
    assert started == []
    assert main([*words, "--allow-root"]) == 0
    monkeypatch.setenv("MINGA_ALLOW_ROOT", "1")
    assert main(words) == 0
    assert started == 2 * [words[0]]


@pytest.mark.parametrize(
    ("called_by", "people", "command"),
    [
        ("ana", [], "su ana"),
        ("root", ["bob:1001:/bin/bash", "web:1000:/usr/sbin/nologin"], "su bob"),
        (None, ["www:33:/bin/sh", "nobody:65534:/bin/sh"], "useradd --create-home minga"),
    ],
)
def test_the_error_for_root_names_an_ordinary_user(
    called_by: str | None,
    people: list[str],
    command: str,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    if called_by:
        monkeypatch.setenv("SUDO_USER", called_by)
    entries = [
        pwd.struct_passwd((name, "x", int(uid), 1, "", "/", shell))
        for name, uid, shell in (each.split(":") for each in people)
    ]
    monkeypatch.setattr(pwd, "getpwall", lambda: entries)
    assert main(["ps"]) == 2
    assert command in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize("root", [True, False])
def test_a_demo_as_root_warns_once_and_passes_the_permission_on(
    root: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str | None] = []
    fake = ModuleType("minga.demo")
    vars(fake)["run_demo"] = lambda _: seen.append(os.environ.get("MINGA_ALLOW_ROOT")) or 0
    monkeypatch.setitem(sys.modules, "minga.demo", fake)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setenv("MINGA_ALLOW_ROOT", "")
    assert main(["demo"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert seen == (["1"] if root else [None])
    assert len(said) == (1 if root else 0), said


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may start both")
@pytest.mark.parametrize("script", ["start_ps.sh", "start_worker.sh"])
def test_a_start_script_of_root_prints_the_error(script: str, tmp_path: Path) -> None:
    shutil.copy2(ROOT / script, tmp_path)
    binary = tmp_path / "minga"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m minga "$@"\n')
    binary.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "MINGA_ALLOW_ROOT"}
    ended = subprocess.run(
        [tmp_path / script],
        env={**environment, "MINGA_BIN": str(binary)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "error[running-as-root]" in ended.stderr
