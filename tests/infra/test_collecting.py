"""`make collect`, and what `make purge` looks at first, on PCs that are folders of this one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from support import ROOT, needs, play

needs("ansible")

pytestmark = [
    pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync on this PC"),
    pytest.mark.timeout(600),  # several playbooks, on a busy machine
]

LOOK = Path(__file__).with_name("look.yml")
COLLECT = ROOT / "ansible" / "collect.yml"
LED = ("events.jsonl", "checkpoints/last.pth")
"""What a ps has of a run, besides its statistics."""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with an inventory whose ps is pc1."""
    (tmp_path / "group_vars").symlink_to(ROOT / "ansible" / "group_vars")
    _move_ps(tmp_path, "pc1")
    return tmp_path


def _move_ps(lab: Path, ps: str) -> None:
    pcs = {f"pc{n}": f"pc{n} ansible_host=10.0.0.{n}" for n in (1, 2, 3)}
    lines = ["[ps]", pcs.pop(ps), "[workers]", *pcs.values(), "[all:vars]"]
    lines += ["ansible_connection=local", "ansible_become=false"]
    (lab / "lan.ini").write_text("\n".join(lines) + "\n")


def _have(lab: Path, pc: str, run: str, *names: str) -> None:
    """Let a PC have these files of a run."""
    for name in names:
        path = lab / pc / "var" / "runs" / run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of {run} from {pc}\n")


def _play(lab: Path, book: Path, *words: str, **env: str) -> tuple[int, str]:
    places = ("-e", f"minga_root={lab}", "-e", f"minga_dir={lab}/{{{{ inventory_hostname }}}}")
    python = ("-e", "ansible_python_interpreter={{ ansible_playbook_python }}")
    ended = play(lab / "lan.ini", book, *places, *python, *words, **env)
    return ended.returncode, " ".join(ended.stdout.split())


def _at_home(lab: Path) -> Mapping[str, str]:
    files = (path for path in (lab / "runs").rglob("*") if path.is_file())
    return {str(path.relative_to(lab / "runs")): path.read_text().split()[-1] for path in files}


def _lying_rsync(lab: Path) -> Path:
    """An rsync that twice keeps another byte: same size, same time."""
    liar = lab / "rsync"
    last = "old/checkpoints/last.pth"
    liar.write_text(
        f'#!/bin/sh\nrsync "$@"; cd {lab}/runs && [ -e {last} ] || exit 0\n'
        "for lie in first second; do [ -e ../$lie ] || {\n"
        f"touch ../$lie; touch -r {last} ../then\n"
        f"printf x | dd conv=notrunc of={last}\n"
        f"touch -r ../then {last}; exit 0; }}; done 2>/dev/null\n"
    )
    liar.chmod(0o755)
    return liar


def test_what_a_ps_left_that_is_a_worker_today_is_missed_and_fetched(lab: Path) -> None:
    _have(lab, "pc1", "old", *LED, "stats/pc1_ps.json")
    _have(lab, "pc2", "old", "stats/pc2_worker1.json")
    _move_ps(lab, "pc2")
    _have(lab, "pc2", "new", *LED, "stats/pc2_ps.json")
    _have(lab, "pc3", "new", "stats/pc3_worker2.json", "stats/half.json.part")

    status, said = _play(lab, LOOK)
    assert status != 0
    assert "not here: pc2: new/" in said
    assert "and 5 more. Fetch them first: make stop collect" in said
    assert not (lab / "runs").exists(), "only looked"

    status, said = _play(lab, COLLECT, "-e", f"ansible_rsync_path={_lying_rsync(lab)}")
    assert status == 0, said
    assert "Here now: runs/new, runs/old." in said
    assert _at_home(lab) == {
        "old/events.jsonl": "pc1",
        "old/checkpoints/last.pth": "pc1",
        "old/stats/pc1_ps.json": "pc1",
        "old/stats/pc2_worker1.json": "pc2",
        "new/events.jsonl": "pc2",
        "new/checkpoints/last.pth": "pc2",
        "new/stats/pc2_ps.json": "pc2",
        "new/stats/pc3_worker2.json": "pc3",
    }
    assert (lab / "second").exists(), "control"
    came = (lab / "runs/old/checkpoints/last.pth").read_text()
    assert came.startswith("checkpoints"), "what came otherwise than it is there came again"

    # make train RUN=old begins it anew at a ps that has moved: two PCs have led a run of this name
    _have(lab, "pc2", "old", "events.jsonl", "stats/pc2_ps.json")
    status, said = _play(lab, LOOK)
    assert status != 0
    assert "pc1: old/" in said
    assert ": new/" not in said, "control: that is here"
    assert _play(lab, COLLECT)[0] == 0
    found = _at_home(lab)
    assert found["old/events.jsonl"] == "pc2"
    assert {name: pc for name, pc in found.items() if name.startswith("from-pc1/")} == {
        "from-pc1/old/events.jsonl": "pc1",
        "from-pc1/old/checkpoints/last.pth": "pc1",
        "from-pc1/old/stats/pc1_ps.json": "pc1",
    }
    assert _play(lab, LOOK)[0] == 0


def test_one_run_can_be_named_and_one_that_is_nowhere_is_told(lab: Path) -> None:
    _have(lab, "pc1", "first", *LED, "checkpoints/best.pth")
    _have(lab, "pc1", "second", *LED)
    status, said = _play(lab, COLLECT, RUN="first")
    assert status == 0, said
    assert {name.split("/")[0] for name in _at_home(lab)} == {"first"}
    assert (
        "Here now: runs/first. Next: .venv/bin/minga eval runs/first/checkpoints/best.pth" in said
    )
    status, said = _play(lab, COLLECT, RUN="third")
    assert status != 0
    assert "no PC has a run third. Which ones there are: make collect" in said
