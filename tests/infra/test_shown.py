"""What `make status` and `make check` show of the PCs' answers."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from minga.deploy import check, paths, status
from minga.errors import Unreachable

# -- status


def test_the_status_says_of_every_pc_what_it_does_or_why_nothing() -> None:
    line = "minga-ps minga:1 Up 2 minutes"
    assert list(status.rows_of("a", {"rc": 0, "stdout_lines": [line]})) == [
        ("a", "minga-ps", "Up 2 minutes", "minga:1")
    ]
    for answer, state in (
        ({"unreachable": True}, "unreachable"),
        ({}, "not asked"),
        ({"rc": 2, "stderr": "permission denied"}, "permission denied"),
        ({"rc": 0, "stdout_lines": []}, "none: make deploy, make train"),
    ):
        assert [row[2] for row in status.rows_of("a", answer)] == [state]


# -- check


def _answers(**pc: object) -> dict[str, object]:
    facts = {"rc": 2, "msg": "Missing sudo password"}
    asked = {"address": "10.0.0.2", "user": "ana", "roles": ["worker"], "facts": facts, **pc}
    here = {"machine": "x86_64", "data": {}}
    return {"port": "30005", "ps": "a", "variants": ["default"], "here": here, "pcs": {"b": asked}}


def test_the_check_shows_rows_and_commands_and_names_who_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "STAGED", tmp_path)
    answers = _answers(ssh={"stdout": "python=Python 3.13.5\n"})
    monkeypatch.setattr(check, "read_answers", lambda _: answers)
    with pytest.raises(Unreachable, match=r"^not ready: b$"):
        check.check()
    shown = capsys.readouterr().out
    assert "  PASS  python        3.13.5\n  FAIL  sudo " in shown
    assert "on b:  echo 'ana ALL=(ALL) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/minga\n" in shown
    with pytest.raises(Unreachable):
        check.check(json_=True)
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [row["state"] for row in told["pcs"]["b"]] == ["PASS", "PASS", "FAIL"]


def test_a_data_folder_is_compared_with_the_pack_and_with_what_was_packed() -> None:
    pack, images = ({"files": count, "size_bytes": 9, "digest": "d"} for count in (5, 110))
    answers = {**_answers(), "here": {"machine": "x86_64", "data": {"flowers": pack}}}
    for said, wanted in ((images, {"flowers": images}), (None, {}), ({}, {})):
        found = check._wanted({**answers, "images": said}, paths.STAGED)
        assert (found.data, found.images) == ({"flowers": pack}, wanted)
    assert check._wanted(answers, paths.STAGED).images == {}


def test_deploy_is_told_what_it_cannot_mend_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "STAGED", tmp_path)
    answers = _answers(ssh={"stdout": "python=Python 3.6\n"})
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(answers)))
    check.require()
    assert capsys.readouterr().out.startswith("Python 3.6 is too old: 3.8 or newer is needed. on b")
    answers["pcs"]["b"]["ssh"] = {"unreachable": True, "msg": "No route to host"}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(answers)))
    check.require()
    assert capsys.readouterr().out == "", "Ansible says so itself"
