"""roles/dataset, played on this PC into a folder: what differs is sent, and looked at again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from support import ROOT, needs, play

needs("ansible")

pytestmark = pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync on this PC")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, and an inventory of one PC, which is this one."""
    monkeypatch.setenv("DATASET", "data/flowers")
    monkeypatch.delenv("VAL_DATASET", raising=False)
    for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"):
        path = tmp_path / "data" / "flowers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 100)
    (tmp_path / "group_vars").symlink_to(ROOT / "ansible" / "group_vars")
    (tmp_path / "lan.ini").write_text("[ps]\na\n[workers]\ndesk-b ansible_host=10.0.0.2\n")
    return tmp_path


def _send(project: Path, *words: str, failed: bool = False) -> str:
    """Play it; return Ansible's words."""
    places = f"minga_root={project} minga_dir={project / 'pc'} ansible_become=false"
    ended = play(project / "lan.ini", Path(__file__).with_name("send.yml"), "-e", places, *words)
    assert (ended.returncode != 0) == failed, ended.stdout
    return ended.stdout


def _changed(said: str) -> int:
    found = re.search(r"^desk-b +: ok=\d+ +changed=(\d+)", said, flags=re.MULTILINE)
    assert found, said
    return int(found[1])


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_only_what_differs_is_sent_and_only_then_is_there_an_rsync(project: Path) -> None:
    here, there = project / "data" / "flowers", project / "pc" / "data" / "flowers"
    said = _send(project, "--check")
    assert "desk-b would be sent flowers" in said
    assert not (project / "pc").exists()
    _send(project)
    assert _contents(there) == _contents(here)

    said = _send(project)
    assert _changed(said) == 0
    assert "Send the differences" not in said
    assert "would be sent" not in _send(project, "--check")

    (here / "train" / "a" / "1.png").write_text("other")
    (here / "val" / "a" / "3.png").unlink()
    kept = there / "train" / "b" / "2.png"
    before = kept.stat().st_ino
    assert _changed(_send(project)) == 1
    assert _contents(there) == _contents(here)
    assert kept.stat().st_ino == before


def test_a_pack_is_sent_in_place_of_the_folder(project: Path) -> None:
    pack = project / "build" / "data" / "flowers"
    (pack / "train").mkdir(parents=True)
    (pack / "train" / "train-000000.tar").write_text("shards")
    _send(project)
    there = project / "pc" / "data" / "flowers"
    assert _contents(there) == _contents(project / "data" / "flowers"), "control: no pack yet"
    (pack / "packed.json").write_text("{}")
    _send(project)
    assert _contents(there) == _contents(pack)


def test_data_that_did_not_come_as_they_are_fail_their_pc(project: Path) -> None:
    """A disk that says yes and keeps something else: here, an rsync."""
    liar = project / "rsync"
    liar.write_text(f'#!/bin/sh\nrsync "$@"; echo x >> {project}/pc/data/flowers/val/b/4.png\n')
    liar.chmod(0o755)
    said = " ".join(_send(project, "-e", f"ansible_rsync_path={liar}", failed=True).split())
    folder = project / "pc" / "data" / "flowers"
    data = project / "data" / "flowers"
    assert f"desk-b (10.0.0.2): rsync succeeded, but {folder} is not {data}: " in said
    assert "4 files of 4802 bytes there, 4 of 4800 here" in said
    assert f"On it: sudo rm -r {folder}; then here: make deploy LIMIT=desk-b" in said
    shutil.rmtree(folder)
    _send(project)


def test_data_of_the_pcs_own_are_left_alone(project: Path) -> None:
    own = project / "own"
    inventory = project / "lan.ini"
    inventory.write_text(inventory.read_text().replace("10.0.0.2", f"10.0.0.2 data_folder={own}"))
    assert f"desk-b (10.0.0.2) has no folder {own}" in " ".join(_send(project, failed=True).split())
    own.mkdir()
    asks = "Describe the packed data"
    assert asks not in _send(project)
    (project / "build" / "data" / "flowers").mkdir(parents=True)
    (project / "build" / "data" / "flowers" / "packed.json").touch()
    assert asks in _send(project)
    assert not (project / "pc").exists()
